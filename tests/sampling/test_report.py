"""The report: its numbers, and every warning where it belongs and nowhere else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mmebm.sampling import report
from mmebm.sampling.diagnostics import effective_sample_size, mcse, rhat
from mmebm.sampling.report import SamplerReport, Summary, plot_energy, summarise

CHAINS, DRAWS = 16, 400
MESSAGES = {
    "lost": "chains that are not finite",
    "stuck": "chains that never moved",
    "drift": "the energy has not reached its law",
    "acceptance": "mean acceptance is",
    "rhat": "R-hat is above 1.01",
    "bulk": "bulk ESS is below 400",
    "tail": "tail ESS is below 400",
    "unknown": "R-hat or ESS is not known",
    "few": "say nothing of convergence",
}


def good(*shape: int, chains: int = CHAINS, draws: int = DRAWS, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(chains, draws, *shape)


def energy(draws: Tensor) -> Tensor:
    return draws.reshape(*draws.shape[:2], -1).square().sum(2) / 2


def warned(summary: SamplerReport) -> set[str]:
    """Which warnings were given; every one is known, and given once."""
    kinds = [name for words in summary.warnings for name, start in MESSAGES.items() if start in words]
    assert len(kinds) == len(set(kinds)) == len(summary.warnings)
    return set(kinds)


def words(summary: SamplerReport, kind: str) -> str:
    (found,) = (w for w in summary.warnings if MESSAGES[kind] in w)
    return found


# Numbers -------------------------------------------------------------------------------------------------------------


def test_every_field_is_what_it_says() -> None:
    x = good(3, 2)
    got = summarise(x, energies=energy(x))
    assert got.energy is not None
    for summary, draws in ((got, x), (got.energy, energy(x))):
        flat = draws.double().flatten(0, 1).numpy()
        expected = {
            "mean": flat.mean(0),
            "sd": flat.std(0, ddof=1),
            "mcse_mean": mcse(draws),
            "q5": np.quantile(flat, 0.05, axis=0),
            "q50": np.quantile(flat, 0.5, axis=0),
            "q95": np.quantile(flat, 0.95, axis=0),
            "ess_bulk": effective_sample_size(draws, "bulk"),
            "ess_tail": effective_sample_size(draws, "tail"),
            "rhat": rhat(draws),
        }
        assert set(expected) == set(Summary.__dataclass_fields__)
        for name, value in expected.items():
            field = getattr(summary, name)
            assert field.shape == draws.shape[2:] and field.dtype == torch.float64, name
            np.testing.assert_allclose(field.numpy(), np.asarray(value), rtol=1e-12, atol=1e-15, err_msg=name)
    assert (got.chains, got.draws, got.non_finite, got.acceptance) == (CHAINS, DRAWS, 0, None)


def test_names() -> None:
    assert summarise(good()).names == ("z",)
    assert summarise(good(2)).names == ("z[0]", "z[1]")
    assert summarise(good(2, 2)).names == ("z[0, 0]", "z[0, 1]", "z[1, 0]", "z[1, 1]")
    assert summarise(good(2), names=["a", "b"]).names == ("a", "b")


def test_gradients_and_precisions_are_no_matter() -> None:
    x = good(2).half()
    assert torch.equal(summarise(x.clone().requires_grad_()).mean, summarise(x.double()).mean)


# Warnings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (4,), (3, 2)])
def test_independent_draws_raise_none(shape: tuple[int, ...]) -> None:
    x = good(*shape)
    got = summarise(x, energies=energy(x), acceptance=torch.full((CHAINS,), 0.57), non_finite=0)
    assert got.warnings == () and "warning" not in str(got)


def test_rhat_names_the_worst() -> None:
    x = good(5)
    x[0, :, 1] += 0.7
    x[3, :, 3] += 2.0
    got = summarise(x)
    assert "rhat" in warned(got)
    assert f"for 2 of 5 rows, worst {float(got.rhat[3]):.3f} (z[3])" in words(got, "rhat")
    assert "(energy)" in words(summarise(good(5), energies=x[..., 3]), "rhat")


def test_rhat_of_short_chains_is_explained() -> None:
    """AR(1) with tau = 3, in its law: 1 + (tau - 1) / (2 n) is 1.04 for halves of 25 draws, 1.0025 for 400."""
    for draws, expected in ((50, {"rhat"}), (800, set())):
        x = good(2, chains=200, draws=draws)
        for t in range(1, draws):
            x[:, t] = 0.5 * x[:, t - 1] + math.sqrt(0.75) * x[:, t]
        got = summarise(x)
        assert warned(got) == expected
        if expected:
            each = float(got.ess_bulk[got.rhat.argmax()]) / 400
            assert f"half a chain has {each:.2g} effective draws" in words(got, "rhat")


def test_rhat_of_chains_of_another_scale_is_no_matter_of_length() -> None:
    x = good(2)
    x[:8, :, 1] *= 3.0  # the bulk ESS does not mind
    assert "chains differ, by their place or their scale" in words(summarise(x), "rhat")


@pytest.mark.parametrize(("chains", "draws"), [(4, 400), (200, 20)])
def test_few_effective_draws(chains: int, draws: int) -> None:
    """The rule is the total: 200 short chains of independent draws are fine, 4 slow chains are not."""
    x = good(2, chains=chains, draws=draws)
    assert not warned(summarise(x)) & {"bulk", "tail"}
    x[..., 1] = x[:, ::10, 1].repeat_interleave(10, dim=1)  # a tenth of the draws are new
    got = summarise(x)
    for kind, ess in (("bulk", got.ess_bulk), ("tail", got.ess_tail)):
        assert (kind in warned(got)) == bool((ess < 400).any())
    if chains == 4:
        assert f"for 1 of 2 rows, worst {float(got.ess_bulk[1]):.0f} (z[1])" in words(got, "bulk")
        assert f"worst {float(got.ess_tail[1]):.0f} (z[1])" in words(got, "tail")


@pytest.mark.parametrize(("value", "side"), [(0.1, "below 0.2"), (0.2, ""), (0.95, ""), (0.99, "above 0.95")])
def test_acceptance(value: float, side: str) -> None:
    got = summarise(good(2), acceptance=torch.full((CHAINS,), value, dtype=torch.float64))
    assert warned(got) == ({"acceptance"} if side else set())
    assert got.acceptance == pytest.approx(value)
    if side:
        assert side in words(got, "acceptance")
        assert ("smaller steps" if value < 0.5 else "larger steps") in words(got, "acceptance")


def test_acceptance_is_the_mean_over_the_chains_that_are_left() -> None:
    x = good(2)
    x[0, 3], x[1, 3] = math.nan, math.nan
    acceptance = torch.linspace(0.0, 1.0, CHAINS, dtype=torch.float64)
    acceptance[0] = math.nan
    got = summarise(x, acceptance=acceptance)
    assert got.acceptance == pytest.approx(float(acceptance[2:].mean()))


def test_lost_chains_are_named_and_left_out() -> None:
    x = good(3)
    expected = summarise(x[[i for i in range(CHAINS) if i not in (2, 7, 11)]])
    x[2, 5, 1], x[7] = math.nan, math.inf
    mask = torch.zeros(CHAINS, dtype=torch.bool)
    mask[11] = True
    got = summarise(x, non_finite=mask)
    assert warned(got) == {"lost"} and got.non_finite == 3 and got.chains == CHAINS
    assert "not finite: 3 (number 2, 7, 11)" in words(got, "lost")
    assert torch.equal(got.mean, expected.mean) and torch.equal(got.rhat, expected.rhat)


def test_a_lost_energy_is_a_lost_chain() -> None:
    x = good(2)
    e = energy(x)
    e[4, 9] = math.inf
    got = summarise(x, energies=e)
    assert got.non_finite == 1 and "(number 4)" in words(got, "lost")
    assert got.energy is not None and got.energy.mean.isfinite() and got.mean.isfinite().all()


def test_lost_chains_that_are_not_among_the_draws_are_counted() -> None:
    got = summarise(good(2), non_finite=5)
    assert got.non_finite == 5 and "not finite: 5; left out" in words(got, "lost")
    x = good(2)
    x[:9, 0] = math.nan
    got = summarise(x, non_finite=3)
    assert got.non_finite == 9 and "not finite: 9 (number 0, 1, 2, 3, 4, ..)" in words(got, "lost")


def test_nothing_is_left() -> None:
    x = torch.full((3, 50, 2), math.nan)
    got = summarise(x, energies=energy(x), acceptance=torch.full((3,), math.nan))
    assert warned(got) == {"lost"} and "none is left" in words(got, "lost")
    assert got.mean.isnan().all() and "nan" in str(got)


def test_stuck_chains_are_named_by_their_number() -> None:
    x = good(2)
    x[1] = math.nan
    x[5] = x[5, :1]
    x[6, :, 0] = 0.25  # the other coordinate moves
    got = summarise(x)
    assert {"lost", "stuck"} <= warned(got)
    assert "never moved: 1 of 15 (number 5)" in words(got, "stuck")
    assert "stuck" not in warned(summarise(good(2, draws=1)))


def test_constant_coordinates_are_said_to_be_unknown() -> None:
    x = good(4)
    x[..., 2] = 0.1
    x[..., 3] = 0.1
    x[5, 9, 3] = -2.0  # R-hat and bulk ESS can be computed, but both quantiles are the largest value
    got = summarise(x)
    assert warned(got) == {"unknown"} and got.ess_bulk[3].isfinite()
    assert "for 2 of 4 rows (z[2], z[3])" in words(got, "unknown")


@pytest.mark.parametrize("draws", [1, 3])
def test_too_few_draws(draws: int) -> None:
    got = summarise(good(2, draws=draws))
    assert warned(got) == {"few"}
    assert got.mean.isfinite().all() and got.rhat.isnan().all()
    assert warned(summarise(good(2, draws=4))) <= {"rhat", "bulk", "tail"}


def test_one_draw_in_all_has_no_spread() -> None:
    got = summarise(torch.ones(1, 1, 2))
    assert got.mean.tolist() == [1.0, 1.0] and got.sd.isnan().all()


# The drift of the energy ---------------------------------------------------------------------------------------------


def test_a_falling_energy_is_caught_in_either_direction() -> None:
    x = good(2)
    for slope in (-1.0, 1.0):
        e = energy(x) + slope * torch.linspace(0, 1, DRAWS)
        got = summarise(x, energies=e)
        assert "drift" in warned(got)
        first, second = e[:, : DRAWS // 2].double().mean(1), e[:, DRAWS // 2 :].double().mean(1)
        said = f"{float(first.mean()):.4g} in the first half of the draws, {float(second.mean()):.4g} in the second"
        assert said in words(got, "drift")
        t = float(stats.ttest_rel(second, first).statistic)
        assert f"second, {report._normal_deviate(abs(t), CHAINS - 1):.1f} standard errors" in words(got, "drift")


def test_slow_chains_in_their_law_do_not_drift() -> None:
    """100 runs of 16 chains with tau a third of their length: who takes draws for independent cries wolf."""
    torch.manual_seed(1)
    rho = 0.985
    e = torch.randn(100, 16, DRAWS)
    for t in range(1, DRAWS):
        e[..., t] = rho * e[..., t - 1] + math.sqrt(1 - rho * rho) * e[..., t]
    assert not any(report._drift_words(run) for run in e)
    naive = (e[..., DRAWS // 2 :].mean((1, 2)) - e[..., : DRAWS // 2].mean((1, 2))).abs() * math.sqrt(16 * DRAWS / 4)
    assert (naive > 4).float().mean() > 0.1


def test_halves_that_differ_by_no_error_at_all() -> None:
    flat = torch.ones(8, 10)
    assert report._drift_words(flat) == []
    assert "inf standard errors" in report._drift_words(torch.cat((flat, 2 * flat), dim=1))[0]


@pytest.mark.parametrize("shape", [(1, 100), (8, 1)])
def test_a_drift_needs_two_chains_and_two_draws(shape: tuple[int, int]) -> None:
    assert report._drift_words(torch.arange(100.0)[: shape[0] * shape[1]].reshape(shape)) == []


@pytest.mark.parametrize("freedom", [3, 7, 15, 100])
def test_student_becomes_normal(freedom: int) -> None:
    """Wallace's deviate is low by 3% at most with 3 degrees of freedom, by 1% with more: no more false alarms."""
    for z in (2.0, 4.0):
        t = float(stats.t.isf(stats.norm.sf(z), freedom))
        assert 1 - (0.03 if freedom == 3 else 0.01) < report._normal_deviate(t, freedom) / z < 1.001


