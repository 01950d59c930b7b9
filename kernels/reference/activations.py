"""Activations of an energy network with their first and second derivatives, as plain differentiable PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(NamedTuple):
    """value, first and second derivative, each a function of (pre-activation, slope)."""

    value: Callable[[Tensor, float], Tensor]
    first: Callable[[Tensor, float], Tensor]
    second: Callable[[Tensor, float], Tensor]


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _cumulative(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _silu_first(x: Tensor, _: float) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


def _silu_second(x: Tensor, _: float) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s))


_GELU_A, _GELU_B = math.sqrt(2.0 / math.pi), 0.044715  # gelu_tanh(x) = x sigmoid(w), w = 2 A (x + B x^3)


def _gelu_tanh_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """sigmoid(w), sigmoid(-w), w', w''; both sigmoids, as 1 - sigmoid(w) cancels in float32."""
    w = 2.0 * _GELU_A * (x + _GELU_B * x**3)
    d_w = 2.0 * _GELU_A * (1.0 + 3.0 * _GELU_B * x * x)
    return torch.sigmoid(w), torch.sigmoid(-w), d_w, 12.0 * _GELU_A * _GELU_B * x


def _gelu_tanh_first(x: Tensor, _: float) -> Tensor:
    s, rest, d_w, _dd_w = _gelu_tanh_parts(x)
    return s + x * s * rest * d_w


def _gelu_tanh_second(x: Tensor, _: float) -> Tensor:
    s, rest, d_w, dd_w = _gelu_tanh_parts(x)
    return s * rest * (2.0 * d_w + x * (dd_w + (rest - s) * d_w * d_w))


def _softplus_first(x: Tensor, _: float) -> Tensor:
    return torch.sigmoid(x)


def _softplus_second(x: Tensor, _: float) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1.0 - s)


def _tanh_second(x: Tensor, _: float) -> Tensor:
    t = torch.tanh(x)
    return -2.0 * t * (1.0 - t * t)


def _below_zero(x: Tensor, inside: Tensor, outside: float) -> Tensor:
    return torch.where(x > 0, torch.full_like(x, outside), inside)


ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation(lambda x, _: F.silu(x), _silu_first, _silu_second),
    "gelu": Activation(
        lambda x, _: F.gelu(x),
        lambda x, _: _cumulative(x) + x * _density(x),
        lambda x, _: _density(x) * (2.0 - x * x),
    ),
    "gelu_tanh": Activation(lambda x, _: F.gelu(x, approximate="tanh"), _gelu_tanh_first, _gelu_tanh_second),
    "leaky_relu": Activation(
        lambda x, slope: F.leaky_relu(x, slope),
        lambda x, slope: _below_zero(x, torch.full_like(x, slope), 1.0),
        lambda x, _: torch.zeros_like(x),
    ),
    "relu": Activation(lambda x, _: F.relu(x), lambda x, _: (x > 0).to(x.dtype), lambda x, _: torch.zeros_like(x)),
    "softplus": Activation(lambda x, _: F.softplus(x), _softplus_first, _softplus_second),
    "tanh": Activation(lambda x, _: torch.tanh(x), lambda x, _: 1.0 - torch.tanh(x) ** 2, _tanh_second),
    "elu": Activation(
        lambda x, _: F.elu(x),
        lambda x, _: _below_zero(x, x.clamp_max(0.0).exp(), 1.0),
        lambda x, _: _below_zero(x, x.clamp_max(0.0).exp(), 0.0),
    ),
}
