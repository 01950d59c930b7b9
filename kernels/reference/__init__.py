"""Plain PyTorch, any floating dtype, any device: the oracle that every other backend is tested against."""

from .energy import MLP, energy, energy_and_grad, energy_backward, energy_double_backward
from .langevin import Chain, Constraints, langevin, langevin_update
from .mixture import mixture_log_prob, mixture_log_prob_backward
from .noise import draw

__all__ = [
    "MLP",
    "Chain",
    "Constraints",
    "draw",
    "energy",
    "energy_and_grad",
    "energy_backward",
    "energy_double_backward",
    "langevin",
    "langevin_update",
    "mixture_log_prob",
    "mixture_log_prob_backward",
]
