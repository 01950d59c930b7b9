"""Tier 4: unadjusted chains on Gaussian targets, whose law after K steps is known exactly.

With reference N(0, scale^2) and E = w . z, a normal state of mean m and variance v stays normal: m <- r m - a t w,
v <- r^2 v + b^2, r = 1 - a / scale^2. Of 2^19 values, 1% in the noise's scale is 10 standard errors of the variance.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .laws import judge, mean, product, rejects, squares, stream, uniform
from .targets import REFERENCE_DRAW, Backend, Target, constant, flat, linear

OPERATOR = "langevin"
ROWS, DIM = 16384, 32
SCALE = torch.linspace(0.7, 1.4, DIM)


def starts(backend: Backend, center: float, variance: float) -> Tensor:
    return center + variance**0.5 * backend.draw(stream(50), 1, ROWS, DIM, purpose=REFERENCE_DRAW)[0]


def law_after(table: Tensor, w: Tensor, center: float, variance: float, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [DIM] of the last state."""
    m, v = torch.full((DIM,), center, dtype=torch.float64), torch.full((DIM,), variance, dtype=torch.float64)
    for a, b, t in table.double():
        r = 1.0 - a / scale.double() ** 2
        m, v = r * m - a * t * w.double(), r * r * v + b * b
    return m, v


def check(z: Tensor, m: Tensor | float, v: Tensor | float, what: str) -> None:
    """The rows of z [ROWS, DIM] have this mean and variance in each dimension and are normal together."""
    u = (z.double() - m) / torch.as_tensor(v, dtype=torch.float64).sqrt()
    judge(mean(u.flatten(), 0.0, 1.0), f"{what}: mean")
    judge(squares(u), f"{what}: variance")
    judge(uniform(torch.special.ndtr(u)), f"{what}: distribution function")
    judge(squares(u.mean(0) * ROWS**0.5), f"{what}: mean by dimension")
    judge(squares((u.square().mean(0) - 1.0) * (ROWS / 2.0) ** 0.5), f"{what}: variance by dimension")
    judge(product(u[:, 1:], u[:, :-1]), f"{what}: dimensions")
    judge(product(u[1:], u[:-1]), f"{what}: chains")


def schedule(steps: int) -> Tensor:
    """(a, b, t) that change with every step; large steps, so that 3% in a are seen after one."""
    k = torch.arange(steps, dtype=torch.float32)
    return torch.stack((0.25 - 0.05 * (k % 3), 0.5 + 0.05 * (k % 4), 1.5 - k / (steps + 1)), dim=1)


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_the_law_of_a_normal_reference(steps: int, backend: Backend) -> None:
    table, z = schedule(steps), starts(backend, 2.0, 0.25)
    end = backend.langevin(Target(flat(DIM), "normal", SCALE), z, table, stream(51, offset=steps)).z
    check(end, *law_after(table, torch.zeros(DIM), 2.0, 0.25, SCALE), f"{steps} steps")


@pytest.mark.parametrize("steps", [1, 20])
def test_the_law_of_a_linear_energy(steps: int, backend: Backend) -> None:
    """It shifts the mean, by t of each step, and nothing else."""
    w, table, z = torch.linspace(-2.0, 2.0, DIM), schedule(steps), starts(backend, -1.0, 0.5)
    end = backend.langevin(Target(linear(w), "normal", SCALE), z, table, stream(52, offset=steps)).z
    check(end, *law_after(table, w, -1.0, 0.5, SCALE), f"{steps} steps")


@pytest.mark.parametrize("s", [0.4, 1.0])
def test_the_stationary_variance(s: float, backend: Backend) -> None:
    """1 / (1 - s^2 / 4): the bias of unadjusted chains, which a test must see, that of s = 0.4 as well."""
    variance = 1.0 / (1.0 - s * s / 4.0)
    end = backend.langevin(Target(flat(DIM), "normal"), starts(backend, 0.0, variance), constant(20, s), stream(53)).z
    check(end, 0.0, variance, f"s = {s}")
    assert rejects(squares(end)), "the law without bias must be told apart"
