"""Training on the compiled backend is training on the reference, to rounding."""

from __future__ import annotations

import pytest
import torch

from mmebm.kernels import native
from mmebm.training.energy import fit_energy_prior

pytestmark = pytest.mark.skipif(not native.available(), reason="the native CPU module cannot be loaded")


def curve(backend: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    monkeypatch.setenv("MMEBM_BACKEND", backend)
    torch.manual_seed(3)
    centres = torch.randn(6, 8)
    z = centres[torch.randint(6, (2000,))] + 0.1 * torch.randn(2000, 8)
    logged: list[dict[str, float]] = []
    fit_energy_prior(z, updates=20, batch_size=128, progress=lambda _, values: logged.append(values), log_every=1)
    return logged


def test_twenty_updates_on_cpu_follow_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, reference = curve("cpu", monkeypatch), curve("reference", monkeypatch)
    assert len(cpu) == len(reference) == 20
    for i, (mine, theirs) in enumerate(zip(cpu, reference, strict=True)):
        # Rounding differs by 1e-7 a step, and 20 updates of 20 steps carry it on.
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4), f"update {i}"
    assert abs(reference[-1]["E_gap"] - reference[0]["E_gap"]) > 0.1  # it learned something in between
