"""How CUDA kernels run without a GPU: their bodies, and the Python that calls them, on the host."""

from __future__ import annotations

import shutil
from types import ModuleType

import pytest

from mmebm.kernels.cuda import module

from .emulated import build, load


@pytest.fixture(scope="session")
def _emulated_module() -> ModuleType:
    if shutil.which("g++") is None:
        pytest.skip("no g++ found")
    return load(build())


@pytest.fixture
def emulated(_emulated_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Backend cuda serves CPU tensors: each kernel's body runs on the host, block after block."""
    monkeypatch.setattr(module, "load", lambda: (_emulated_module, None))
    return _emulated_module
