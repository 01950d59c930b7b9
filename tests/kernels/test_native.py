"""The bridge to csrc: what it draws, and what it says when the compiled module cannot load."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mmebm.kernels import native
from mmebm.kernels.reference import noise

needs_native = pytest.mark.skipif(not native.available(), reason="the native CPU module cannot be loaded")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """No compiled module; yields the imports tried."""
    tried: list[str] = []
    real = importlib.import_module

    def fail(name: str, package: str | None = None) -> Any:
        if not name.endswith("_cpu"):
            return real(name, package)
        tried.append(name)
        raise ImportError("libfoo.so.1: cannot open shared object file")

    native._load.cache_clear()
    monkeypatch.setattr(importlib, "import_module", fail)
    yield tried
    native._load.cache_clear()


def test_a_module_that_cannot_load_says_why_once(broken: list[str]) -> None:
    assert not native.available()
    for _ in range(3):
        assert native.reason() == "ImportError: libfoo.so.1: cannot open shared object file"
    assert len(broken) == 1


def test_a_draw_without_the_module_says_why(broken: list[str]) -> None:
    with pytest.raises(RuntimeError, match=r"native CPU kernels cannot be loaded: ImportError: libfoo\.so\.1"):
        native.draw(torch.tensor([1, 2, 3]), 1, 1, 1, "normal", 0)


@needs_native
def test_a_loaded_module_has_no_reason() -> None:
    assert native.reason() is None
    info = native.build_info()
    assert "-ffp-contract=off" in str(info["flags"])
    assert info["isas"][:1] == ["base"]


@needs_native
@pytest.mark.parametrize("law", ["normal", "laplace"])
@pytest.mark.parametrize("dim", [1, 7, 16, 33])
def test_draw_follows_the_reference(law: str, dim: int, poisoned_empty: None) -> None:
    rng = torch.tensor([-17, 2**48 - 2, 2**32 - 3])
    scales = [None, torch.rand(dim) + 0.5, torch.tensor(0.7).expand(dim), (torch.rand(2 * dim) + 0.5)[::2]]
    for scale in scales:
        got = native.draw(rng, 3, 6, dim, law, 4, scale)
        assert got.shape == (3, 6, dim) and got.dtype == torch.float32
        torch.testing.assert_close(got, noise.draw(rng, 3, 6, dim, law, 4, scale), rtol=4e-7, atol=2e-6)
    assert torch.equal(rng, torch.tensor([-17, 2**48 - 2, 2**32 - 3]))


@needs_native
def test_the_number_of_threads_changes_nothing() -> None:
    rng, threads = torch.tensor([1, 2, 3]), torch.get_num_threads()
    try:
        draws = []
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            draws.append(native.draw(rng, 2, 4000, 20, "normal", 0))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(draws[0], other) for other in draws[1:])
