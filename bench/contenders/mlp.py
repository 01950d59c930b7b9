"""An MLP energy and its gradient as people write them: autograd, by hand, torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Tests put "eager" here: they are about what is computed, and inductor takes tens of seconds.
COMPILER = "inductor"

Parameters = Sequence[Tensor]
Gradient = Callable[[Tensor, Parameters, Parameters], Tensor]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, backend=COMPILER, dynamic=False)


def energy(z: Tensor, weights: Parameters, biases: Parameters) -> Tensor:
    """E(z) [B], SiLU."""
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        z = F.silu(F.linear(z, w, b))
    return F.linear(z, weights[-1], biases[-1]).squeeze(-1)


def by_autograd(z: Tensor, weights: Parameters, biases: Parameters) -> tuple[Tensor, Tensor]:
    """E(z) and dE/dz."""
    leaf = z.detach().requires_grad_()
    with torch.enable_grad():
        e = energy(leaf, weights, biases)
        (grad,) = torch.autograd.grad(e.sum(), leaf)
    return e.detach(), grad


def by_hand(z: Tensor, weights: Parameters, biases: Parameters) -> tuple[Tensor, Tensor]:
    """E(z) and dE/dz without autograd: the derivative of SiLU is kept from the way up."""
    slopes = []
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        u = torch.addmm(b, z, w.t())
        s = torch.sigmoid(u)
        z = u * s
        slopes.append(torch.addcmul(s, z, 1 - s))
    e = torch.addmm(biases[-1], z, weights[-1].t()).squeeze(-1)
    grad = weights[-1] * slopes[-1]
    for w, slope in zip(weights[-2:0:-1], slopes[-2::-1], strict=True):
        grad = (grad @ w) * slope
    return e, grad @ weights[0]


def functional(z: Tensor, weights: Parameters, biases: Parameters) -> tuple[Tensor, Tensor]:
    """The same by torch.func, which torch.compile can see through."""

    def total(z: Tensor) -> tuple[Tensor, Tensor]:
        e = energy(z, weights, biases)
        return e.sum(), e

    grad, e = torch.func.grad(total, has_aux=True)(z)
    return e, grad


def flops(dim: int, width: int, hidden: int) -> int:
    """Of an energy with its gradient in z, per row: two matrix products up and two down count 4 per weight."""
    return 4 * (dim * width + (hidden - 1) * width * width + width)
