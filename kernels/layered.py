"""Energies of networks of any size, a few launches a layer, over a backend's kernels for single layers.

Nothing waits for the device and every shape is known beforehand, so that a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .device import on
from .reference import MLP

_ADDED_ROWS = 1024  # at least, of a part of a sum over rows
_ADDED_VALUES = 1 << 22  # at most, of all parts together, in which a weight's gradient has one part at least
_MULTIPLE = 32  # of the rows of a part


class Layers(Protocol):
    """Kernels for a layer. Outputs come as tensors, of no element where they are not asked for; x is [B, fan_in]."""

    def forward(self, x: Tensor, layer: int, net: MLP, value: Tensor, derivative: Tensor) -> None:
        """f(x W^T + b) [B, width] and f' there."""

    def head(self, h: Tensor, net: MLP, g: Tensor | None, energy: Tensor, factor: Tensor) -> None:
        """E [B] from the last hidden layer, bounded, and dE/de, times g [B] where that is given."""

    def backward(
        self, delta: Tensor, layer: int, net: MLP, last: bool, derivative: Tensor | None, factor: Tensor | None,
        out: Tensor,
    ) -> None:  # fmt: skip
        """(delta W) times f' of the layer below [B, fan_in] and a factor [B].

        With `last` delta is f' of the last hidden layer, still to be multiplied by the last weight.
        """

    def outer(
        self, delta: Tensor, x: Tensor, net: MLP, last: bool, factor: Tensor | None, added: int, d_weight: Tensor,
        d_bias: Tensor,
    ) -> None:  # fmt: skip
        """delta^T x [parts, width, fan_in] and the sum of delta [parts, width], each over `added` rows.

        delta [B, width] is still to be multiplied by a factor [B] and, with `last`, by the last weight.
        """


class Evaluated(NamedTuple):
    """Layer inputs h_0..h_{L-1}, f' of hidden layers, as far as asked for; E, and g dE/de, empty where it is 1."""

    inputs: list[Tensor]
    derivatives: list[Tensor]
    energy: Tensor
    factor: Tensor


def evaluate(
    layers: Layers, z: Tensor, net: MLP, energy: bool, derivatives: bool = True, g: Tensor | None = None
) -> Evaluated:
    """On the way forward; of the last hidden layer the value is computed only where something needs it."""
    rows, hidden = len(z), len(net.weights) - 1
    head = energy or g is not None or net.bound is not None or hidden == 0
    inputs, slopes = [z], []
    for layer, weight in enumerate(net.weights[:-1]):
        shape = (rows, len(weight))
        value = z.new_empty(shape if head or layer < hidden - 1 else 0)
        slope = z.new_empty(shape if derivatives else 0)
        layers.forward(inputs[-1], layer, net, value, slope)
        inputs.append(value)
        slopes.append(slope)
    if not head:
        return Evaluated(inputs, slopes, z.new_empty(0), z.new_empty(0))
    energies, factor = z.new_empty(rows), z.new_empty(rows)
    layers.head(inputs[-1], net, g, energies, factor)
    scaled = g is not None or net.bound is not None or hidden == 0
    return Evaluated(inputs, slopes, energies, factor if scaled else z.new_empty(0))


class Last(NamedTuple):
    """What dE/dz is made of: dE/da of the first hidden layer, as `Layers.backward` takes it for layer 0."""

    delta: Tensor
    last: bool
    factor: Tensor | None


def deltas(layers: Layers, at: Evaluated, net: MLP) -> tuple[list[Tensor], Last]:
    """dE/da of the hidden layers but the last, deepest first and without the factor; and what dE/dz is made of."""
    hidden, rows = len(net.weights) - 1, len(at.inputs[0])
    found = at.derivatives[-1:] or [at.factor.unsqueeze(1)]
    for layer in range(hidden - 1, 0, -1):
        out = found[-1].new_empty(rows, net.weights[layer].shape[1])
        layers.backward(found[-1], layer, net, layer == hidden - 1, at.derivatives[layer - 1], None, out)
        found.append(out)
    return found[1:], Last(found[-1], hidden == 1, at.factor if hidden and len(at.factor) else None)


def back(layers: Layers, at: Evaluated, net: MLP) -> list[Tensor]:
    """dE/dz, and before it what `deltas` gives."""
    found, (delta, last, factor) = deltas(layers, at, net)
    out = delta.new_empty(at.inputs[0].shape)
    layers.backward(delta, 0, net, last, None, factor, out)
    return [*found, out]


def _outer(
    layers: Layers, delta: Tensor, x: Tensor, net: MLP, last: bool, factor: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradient of a layer's weight and bias; parts over rows are added in their order."""
    rows, fan_in, width = *x.shape, delta.shape[1]
    parts = max(1, min(-(-rows // _ADDED_ROWS), _ADDED_VALUES // max(1, width * fan_in)))
    added = -(-rows // (parts * _MULTIPLE)) * _MULTIPLE
    parts = -(-rows // added)
    d_weight, d_bias = x.new_empty(parts, width, fan_in), x.new_empty(parts, width)
    layers.outer(delta, x, net, last, factor, added, d_weight, d_bias)
    return (d_weight[0], d_bias[0]) if parts == 1 else (d_weight.sum(0), d_bias.sum(0))


def energy(layers: Layers, z: Tensor, net: MLP) -> Tensor:
    """E(z): [B, d] -> [B]."""
    if not len(z):
        return z.new_empty(0)
    with on(z.device):
        return evaluate(layers, z.contiguous(), net, True, derivatives=False).energy


def energy_and_grad(layers: Layers, z: Tensor, net: MLP) -> tuple[Tensor, Tensor]:
    """E(z) [B] and dE/dz [B, d] in one pass."""
    if not len(z):
        return z.new_empty(0), z.new_empty(z.shape)
    with on(z.device):
        at = evaluate(layers, z.contiguous(), net, True)
        return at.energy, back(layers, at, net)[-1]


def energy_backward(
    layers: Layers, g: Tensor, z: Tensor, net: MLP, parameters: bool = True
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradient of sum_b g_b E(z_b) in z, and where `parameters`, in weights and biases; g is [B]."""
    if not len(z):
        weights, biases = (net.weights, net.biases) if parameters else ((), ())
        return z.new_empty(z.shape), [torch.zeros_like(w) for w in weights], [torch.zeros_like(b) for b in biases]
    with on(z.device):
        at = evaluate(layers, z.contiguous(), net, True, g=g.contiguous())
        *deltas, dz = back(layers, at, net)
        if not parameters:
            return dz, [], []
        grads = [_outer(layers, at.factor.unsqueeze(1), at.inputs[-1], net, False, None)]
        last = True
        for x, delta in zip(at.inputs[-2::-1], [*at.derivatives[-1:], *deltas], strict=True):
            grads.insert(0, _outer(layers, delta, x, net, last, at.factor))
            last = False
        return dz, [w for w, _ in grads], [b for _, b in grads]
