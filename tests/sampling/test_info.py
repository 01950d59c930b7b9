"""What chains tell: trajectories chain first, reports, ArviZ's groups."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mmebm
from mmebm.sampling import rhat

DIM = 3


def quadratic(z: Tensor) -> Tensor:
    return 0.5 * z.square().sum(1)


def recorded(sampler: Any = mmebm.mala, chains: int = 40, steps: int = 200, **options: Any) -> Any:
    z0 = torch.randn(chains, DIM)
    settings = {"step_size": 1.2, "seed": 1, "record_every": 2, "return_info": True} | options
    return sampler(quadratic, z0, steps=steps, **settings)[1]


def test_a_report_is_of_the_recorded_draws() -> None:
    info = recorded()
    report = info.report(discard=10)
    draws = info.trajectory[:, 10:]
    assert (report.chains, report.draws) == (40, 90)
    torch.testing.assert_close(report.mean, draws.double().mean((0, 1)))
    torch.testing.assert_close(report.rhat, rhat(draws))
    assert report.energy is not None
    torch.testing.assert_close(report.energy.mean, info.energy_trajectory[:, 10:].double().mean())
    assert report.acceptance == pytest.approx(float(info.acceptance.mean()))
    assert report.warnings == () and "rhat" in str(report)


def test_an_unadjusted_chain_reports_no_acceptance_and_a_drift_is_warned_of() -> None:
    far = mmebm.langevin(
        quadratic, torch.full((40, DIM), 30.0), steps=60, step_size=0.2, seed=1, record_every=1, return_info=True
    )[1]
    report = far.report()
    assert report.acceptance is None
    assert any("has not reached its law" in words for words in report.warnings)


def test_lost_chains_are_named_in_the_report() -> None:
    z0 = torch.zeros(5, DIM)
    z0[3] = float("nan")
    info = mmebm.langevin(
        quadratic, z0, steps=20, step_size=0.3, seed=1, record_every=1, return_info=True, check="off"
    )[1]
    report = info.report()
    assert report.non_finite == 1 and "(number 3)" in report.warnings[0]


def test_what_is_not_recorded_is_not_reported() -> None:
    info = recorded(record_every=None)
    for ask in (info.report, info.to_dict, info.to_arviz):
        with pytest.raises(ValueError, match=r"^record_every: nothing is recorded"):
            ask()
    for discard in (-1, 100):
        with pytest.raises(ValueError, match=rf"^discard: expected 0 to 99, .*got {discard}"):
            recorded().report(discard=discard)


def test_groups_are_chain_first() -> None:
    info = recorded(steps=20)
    groups = info.to_dict("latent", discard=2)
    z, energy = groups["posterior"]["latent"], groups["sample_stats"]["energy"]
    assert isinstance(z, np.ndarray) and z.shape == (40, 8, DIM) and energy.shape == (40, 8)
    np.testing.assert_array_equal(z[7, 0], info.states[2, 7].numpy())
    np.testing.assert_array_equal(energy[7, 0], info.energies[2, 7].numpy())


@pytest.mark.parametrize("version", ["0.23.4", "1.0.0"])
def test_arviz_is_given_what_its_version_takes(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.x takes groups by keyword, 1.x as one mapping."""
    seen: list[Any] = []

    def from_dict(*args: Any, **groups: Any) -> str:
        seen.append(args[0] if args else groups)
        assert bool(args) == version.startswith("1") and bool(groups) != bool(args)
        return "made"

    monkeypatch.setitem(sys.modules, "arviz", SimpleNamespace(__version__=version, from_dict=from_dict))
    info = recorded(steps=20)
    assert info.to_arviz() == "made"
    assert set(seen[0]) == {"posterior", "sample_stats"}
    np.testing.assert_array_equal(seen[0]["posterior"]["z"], info.trajectory.numpy())


def test_without_arviz_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pip install arviz"):
        recorded(steps=20).to_arviz()
