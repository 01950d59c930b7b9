"""The operators: schemas, shapes, errors and autograd. Backends implement what stands here and nothing more.

Shapes: z [B, d]; weights [out, in] and biases [out] of every linear layer of the energy, the last with out = 1;
coefficients float32 [K, 3] = (a, b, t) per step; rng int64 [3] = (seed, offset, first chain) on z's device, never
mutated: the caller advances the offset (by K for a chain, by `steps` for a draw). Outputs that were not asked for have
zero size. ValueError and TypeError name the argument, what it takes and what came.

Experts: mu, logvar, loc and scale [M, B, d]; which of them a row has is a bitmask int64 [B], bit m for expert m.

Autograd: `energy` is differentiable in z, weights and biases as often as wanted; `mixture_log_prob` once, in z, loc and
scale; `product_of_experts` and `subset_experts` once, in mu and logvar; what samplers return is marked
non-differentiable.
"""

from .chains import check_loop, langevin, langevin_update, mala, updates
from .draws import draw
from .energy import energy, energy_and_grad
from .experts import Subsets, mixture_log_prob, product_of_experts, subset_experts
from .register import SCHEMAS as _SCHEMAS
from .register import watched

OPERATORS = tuple(name for name in _SCHEMAS if not name.endswith("_backward"))

__all__ = [
    "OPERATORS",
    "Subsets",
    "check_loop",
    "draw",
    "energy",
    "energy_and_grad",
    "langevin",
    "langevin_update",
    "mala",
    "mixture_log_prob",
    "product_of_experts",
    "subset_experts",
    "updates",
    "watched",
]
