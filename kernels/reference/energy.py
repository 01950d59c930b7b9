"""The energy of an MLP, its gradient and its second-order products, written out by hand.

E(z) = B(e(z)), e = w_L h_{L-1} + b_L, h_l = f(a_l), a_l = W_l h_{l-1} + b_l, h_0 = z;
B(e) = c tanh(e / c) when the net is bounded by c, else the identity.
Everything here is differentiable PyTorch; nothing calls autograd, so that it may run inside an operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .activations import ACTIVATIONS


class MLP(NamedTuple):
    """Weights [out, in] and biases [out] of every linear layer, the last with out = 1."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    activation: str
    slope: float  # of leaky_relu below zero; other activations ignore it
    bound: float | None
    precision: str = "fp32"  # the floor of a call; the reference keeps to the tensors' own


def _forward(z: Tensor, net: MLP) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """e [B, 1], the pre-activations a_l and the layer inputs h_0..h_{L-1}."""
    value = ACTIVATIONS[net.activation].value
    inputs, pre = [z], []
    for weight, bias in zip(net.weights[:-1], net.biases[:-1], strict=True):
        pre.append(torch.addmm(bias, inputs[-1], weight.T))  # [B, h]
        inputs.append(value(pre[-1], net.slope))
    return torch.addmm(net.biases[-1], inputs[-1], net.weights[-1].T), pre, inputs


def _bounded(e: Tensor, bound: float | None) -> Tensor:
    return e if bound is None else bound * torch.tanh(e / bound)


def _bound_first(e: Tensor, bound: float | None) -> Tensor:
    return torch.ones_like(e) if bound is None else 1.0 - torch.tanh(e / bound) ** 2


def energy(z: Tensor, net: MLP) -> Tensor:
    """E(z): [B, d] -> [B]."""
    return _bounded(_forward(z, net)[0], net.bound).squeeze(1)


def energy_and_grad(z: Tensor, net: MLP) -> tuple[Tensor, Tensor]:
    """E(z) [B] and dE/dz [B, d] in one pass."""
    first = ACTIVATIONS[net.activation].first
    e, pre, _ = _forward(z, net)
    delta = _bound_first(e, net.bound)  # [B, 1]
    for weight, a in zip(reversed(net.weights[1:]), reversed(pre), strict=True):
        delta = (delta @ weight) * first(a, net.slope)
    return _bounded(e, net.bound).squeeze(1), delta @ net.weights[0]


def energy_backward(
    g: Tensor, z: Tensor, net: MLP, parameters: bool = True
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradient of sum_b g_b E(z_b) in z, and where `parameters`, in weights and biases; g is [B]."""
    first = ACTIVATIONS[net.activation].first
    e, pre, inputs = _forward(z, net)
    delta = g.unsqueeze(1) * _bound_first(e, net.bound)  # [B, 1]
    deltas = [delta]
    for weight, a in zip(reversed(net.weights[1:]), reversed(pre), strict=True):
        deltas.insert(0, (deltas[0] @ weight) * first(a, net.slope))
    dz = deltas[0] @ net.weights[0]
    if not parameters:
        return dz, [], []
    return dz, [d.T @ h for d, h in zip(deltas, inputs, strict=True)], [d.sum(0) for d in deltas]


def energy_double_backward(
    cz: Tensor, c_weights: Sequence[Tensor], c_biases: Sequence[Tensor], g: Tensor, z: Tensor, net: MLP
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """The gradient in g, z, weights and biases of <cz, dz> + <c_weights, dW> + <c_biases, db> of `energy_backward`.

    That sum is sum_b g_b Edot_b, Edot the derivative of E along (cz, c_weights, c_biases): carry the tangent forward
    beside the value (suffix `_t`), then take the ordinary reverse pass through both.
    """
    _, first, second = ACTIVATIONS[net.activation]
    e, pre, inputs = _forward(z, net)
    tangents, pre_t = [cz], []
    for weight, c_weight, c_bias, a, h in zip(
        net.weights[:-1], c_weights[:-1], c_biases[:-1], pre, inputs[:-1], strict=True
    ):
        pre_t.append(tangents[-1] @ weight.T + h @ c_weight.T + c_bias)
        tangents.append(first(a, net.slope) * pre_t[-1])
    e_t = tangents[-1] @ net.weights[-1].T + inputs[-1] @ c_weights[-1].T + c_biases[-1]  # [B, 1]

    b_first = _bound_first(e, net.bound)
    d_g = (b_first * e_t).squeeze(1)
    d_pre_t = g.unsqueeze(1) * b_first
    if net.bound is None:
        d_pre = torch.zeros_like(e)
    else:
        d_pre = g.unsqueeze(1) * e_t * b_first * (-2.0 / net.bound) * torch.tanh(e / net.bound)

    d_weights: list[Tensor] = []
    d_biases: list[Tensor] = []
    for layer in reversed(range(len(net.weights))):
        weight, c_weight = net.weights[layer], c_weights[layer]
        d_weights.insert(0, d_pre.T @ inputs[layer] + d_pre_t.T @ tangents[layer])
        d_biases.insert(0, d_pre.sum(0))
        d_h = d_pre @ weight + d_pre_t @ c_weight
        d_h_t = d_pre_t @ weight
        if layer > 0:
            a, a_t = pre[layer - 1], pre_t[layer - 1]
            slope = first(a, net.slope)
            d_pre_t = slope * d_h_t
            d_pre = slope * d_h + second(a, net.slope) * a_t * d_h_t
    return d_g, d_h, d_weights, d_biases