# Print ---------------------------------------------------------------------------------------------------------------


def table(text: str) -> list[str]:
    return [line for line in text.splitlines()[1:] if not line.startswith("warning")]


def test_the_table_is_aligned_and_warnings_follow() -> None:
    x = good(3)
    x[0, :, 1] += 300.0
    got = summarise(x, energies=energy(x), acceptance=torch.full((CHAINS,), 0.5), names=["a", "a longer name", "c"])
    lines = str(got).splitlines()
    assert lines[0] == "chains 16, draws 400 each, acceptance 0.50"
    rows = table(str(got))
    assert len({len(row) for row in rows}) == 1
    assert rows[0].split() == list(Summary.__dataclass_fields__)
    assert [re.split(r"  +", row)[0] for row in rows[1:]] == ["a", "a longer name", "c", "energy"]
    a = rows[1].split()[1:]
    assert a[0] == f"{float(got.mean[0]):.4g}" and a[6] == f"{float(got.ess_bulk[0]):.0f}"
    assert a[8] == f"{float(got.rhat[0]):.3f}"
    assert lines[-len(got.warnings) :] == [f"warning: {w}" for w in got.warnings]


def test_of_many_coordinates_the_worst_are_shown() -> None:
    x = good(20)
    for i, j in enumerate((3, 19, 11)):
        x[0, :, j] += 3.0 - i
    x[..., 7] = 1.0  # NaN is worse than any
    text = str(summarise(x, energies=energy(good(20))))
    assert "the 8 of 20 coordinates with the largest R-hat" in text.splitlines()[0]
    shown = [row.split()[0] for row in table(text)[1:]]
    assert len(shown) == 9 and shown[:4] == ["z[7]", "z[3]", "z[19]", "z[11]"] and shown[-1] == "energy"


