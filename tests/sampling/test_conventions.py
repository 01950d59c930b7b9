"""One number, three conventions, one table of (a, b, t)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmebm import StepSize, physics, short_run, welling_teh


@pytest.mark.parametrize("s", [0.05, 0.4, 1.7])
def test_the_conventions_name_the_same_step(s: float) -> None:
    table = short_run(s).coefficients(3)
    assert torch.equal(table, torch.tensor([[s * s / 2, s, 1.0]]).repeat(3, 1))
    torch.testing.assert_close(physics(s * s / 2).coefficients(3), table)
    torch.testing.assert_close(welling_teh(s * s).coefficients(3), table)


def test_the_same_number_means_different_steps() -> None:
    assert [c(0.4).a[0] for c in (short_run, physics, welling_teh)] == pytest.approx([0.08, 0.4, 0.2])
    assert [c(0.4).b[0] for c in (short_run, physics, welling_teh)] == pytest.approx(
        [0.4, math.sqrt(0.8), math.sqrt(0.4)]
    )


@pytest.mark.parametrize("convention", [short_run, physics, welling_teh])
def test_the_temperature_is_one(convention: Any) -> None:
    assert convention([0.1, 0.4, 2.0]).temperature() == pytest.approx((1.0, 1.0, 1.0))


def test_any_a_and_b_have_a_temperature() -> None:
    assert StepSize("mine", (0.5, 0.0), (2.0, 1.0)).temperature() == (4.0, math.inf)


@pytest.mark.parametrize(
    "sizes", [[0.1, 0.2, 0.3], (0.1, 0.2, 0.3), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)]
)
def test_schedules_give_every_step_its_own(sizes: Any) -> None:
    expected = torch.tensor([[s * s / 2, s, 1.0] for s in (0.1, 0.2, 0.3)])
    assert torch.equal(short_run(sizes).coefficients(3), expected)
    with pytest.raises(ValueError, match="convention: expected 1 or steps=4 values, got 3"):
        short_run(sizes).coefficients(4)


@pytest.mark.parametrize("size", [0.3, torch.tensor(0.3, dtype=torch.float64), [0.3]])
def test_one_value_serves_all_steps(size: Any) -> None:
    assert torch.equal(physics(size).coefficients(2), torch.tensor([[0.3, math.sqrt(0.6), 1.0]] * 2))
    assert physics(size).coefficients(0).shape == (0, 3)


def test_repr_tells_what_will_happen() -> None:
    assert repr(short_run(0.4)) == "short_run(a=0.08, b=0.4, T=1)"
    assert repr(physics(0.08)) == "physics(a=0.08, b=0.4, T=1)"
    assert repr(welling_teh([0.16, 0.1])) == "welling_teh(a=0.08, b=0.4, T=1, ..)"


@pytest.mark.parametrize("bad", [0.0, -0.1, math.nan, math.inf, [], [0.1, 0.0]])
@pytest.mark.parametrize(("convention", "name"), [(short_run, "step_size"), (physics, "eta"), (welling_teh, "eps")])
def test_bad_sizes_are_refused(convention: Any, name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected finite step sizes > 0, got "):
        convention(bad)
