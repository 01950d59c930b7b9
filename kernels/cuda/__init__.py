"""Backend cuda: the kernels of csrc/cuda, with the names and signatures of kernels/native.py."""

from __future__ import annotations

from functools import cache

import torch

from ..reference import MLP
from . import module
from .chains import langevin, mala, too_large
from .energy import energy, energy_and_grad, energy_backward
from .operators import (
    draw,
    langevin_update,
    mixture_log_prob,
    mixture_log_prob_backward,
    product_of_experts,
    product_of_experts_backward,
    subset_experts,
    subset_experts_backward,
    updates,
)

OPERATORS = (
    "draw", "energy", "energy_and_grad", "energy_backward", "langevin", "langevin_update", "mala", "mixture_log_prob",
    "mixture_log_prob_backward", "product_of_experts", "product_of_experts_backward", "subset_experts",
    "subset_experts_backward",
)  # fmt: skip
__all__ = [
    "OPERATORS",
    "draw",
    "energy",
    "energy_and_grad",
    "energy_backward",
    "in_one_launch",
    "langevin",
    "langevin_update",
    "mala",
    "mixture_log_prob",
    "mixture_log_prob_backward",
    "product_of_experts",
    "product_of_experts_backward",
    "subset_experts",
    "subset_experts_backward",
    "unsupported",
    "updates",
]


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def unsupported(operator: str, device: torch.device, dtype: torch.dtype, net: MLP | None = None) -> str | None:
    """Why it cannot serve the call, or None if it can; with `net`, whether that fits its kernels as well."""
    if operator not in OPERATORS:
        return f"it has no kernel for '{operator}'"
    if dtype != torch.float32:
        return f"it computes in float32, the call is in {dtype}"
    if device.type != "cuda" and not (device.type == "cpu" and module.available() and module.emulated()):
        return f"it runs on cuda tensors, the call is on {device}"
    if why := module.reason():
        return f"its native module is missing: {why}"
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        if (capability := _capability(index)) < (8, 0):
            return f"it needs a GPU of compute capability 8.0 or above, {device} has {'.'.join(map(str, capability))}"
    if net is not None and operator in ("langevin", "mala"):
        return too_large(net, device, operator == "mala")
    return None


def in_one_launch(net: MLP, device: torch.device) -> bool:
    """Whether all steps of this network's chains are one launch; this backend has no other chains."""
    return True
