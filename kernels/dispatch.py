"""Which backend serves a call, and why the others do not."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType

import torch

from . import native, reference
from .reference import MLP

BACKENDS = ("reference", "cpu", "triton", "cuda")
PRECISIONS = ("fp32", "bf16x3", "bf16w2", "tf32", "bf16")

_MODULES = {"reference": reference, "cpu": native}
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}


def _module(backend: str) -> ModuleType:
    """Of a backend that has one; those of GPUs are imported when first asked for."""
    return _MODULES.get(backend) or importlib.import_module(f".{backend}", __package__)


def unsupported(
    backend: str, operator: str, device: torch.device, dtype: torch.dtype, net: MLP | None = None
) -> str | None:
    """Why `backend` cannot serve the call, or None if it can; of a call with a network, whether that fits as well."""
    if backend == "reference":
        return None
    if backend == "cpu":
        if device.type != "cpu":
            return f"it runs on cpu tensors, the call is on {device}"
        if not native.available():
            return f"its native module is missing: {native.reason()}"
        return None if dtype == torch.float32 else f"it computes in float32, the call is in {dtype}"
    if backend in BACKENDS:
        why: str | None = _module(backend).unsupported(operator, device, dtype, net)
        return why
    raise ValueError(f"backend: expected 'auto' or one of {', '.join(BACKENDS)}, got {backend!r}")


def choose(backend: str, operator: str, device: torch.device, dtype: torch.dtype, net: MLP | None = None) -> str:
    """The name of the backend that serves the call. `MMEBM_BACKEND` stands in for "auto"."""
    source = "backend"
    if backend == "auto" and (wanted := os.environ.get("MMEBM_BACKEND", "auto")) != "auto":
        backend, source = wanted, "MMEBM_BACKEND"
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"{source}: expected 'auto' or one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "auto":
        order = _order(operator, device, dtype, net)
        return next(name for name in order if unsupported(name, operator, device, dtype, net) is None)
    if reason := unsupported(backend, operator, device, dtype, net):
        raise ValueError(f"{source}={backend!r} cannot serve mmebm::{operator}: {reason}")
    return backend


def _order(operator: str, device: torch.device, dtype: torch.dtype, net: MLP | None) -> tuple[str, ...]:
    """Backends as "auto" asks them. In bf16, chains that Triton runs in one launch are faster there (docs/gpu.md)."""
    order = _PREFERENCE.get(device.type, ("reference",))
    if "triton" not in order or operator != "langevin" or net is None or net.precision != "bf16":
        return order
    served = unsupported("triton", operator, device, dtype, net) is None
    return ("triton", *order) if served and in_one_launch("triton", net, device) else order


def select(
    backend: str, operator: str, device: torch.device, dtype: torch.dtype = torch.float32, net: MLP | None = None
) -> ModuleType:
    """The module that serves the call."""
    return _module(choose(backend, operator, device, dtype, net))


def in_one_launch(backend: str, net: MLP, device: torch.device) -> bool:
    """Whether the backend's chains of this network are one launch; else they are a loop, worth a CUDA graph."""
    told: Callable[[MLP, torch.device], bool] | None = getattr(_module(backend), "in_one_launch", None)
    return backend != "reference" if told is None else told(net, device)


def precision(requested: str) -> str:
    """The floor a call asks for; "" follows torch.get_float32_matmul_precision()."""
    if requested == "":
        return {"highest": "fp32", "high": "tf32", "medium": "bf16"}[torch.get_float32_matmul_precision()]
    if requested not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)} or None, got {requested!r}")
    return requested
