"""Networks for tests of energies: random ones, in float64, and with their sums in another order."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from mmebm.kernels.reference import MLP


def network(dim: int, hidden: tuple[int, ...], gain: float = 1.0, **options: Any) -> MLP:
    """Normal weights, the last times `gain`; silu, not bounded, unless `options` say otherwise."""
    sizes = [dim, *hidden, 1]
    weights = [torch.randn(n, m) / m**0.5 for m, n in itertools.pairwise(sizes)]
    weights[-1] *= gain
    return MLP(weights, [0.3 * torch.randn(n) for n in sizes[1:]], "silu", 0.07, None)._replace(**options)


def double(net: MLP) -> MLP:
    return net._replace(weights=[w.double() for w in net.weights], biases=[b.double() for b in net.biases])


def reordered(net: MLP) -> MLP:
    """The same function with its hidden units in another order, so that sums round otherwise."""
    weights, biases = list(net.weights), list(net.biases)
    for layer in range(len(weights) - 1):
        order = torch.randperm(len(weights[layer]))
        weights[layer], biases[layer] = weights[layer][order], biases[layer][order]
        weights[layer + 1] = weights[layer + 1][:, order]
    return net._replace(weights=weights, biases=biases)
