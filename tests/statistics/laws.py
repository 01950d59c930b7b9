"""p-values, the one threshold that all of them meet, and seeds.

A statistical comparison is a p-value given to `judge`. A right program falls below SIGNIFICANCE in one of 10^9
comparisons; conftest.py lets a session make at most MOST_COMPARISONS, so that with fresh seeds it fails by chance less
often than once in 10^6 sessions, whatever the comparisons share (the union bound). Where a law is asymptotic, samples
are large enough for its tail at 10^-9 to be right to a factor of two. MMEBM_TEST_SEED shifts every seed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import pytest
import scipy.stats
import torch
from torch import Tensor

SIGNIFICANCE = 1e-9
MOST_COMPARISONS = 1000
SHIFT = int(os.environ.get("MMEBM_TEST_SEED", "0"))

made: list[str] = []  # the comparisons of this session


def judge(p: float | Tensor, what: str) -> None:
    """Fails the test where p, or one of several, is below SIGNIFICANCE or NaN. Each p is one comparison."""
    values = torch.as_tensor(p, dtype=torch.float64).flatten()
    made.extend([what] * len(values))
    if not bool((values >= SIGNIFICANCE).all()):
        pytest.fail(f"{what}: p = {values.tolist()}, expected at least {SIGNIFICANCE}", pytrace=False)


def rejects(p: float | Tensor) -> bool:
    """Whether one comparison would fail: what a negative control must do. Not counted."""
    return bool((torch.as_tensor(p, dtype=torch.float64) < SIGNIFICANCE).any())


def seed(number: int) -> int:
    """Number `number`, less than 2^20, of this session's seeds; sessions share none."""
    return (SHIFT << 20) + number


def stream(number: int, offset: int = 0, first: int = 0) -> Tensor:
    """rng int64 [3] = (seed, offset, first chain)."""
    return torch.tensor([seed(number), offset, first])


# p-values ------------------------------------------------------------------------------------------------------------


def normal(z: float | Tensor) -> Tensor:
    """Of values that are standard normal if all is well, either sign being wrong."""
    return torch.special.erfc(torch.as_tensor(z, dtype=torch.float64).abs() / math.sqrt(2.0))


def mean(values: Tensor, expected: float = 0.0, deviation: float | None = None) -> Tensor:
    """Of independent values [n, ..] with this mean; their standard deviation is estimated where it is not given."""
    values = values.double()
    spread = values.std(0) if deviation is None else deviation
    return normal((values.mean(0) - expected) * math.sqrt(len(values)) / spread)


def same_mean(x: Tensor, y: Tensor) -> Tensor:
    """Of two samples [n, ..] and [m, ..], independent of each other."""
    x, y = x.double(), y.double()
    return normal((x.mean(0) - y.mean(0)) / (x.var(0) / len(x) + y.var(0) / len(y)).sqrt())


def squares(u: Tensor) -> float:
    """Of independent standard normals: their sum of squares."""
    law, value = scipy.stats.chi2(u.numel()), float(u.double().square().sum())
    return 2.0 * min(float(law.cdf(value)), float(law.sf(value)))


def counts(observed: Tensor, probabilities: Tensor) -> float:
    """Pearson's chi-square; cells that expect fewer than 10 are taken together."""
    observed, expected = observed.double().flatten(), probabilities.double().flatten() * float(observed.sum())
    few = expected < 10.0
    if few.any():
        observed = torch.cat((observed[~few], observed[few].sum().view(1)))
        expected = torch.cat((expected[~few], expected[few].sum().view(1)))
    if expected[-1] < 10.0:  # even together
        observed[-2] += observed[-1]
        expected[-2] += expected[-1]
        observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected).square() / expected).sum()
    return float(scipy.stats.chi2.sf(float(statistic), len(observed) - 1))


def same_counts(x: Tensor, y: Tensor) -> float:
    """Of two samples of category counts [n]: homogeneity."""
    table = torch.stack((x, y)).double()
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    return float(scipy.stats.chi2.sf(float(((table - expected).square() / expected).sum()), table.shape[1] - 1))


def rare(count: int | Tensor, expected: float) -> float:
    """Of a Poisson count."""
    law, value = scipy.stats.poisson(expected), int(count)
    return 2.0 * min(float(law.cdf(value)), float(law.sf(value - 1)))


def uniform(u: Tensor) -> float:
    """Kolmogorov and Smirnov's, of independent uniforms."""
    ordered = u.double().flatten().sort().values
    n = len(ordered)
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max(float((ordered - ranks[:-1]).max()), float((ranks[1:] - ordered).max()))
    return float(scipy.stats.kstwobign.sf(distance * math.sqrt(n)))


def same_law(x: Tensor, y: Tensor) -> float:
    """Kolmogorov and Smirnov's, of two independent samples of one continuous law."""
    x, y = x.double().flatten().sort().values, y.double().flatten().sort().values
    both = torch.cat((x, y))
    left = torch.searchsorted(x, both, right=True) / len(x)
    right = torch.searchsorted(y, both, right=True) / len(y)
    distance = float((left - right).abs().max())
    return float(scipy.stats.kstwobign.sf(distance * math.sqrt(len(x) * len(y) / (len(x) + len(y)))))


def student(values: Tensor, expected: float | Tensor) -> Tensor:
    """Of few independent, nearly normal values [n, ..], their spread estimated."""
    values, n = values.double(), len(values)
    t = (values.mean(0) - expected) * math.sqrt(n) / values.std(0)
    return torch.as_tensor(2.0 * scipy.stats.t.sf(t.abs().numpy(), n - 1))


def product(x: Tensor, y: Tensor) -> Tensor:
    """Of pairs from laws of mean 0 and variance 1: that they are uncorrelated."""
    return normal((x.double() * y.double()).mean() * math.sqrt(x.numel()))


def histogram(cells: Tensor, shape: Sequence[int]) -> Tensor:
    """Counts of cell indices [n, len(shape)], or [n] for one axis."""
    flat = torch.zeros(len(cells), dtype=torch.int64)
    for axis, size in enumerate(shape):
        flat = flat * size + cells.reshape(len(cells), -1)[:, axis]
    return torch.bincount(flat, minlength=math.prod(shape))
