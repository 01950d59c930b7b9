"""What a precision loses, in plain PyTorch: operands of every matrix product rounded as tensor cores take them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmebm.kernels.reference import MLP
from mmebm.kernels.reference.activations import ACTIVATIONS

Product = Callable[[Tensor, Tensor], Tensor]  # x [B, in], w [out, in] -> [B, out]


def _bf16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def _tf32(x: Tensor) -> Tensor:
    """To 10 bits of mantissa, nearest."""
    bits = x.detach().float().contiguous().view(torch.int32)
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)
    return x + (rounded - x).detach()  # its derivative is 1


def _exact(x: Tensor, w: Tensor) -> Tensor:
    return x @ w.T


def _bf16w2(x: Tensor, w: Tensor) -> Tensor:
    high = _bf16(w)
    return _bf16(x) @ high.T + _bf16(x) @ _bf16(w - high).T


def _bf16x3(x: Tensor, w: Tensor) -> Tensor:
    x_high, w_high = _bf16(x), _bf16(w)
    x_low, w_low = _bf16(x - x_high), _bf16(w - w_high)
    return x_high @ w_high.T + x_low @ w_high.T + x_high @ w_low.T


PRODUCTS: dict[str, Product] = {
    "fp32": _exact,
    "tf32": lambda x, w: _tf32(x) @ _tf32(w).T,
    "bf16": lambda x, w: _bf16(x) @ _bf16(w).T,
    "bf16w2": _bf16w2,
    "bf16x3": _bf16x3,
}
# Products of bf16 matrices that one product takes.
TIMES = {"bf16": 1, "tf32": 1, "bf16w2": 2, "bf16x3": 3}


def energy_and_grad(z: Tensor, net: MLP, precision: str) -> tuple[Tensor, Tensor]:
    """E [B] and dE/dz [B, d] of z [B, d]; the last layer, one dot product a row, is not rounded."""
    product, activation = PRODUCTS[precision], ACTIVATIONS[net.activation]
    h, firsts = z, list[Tensor]()
    for w, b in zip(net.weights[:-1], net.biases[:-1], strict=True):
        a = product(h, w) + b
        h = activation.value(a, net.slope)
        firsts.append(activation.first(a, net.slope))
    e = (h @ net.weights[-1].T + net.biases[-1]).squeeze(1)
    back = net.weights[-1].expand(len(z), -1)
    for w, first in zip(reversed(net.weights[:-1]), reversed(firsts), strict=True):
        back = product(back * first, w.T.contiguous())
    if net.bound is None:
        return e, back
    bounded = torch.tanh(e / net.bound)
    return net.bound * bounded, back * (1.0 - bounded.square()).unsqueeze(1)


def chain(z: Tensor, net: MLP, table: Tensor, noise: Tensor, scale: Tensor, precision: str) -> Tensor:
    """Steps of the table [K, 3] with a Laplace reference, on noise [K, B, d]."""
    for (a, b, t), eps in zip(table.to(z.dtype), noise, strict=True):
        grad = energy_and_grad(z, net, precision)[1]
        z = z - a * (t * grad + z.sign() / scale) + b * eps
    return z
