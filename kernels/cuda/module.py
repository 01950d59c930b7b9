"""The compiled module `_cuda`: whether it is there, and what it was built for."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import torch


@cache
def load() -> tuple[ModuleType | None, str | None]:
    """The module, or why it cannot load; asked for once, so that a failure costs one import."""
    try:
        return importlib.import_module("mmebm.kernels._cuda"), None
    except ImportError as error:
        return None, f"{type(error).__name__}: {error} (it is built where cmake finds nvcc)"


def available() -> bool:
    """Whether it was built; a driver and a device are another matter."""
    return load()[0] is not None


def reason() -> str | None:
    """Why it is not there, None if it is."""
    return load()[1]


def native() -> ModuleType:
    """The module itself."""
    found, why = load()
    if found is None:
        raise RuntimeError(f"the native CUDA kernels cannot be loaded: {why}")
    return found


def build_info() -> dict[str, Any]:
    """Compiler and architectures, and whether kernels are emulated on the host."""
    return dict(native().build_info())


def emulated() -> bool:
    """Whether kernels' bodies run on the host, on CPU tensors: slow, for tests."""
    return bool(native().build_info()["emulated"])


def stream(device: torch.device) -> int:
    """The handle of the current stream; called with `device` current."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