def test_twelve_coordinates_are_all_shown_in_their_order() -> None:
    text = str(summarise(good(12)))
    assert "largest" not in text
    assert [row.split()[0] for row in table(text)[1:]] == [f"z[{i}]" for i in range(12)]


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: summarise([1.0]), TypeError, "draws: expected a tensor"),
        (lambda: summarise(good(2).int()), TypeError, "draws: expected a floating dtype, got torch.int32"),
        (lambda: summarise(good()[0]), ValueError, r"draws: expected \[chain, draw, ..\].* got shape \[400\]"),
        (lambda: summarise(good(0)), ValueError, r"draws: expected.* coordinate, got shape \[16, 400, 0\]"),
        (lambda: summarise(good(2, draws=0)), ValueError, r"draws: expected.* got shape \[16, 0, 2\]"),
        (lambda: summarise(good(2), energies=good()[:3]), ValueError, r"energies: expected \[16, 400\].* \[3, 400\]"),
        (lambda: summarise(good(2), energies=good().int()), TypeError, "energies: expected a floating tensor"),
        (lambda: summarise(good(2), acceptance=0.5), ValueError, r"acceptance: expected floating \[16\].* got float"),
        (lambda: summarise(good(2), acceptance=torch.ones(3)), ValueError, r"acceptance: expected floating \[16\]"),
        (lambda: summarise(good(2), acceptance=2 * torch.ones(16)), ValueError, r"acceptance: expected values in \[0"),
        (lambda: summarise(good(2), acceptance=torch.full((16,), math.nan)), ValueError, "acceptance: expected values"),
        (lambda: summarise(good(2), non_finite=-1), ValueError, "non_finite: expected a count >= 0 .* got -1"),
        (
            lambda: summarise(good(2), non_finite=torch.ones(16)),
            ValueError,
            r"non_finite: expected .* bool \[16\], got",
        ),
        (lambda: summarise(good(2), names=["a"]), ValueError, "names: expected 2 strings"),
        (lambda: summarise(good(2), names="ab"), ValueError, "names: expected 2 strings"),
        (lambda: plot_energy(good(2)), ValueError, r"energies: expected \[chain, draw\]"),
        (lambda: plot_energy(good(draws=0)), ValueError, r"energies: expected \[chain, draw\], at least one of each"),
        (lambda: plot_energy([1.0]), TypeError, "energies: expected a floating tensor .* got list"),
    ],
)
def test_refusals(call: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


# Figure --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chains", "traces"), [(1, 1), (50, 50), (120, 50)])
def test_traces_mean_and_band(chains: int, traces: int, tmp_path: Path) -> None:
    e = energy(good(2, chains=chains, draws=30)).double()
    path = tmp_path / "new" / "energy.png"
    (axes,) = plot_energy(e, path).axes
    assert path.read_bytes().startswith(b"\x89PNG")
    *lines, mean = axes.lines
    assert len(lines) == traces
    shown = {tuple(line.get_ydata()) for line in lines}
    assert len(shown) == traces and shown <= {tuple(row) for row in e.numpy()}
    np.testing.assert_allclose(mean.get_ydata(), e.mean(0).numpy())
    assert mean.get_xdata().tolist() == list(range(30))
    edges = axes.collections[0].get_paths()[0].vertices
    for t in range(30):
        at = edges[edges[:, 0] == t, 1]
        expected = np.quantile(e[:, t].numpy(), (0.05, 0.95))
        np.testing.assert_allclose((at.min(), at.max()), expected)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("draw", "energy")


@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite_leave_gaps(tmp_path: Path) -> None:
    e = energy(good(2, chains=4, draws=10)).double()
    e[1, 5:] = math.nan
    e[:, 8], e[1, 6] = math.inf, -math.inf
    mean = plot_energy(e, tmp_path / "energy.svg").axes[0].lines[-1].get_ydata()
    expected = [math.nan if t == 8 else float(e[[0, 2, 3] if t >= 5 else [0, 1, 2, 3], t].mean()) for t in range(10)]
    np.testing.assert_allclose(mean, expected)
    assert "<svg" in (tmp_path / "energy.svg").read_text()


def test_no_pyplot_figure_is_left_open() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    plot_energy(energy(good(2, draws=5)))
    assert pyplot.get_fignums() == before
