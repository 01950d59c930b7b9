"""Bootstrap intervals of means over rows."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bootstrap_interval"]

RESAMPLES = 1_000
_CHUNK = 1 << 22  # draws at once


def bootstrap_interval(values: Tensor, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of the mean of `values` [N] under 1,000 resamplings of the rows with replacement.

    What belongs to one row (its targets, its subsets) is to be averaged before, so that it is drawn together.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if values.dim() != 1 or not len(values):
        raise ValueError(f"values: expected [N] with N > 0, got {list(values.shape)}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a number in (0, 1), got {level}")
    values = values.detach().double().cpu()
    generator = torch.Generator().manual_seed(seed)
    rows = len(values)
    means = [
        values[torch.randint(rows, (count, rows), generator=generator)].mean(1)
        for count in _chunks(RESAMPLES, max(1, _CHUNK // rows))
    ]
    tail = 0.5 * (1.0 - level)
    low, high = torch.quantile(torch.cat(means), torch.tensor([tail, 1.0 - tail], dtype=torch.float64)).tolist()
    return low, high


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - done) for done in range(0, total, size)]
