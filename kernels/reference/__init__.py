"""Plain PyTorch, any floating dtype, any device: the oracle that every other backend is tested against."""

from .energy import MLP, energy, energy_and_grad, energy_backward, energy_double_backward
from .experts import (
    choose_subset,
    product_of_experts,
    product_of_experts_backward,
    subset_experts,
    subset_experts_backward,
)
from .langevin import Chain, Constraints, langevin, langevin_update, updates
from .mala import MalaChain, adjusted, mala
from .mixture import mixture_log_prob, mixture_log_prob_backward
from .noise import draw

__all__ = [
    "MLP",
    "Chain",
    "Constraints",
    "MalaChain",
    "adjusted",
    "choose_subset",
    "draw",
    "energy",
    "energy_and_grad",
    "energy_backward",
    "energy_double_backward",
    "langevin",
    "langevin_update",
    "mala",
    "mixture_log_prob",
    "mixture_log_prob_backward",
    "product_of_experts",
    "product_of_experts_backward",
    "subset_experts",
    "subset_experts_backward",
    "updates",
]
