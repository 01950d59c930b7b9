"""Tier 1: draws have the law they are named after, and nothing links them, over two million of each."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from .laws import counts, judge, mean, product, rare, stream, uniform
from .targets import REFERENCE_DRAW, Backend

OPERATOR = "draw"
STEPS, ROWS, DIM = 8, 8192, 32
BINS = 1000

each_law = pytest.mark.parametrize("law", ["normal", "laplace"])


def draws(law: str, backend: Backend) -> Tensor:
    """[STEPS, ROWS, DIM], variance 1."""
    x = backend.draw(stream(10), STEPS, ROWS, DIM, law, REFERENCE_DRAW).double()
    return x if law == "normal" else x / math.sqrt(2.0)


def cumulative(x: Tensor, law: str) -> Tensor:
    if law == "normal":
        return torch.special.ndtr(x)
    half = torch.exp(-math.sqrt(2.0) * x.abs()) / 2.0
    return torch.where(x < 0, half, 1.0 - half)


def beyond(x: float, law: str) -> float:
    """P(|X| > x)."""
    return math.erfc(x / math.sqrt(2.0)) if law == "normal" else math.exp(-math.sqrt(2.0) * x)


def test_moments_of_normals(backend: Backend) -> None:
    """The first four, as Hermite polynomials: of mean 0, variance 1, uncorrelated."""
    x = draws("normal", backend).flatten()
    hermite = torch.stack((x, x**2 - 1.0, x**3 - 3.0 * x, x**4 - 6.0 * x**2 + 3.0), 1)
    judge(mean(hermite / torch.tensor([1.0, 2.0, 6.0, 24.0]).sqrt(), 0.0, 1.0), "moments of normals")


def test_moments_of_laplace_draws(backend: Backend) -> None:
    """The sign, and the first four moments of the magnitude, as Laguerre polynomials, for which see above."""
    x = draws("laplace", backend).flatten() * math.sqrt(2.0)
    y = x.abs()
    laguerre = torch.stack((x.sign(), 1.0 - y, y**2 / 2.0 - 2.0 * y + 1.0), 1)
    judge(mean(laguerre, 0.0, 1.0), "moments of Laplace draws")
    # Higher ones of the magnitude have tails too long for a normal law of their means: Legendre's of exp(-|x|).
    u = 2.0 * torch.exp(-y) - 1.0
    legendre = torch.stack((1.5 * u**2 - 0.5, 2.5 * u**3 - 1.5 * u, 4.375 * u**4 - 3.75 * u**2 + 0.375), 1)
    judge(mean(legendre * torch.tensor([5.0, 7.0, 9.0]).sqrt(), 0.0, 1.0), "moments of Laplace draws")


@each_law
def test_equiprobable_bins(law: str, backend: Backend) -> None:
    u = cumulative(draws(law, backend), law).flatten()
    cells = (u * BINS).long().clamp_max(BINS - 1)
    judge(counts(torch.bincount(cells, minlength=BINS), torch.full((BINS,), 1.0 / BINS)), f"{law}: bins")
    judge(uniform(u[::8]), f"{law}: distribution function")


@each_law
def test_tails(law: str, backend: Backend) -> None:
    x = draws(law, backend)
    for edge in (3.0, 4.0, 5.0):
        expected = x.numel() * beyond(edge, law) / 2.0
        judge(rare((x > edge).sum(), expected), f"{law}: above {edge}")
        judge(rare((x < -edge).sum(), expected), f"{law}: below -{edge}")


@each_law
def test_nothing_is_correlated(law: str, backend: Backend) -> None:
    """Over steps, chains and dimensions, at the lags of pairs (1), calls (2) and halves (8): values and magnitudes."""
    x = draws(law, backend)
    folded = 2.0 * cumulative(x.abs(), law) - 1.0  # uniform, as |x| is
    folded = (folded - 0.5) * math.sqrt(12.0)
    for axis, size in enumerate(x.shape):
        for lag in (1, 2, 7 if axis == 0 else 8):
            for name, values in (("values", x), ("magnitudes", folded)):
                pair = values.narrow(axis, 0, size - lag), values.narrow(axis, lag, size - lag)
                judge(product(*pair), f"{law}: {name}, axis {axis}, lag {lag}")


@each_law
def test_pairs_fill_the_square(law: str, backend: Backend) -> None:
    """Two dimensions of one pair, and two of one call, over 32 x 32 equiprobable cells."""
    u = cumulative(draws(law, backend), law).view(-1, DIM)
    cells = (u * 32).long().clamp_max(31)
    for lag, first in ((1, torch.arange(0, DIM, 2)), (8, torch.arange(DIM).view(2, 2, 8)[:, 0].flatten())):
        joint = (32 * cells[:, first] + cells[:, first + lag]).flatten()
        judge(counts(torch.bincount(joint, minlength=1024), torch.full((1024,), 1.0 / 1024)), f"{law}: lag {lag}")
