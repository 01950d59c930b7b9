"""`energy`, `energy_and_grad` and `energy_backward` of a network of any size, in float32, layer by layer.

This module is the `Layers` of kernels/layered.py.
"""

from __future__ import annotations

import sys
from functools import partial

from torch import Tensor

from .. import layered
from ..pointers import ACTIVATION_NUMBERS, address
from ..reference import MLP
from . import module


def forward(x: Tensor, layer: int, net: MLP, value: Tensor, derivative: Tensor) -> None:
    """f(x W^T + b) [B, width] of x [B, fan_in], and f' there."""
    weight, bias = net.weights[layer].contiguous(), net.biases[layer].contiguous()
    module.native().layer_forward(
        x.data_ptr(), weight.data_ptr(), bias.data_ptr(), address(value), address(derivative), len(x), *weight.shape,
        ACTIVATION_NUMBERS[net.activation], net.slope, module.stream(x.device),
    )  # fmt: skip


def head(h: Tensor, net: MLP, g: Tensor | None, energy: Tensor, factor: Tensor) -> None:
    """E [B] from the last hidden layer, bounded, and dE/de, times g [B] where that is given."""
    weight, bias = net.weights[-1].contiguous(), net.biases[-1].contiguous()
    module.native().layer_head(
        h.data_ptr(), weight.data_ptr(), bias.data_ptr(), address(g), energy.data_ptr(), factor.data_ptr(), *h.shape,
        net.bound or 0.0, module.stream(h.device),
    )  # fmt: skip


def backward(
    delta: Tensor, layer: int, net: MLP, last: bool, derivative: Tensor | None, factor: Tensor | None, out: Tensor
) -> None:
    """(delta W) [B, fan_in], times f' of the layer below and a factor [B]; see kernels/layered.py."""
    weight, final = net.weights[layer].contiguous(), net.weights[-1].contiguous()
    module.native().layer_backward(
        delta.data_ptr(), final.data_ptr() if last else 0, weight.data_ptr(), address(derivative), address(factor),
        out.data_ptr(), len(delta), *weight.shape, module.stream(delta.device),
    )  # fmt: skip


def outer(
    delta: Tensor, x: Tensor, net: MLP, last: bool, factor: Tensor | None, added: int, d_weight: Tensor, d_bias: Tensor
) -> None:
    """delta^T x and the sum of delta by parts of `added` rows; see kernels/layered.py."""
    final = net.weights[-1].contiguous()
    module.native().layer_outer(
        delta.data_ptr(), final.data_ptr() if last else 0, address(factor), x.data_ptr(), d_weight.data_ptr(),
        d_bias.data_ptr(), len(x), added, *d_weight.shape, module.stream(x.device),
    )  # fmt: skip


_LAYERS = sys.modules[__name__]
energy = partial(layered.energy, _LAYERS)
energy_and_grad = partial(layered.energy_and_grad, _LAYERS)
energy_backward = partial(layered.energy_backward, _LAYERS)
