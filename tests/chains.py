"""Chains by the operators, and how a backend's are compared with the float64 reference."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from mmebm.kernels import ops

FREE: dict[str, Any] = {"reference": "none", "bound": None, "grad_clip": None, "clamp": (None, None)}
HOLDS = [
    {},
    {"reference": "normal"},
    {"reference": "laplace"},
    {"bound": 4.0},
    {"grad_clip": 0.5},
    {"reference": "normal", "clamp": (-2.1, 2.0)},
    {"clamp": (None, 1.9)},
    {"reference": "laplace", "bound": 3.0, "grad_clip": 0.25, "clamp": (-2.0, None)},
    {"reference": "normal", "bound": 2.0, "grad_clip": 0.6, "clamp": (-2.2, 2.2)},
]
Parts = tuple[list[Tensor], list[Tensor]]


def network(dim: int, hidden: tuple[int, ...] = (24, 16), gain: float = 8.0) -> Parts:
    sizes = [dim, *hidden, 1]
    weights = [torch.randn(n, m) / m**0.5 for m, n in itertools.pairwise(sizes)]
    weights[-1] *= gain / 4.0
    return weights, [0.3 * torch.randn(n) for n in sizes[1:]]


def stream(seed: int = 7, offset: int = 3, first: int = 5) -> Tensor:
    return torch.tensor([seed, offset, first])


def schedule(steps: int) -> Tensor:
    """A different (a, b, t) in every step; a is not b^2 / 2."""
    k = torch.arange(steps, dtype=torch.float32)
    return torch.stack((0.05 + 0.05 * (k % 3), 0.4 + 0.1 * (k % 4), 1.5 - k / max(1, steps)), dim=1)


def run(
    operator: str,
    z: Tensor,
    net: Parts,
    table: Tensor,
    backend: str,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[Tensor, ...]:
    options = FREE | {"reference_scale": torch.linspace(0.8, 1.6, z.shape[1])} | options
    rng = options.pop("rng", stream())
    options["reference_scale"] = options["reference_scale"].to(dtype)
    weights, biases = ([p.to(dtype) for p in parts] for parts in net)
    return getattr(ops, operator)(z.to(dtype), weights, biases, table, rng, backend=backend, **options)


def reordered(net: Parts) -> Parts:
    """The same function with its hidden units in another order, so that sums round otherwise."""
    weights, biases = [list(parts) for parts in net]
    for layer in range(len(weights) - 1):
        order = torch.randperm(len(weights[layer]))
        weights[layer], biases[layer] = weights[layer][order], biases[layer][order]
        weights[layer + 1] = weights[layer + 1][:, order]
    return weights, biases


def compare(backend: str, operator: str, z: Tensor, net: Parts, table: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """A backend's chain loses at most twice what the reference loses in float32, in every output; returns the exact.

    Few numbers may lose little by luck: the reference has three more orders of its sums to lose in.
    """
    got = run(operator, z, net, table, backend, **options)
    nets = [net, *(reordered(net) for _ in range(3))]
    plain = [run(operator, z, each, table, "reference", **options) for each in nets]
    exact = run(operator, z, net, table, "reference", torch.float64, **options)
    if operator == "mala":
        assert all(torch.equal(p[6], exact[6].float()) for p in plain), "a tie decides: choose another seed"
    for i, name in enumerate(exact._fields):  # type: ignore[attr-defined]
        g, e = got[i], exact[i]
        assert g.shape == e.shape and g.dtype == torch.float32, name
        lost = max((p[i] - e).norm() for p in plain)
        assert (g - e).norm() <= 2.0 * max(lost, 2.0**-24 * e.norm()), name  # the latter: stored in float32
    return exact
