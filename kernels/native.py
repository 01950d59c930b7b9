"""Calls the compiled kernels of csrc through data pointers. Arguments arrive validated by `ops`."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_LAWS = {"normal": 0, "laplace": 1}


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The module, or why it cannot load; asked for once, so that a failure costs one import."""
    try:
        return importlib.import_module("._cpu", __package__), None
    except ImportError as error:
        return None, f"{type(error).__name__}: {error}"


def available() -> bool:
    """Whether the compiled CPU kernels can be called."""
    return _load()[0] is not None


def reason() -> str | None:
    """Why they cannot, None if they can."""
    return _load()[1]


def _cpu() -> ModuleType:
    module, why = _load()
    if module is None:
        raise RuntimeError(f"the native CPU kernels cannot be loaded: {why}")
    return module


def build_info() -> dict[str, Any]:
    """Compiler, flags, OpenMP version and the instruction sets usable here, best last."""
    return dict(_cpu().build_info())


def draw(rng: Tensor, steps: int, rows: int, dim: int, law: str, purpose: int, scale: Tensor | None = None) -> Tensor:
    """Draws float32 [steps, rows, dim] of the law, times scale [dim]; rng: int64 [3] = (seed, offset, first chain)."""
    seed, offset, chain = rng.tolist()
    out = torch.empty(steps, rows, dim, dtype=torch.float32)
    scale = None if scale is None else scale.contiguous()
    address = 0 if scale is None else scale.data_ptr()
    threads = torch.get_num_threads()
    _cpu().draw(out.data_ptr(), address, steps, rows, dim, seed, offset, chain, _LAWS[law], purpose, threads)
    return out
