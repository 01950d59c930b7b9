"""Schedules by hand, and the tables that conventions make of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import mmebm
from mmebm import physics, short_run, welling_teh
from mmebm.sampling.schedules import cosine, cyclical, geometric, linear, polynomial


def test_schedules_by_hand() -> None:
    assert linear(1.0, 3.0, 5) == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0])
    assert geometric(8.0, 1.0, 4) == pytest.approx([8.0, 4.0, 2.0, 1.0])
    assert cosine(4.0, 2.0, 3) == pytest.approx([4.0, 3.0, 2.0])
    assert cosine(4.0, 2.0, 5)[1] == pytest.approx(3.0 + math.cos(math.pi / 4.0))
    assert polynomial(0.3, 3, power=0.5, delay=2.0) == pytest.approx([0.3, 0.3 / 1.5**0.5, 0.3 / 2.0**0.5])
    assert cyclical(2.0, 8, 2) == pytest.approx([2.0, 1.0 + 0.5**0.5, 1.0, 1.0 - 0.5**0.5] * 2)
    assert cyclical(2.0, 40, 1, floor=0.2)[-1] == pytest.approx(0.4)


@pytest.mark.parametrize("steps", [0, 1])
def test_short_schedules(steps: int) -> None:
    for made in (linear(2.0, 1.0, steps), geometric(2.0, 1.0, steps), cosine(2.0, 1.0, steps), polynomial(2.0, steps)):
        assert made == [2.0] * steps


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear(1.0, 2.0, -1), "steps: expected an integer >= 0, got -1"),
        (lambda: geometric(0.0, 2.0, 3), "first, last: expected numbers > 0, got 0.0, 2.0"),
        (lambda: polynomial(1.0, 3, delay=0.0), "delay: expected a number > 0, got 0.0"),
        (lambda: cyclical(1.0, 3, 0), "cycles: expected an integer >= 1, got 0"),
    ],
)
def test_impossible_schedules_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}"):
        call()


def test_tables_of_t_and_temperature() -> None:
    table = short_run(0.4).coefficients(3, t=[0.0, 0.5, 1.0])
    torch.testing.assert_close(table, torch.tensor([[0.08, 0.4, 0.0], [0.08, 0.4, 0.5], [0.08, 0.4, 1.0]]))
    hot = physics(0.1).coefficients(2, temperature=4.0)
    torch.testing.assert_close(hot, torch.tensor([[0.1, 2.0 * 0.2**0.5, 1.0]] * 2))
    cooled = welling_teh([0.2, 0.1]).coefficients(2, temperature=torch.tensor([9.0, 1.0]), t=torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(cooled, torch.tensor([[0.1, 3.0 * 0.2**0.5, 0.5], [0.05, 0.1**0.5, 1.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t": [0.0, 1.0]}, "t, temperature: expected 1 or steps=3 values"),
        ({"t": [0.0, math.nan, 1.0]}, "t: expected finite numbers, got"),
        ({"temperature": 0.0}, "temperature: expected finite numbers > 0, got 0.0"),
        ({"temperature": [1.0, 2.0]}, "t, temperature: expected 1 or steps=3 values"),
    ],
)
def test_tables_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}"):
        short_run(0.1).coefficients(3, **options)


def test_temperature_is_that_of_the_target() -> None:
    """U = z^2 / 2 under a normal reference, no energy: the stationary variance is T / (1 - s^2 / 4)."""
    flat = torch.nn.Sequential(torch.nn.Linear(8, 1))
    torch.nn.init.zeros_(flat[0].weight)
    table = short_run(0.6).coefficients(80, temperature=2.5)
    z = mmebm.langevin(flat, torch.zeros(8192, 8), steps=80, coefficients=table, reference="normal", seed=0)
    expected = 2.5 / (1.0 - 0.09) * (1.0 - (1.0 - 0.18) ** 160)
    assert abs(float(z.square().mean()) / expected - 1.0) < 5.0 * math.sqrt(2.0 / z.numel())


def test_the_table_of_one_step_size_is_not_written_into() -> None:
    """It is kept between calls; what info gives out is a copy."""
    options: dict[str, Any] = {"steps": 4, "step_size": 0.3, "seed": 1, "return_info": True}
    z0 = torch.zeros(3, 2)
    end, info = mmebm.langevin(lambda z: z.square().sum(1), z0, **options)
    info.coefficients.zero_()
    assert torch.equal(mmebm.langevin(lambda z: z.square().sum(1), z0, **options)[0], end)
