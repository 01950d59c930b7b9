"""Experts for tests, and how a backend's operators on them are compared with the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmebm.kernels import reference

PRIORS = ("never", "always", "full")


def experts(count: int, rows: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """mu and logvar [M, B, d], and masks [B] of which the first row's is empty; absent experts hold NaN."""
    mu, logvar = torch.randn(count, rows, dim), 1.5 * torch.randn(count, rows, dim)
    present = torch.randint(1 << count, (rows,))
    present[0] = 0
    if rows > 1:
        present[1] = (1 << count) - 1
    absent = (present >> torch.arange(count).unsqueeze(1) & 1) == 0
    mu[absent] = logvar[absent] = float("nan")
    return mu, logvar, present


def no_worse(found: Any, plain: list[Any], exact: Any) -> None:
    """At most twice what the reference loses in float32, its worst order of summation or its storing of the result."""
    for i, (got, right) in enumerate(zip(found, exact, strict=True)):
        assert got.dtype == torch.float32 and got.shape == right.shape, i
        assert torch.isfinite(got).all(), i
        lost = max(2.0**-24 * float(right.norm()), *(float((other[i] - right).norm()) for other in plain))
        assert (got - right).norm() <= 2.0 * lost, i


def doubles(*args: Any) -> list[Any]:
    return [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]


def ordered(name: str, order: Tensor, *args: Any) -> list[Tensor]:
    """The reference's outputs, with dimensions in another order on the way."""
    dim = len(order)
    moved = [a[..., order] if isinstance(a, Tensor) and a.dim() > 1 and a.shape[-1] == dim else a for a in args]
    out = getattr(reference, name)(*moved)
    back = order.argsort()
    return [
        t[..., back] if t.dim() > 1 and t.shape[-1] == dim else t for t in ([out] if isinstance(out, Tensor) else out)
    ]


def compare(name: str, module: Any, dim: int, *args: Any) -> Any:
    orders = [torch.arange(dim), *(torch.randperm(dim) for _ in range(3))]
    plain, exact = [ordered(name, order, *args) for order in orders], getattr(reference, name)(*doubles(*args))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmebm.kernels.reference.experts._SUBSET_VALUES", 1)  # what comes of subsets is added in a row
        plain.append(ordered(name, orders[0], *args))
    got = getattr(module, name)(*args)
    alone = isinstance(got, Tensor)
    no_worse([got] if alone else got, plain, [exact] if alone else exact)
    return got
