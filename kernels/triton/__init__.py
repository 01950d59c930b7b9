"""Backend triton: one file per operator. Nothing here imports Triton before a call needs it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from functools import cache
from types import ModuleType
from typing import Any

import torch

from ..reference import MLP

_FILES = {
    "draw": "draw",
    "langevin_update": "update",
    "updates": "update",
    "langevin": "chain",
    "mala": "chain",
    "energy": "energy",
    "energy_and_grad": "energy",
    "energy_backward": "energy",
    "product_of_experts": "product",
    "product_of_experts_backward": "product",
    "subset_experts": "subsets",
    "subset_experts_backward": "subsets",
    "mixture_log_prob": "mixture",
    "mixture_log_prob_backward": "mixture",
}
# Those that take a network, and the file that serves one too large for a program.
_WITH_NETWORK = ("langevin", "mala", "energy", "energy_and_grad", "energy_backward")


class _Operators(ModuleType):
    """An operator comes before a file of its name, whoever imports that file first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _FILES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Operators


def __getattr__(name: str) -> Any:
    """An operator, from its file on its first use."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = getattr(importlib.import_module(f".{_FILES[name]}", __name__), name)
    globals()[name] = function
    return function


@cache
def _present(file: str) -> bool:
    return importlib.util.find_spec(f"{__name__}.{file}") is not None


@cache
def _triton_missing() -> str | None:
    """Why Triton cannot be imported, asked for once, or None if it can."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported: {type(error).__name__}: {error}"
    return None


def _interpreted() -> bool:
    """Whether kernels run on CPU tensors, through Triton's interpreter: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def unsupported(operator: str, device: torch.device, dtype: torch.dtype, net: MLP | None = None) -> str | None:
    """Why it cannot serve the call, or None if it can; with `net`, whether that fits its kernels as well."""
    if operator not in _FILES or not _present(_FILES[operator]):
        return f"it has no kernel for '{operator}'"
    if dtype != torch.float32:
        return f"it computes in float32, the call is in {dtype}"
    if device.type != "cuda" and not (device.type == "cpu" and _interpreted()):
        return f"it runs on cuda tensors, the call is on {device}"
    if why := _triton_missing():
        return why
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        if (capability := _capability(index)) < (8, 0):
            return f"it needs a GPU of compute capability 8.0 or above, {device} has {'.'.join(map(str, capability))}"
    if net is not None and operator in _WITH_NETWORK and not _present("layered"):
        from . import launch

        return launch.too_large(net, device)
    return None


def in_one_launch(net: MLP, device: torch.device) -> bool:
    """Whether all steps of this network's chains are one program; else each is some launches, of layered.py."""
    from . import launch

    return launch.too_large(net, device) is None
