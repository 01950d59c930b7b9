"""Layers of a network of any size: a matrix product a launch, whose epilogue applies what follows it.

On the way forward that is bias and activation, on the way back the activation's derivative. Products follow the floor
of `net.precision` as those of network.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layered import Last
from ..reference import MLP, Constraints
from . import launch
from .activations import activate, logistic, tanh
from .network import matmul, nearest_tf32
from .update import moved

_NAN = tl.constexpr(tl.PropagateNan.ALL)
_ROWS, _COLUMNS, _DEPTH = 64, 64, 32  # of a product's tile and of its operands' blocks


@triton.jit
def _operand(w, PRECISION: tl.constexpr):
    """A block of a product's second factor as `matmul` takes it: rounded, and what that lost (or itself)."""
    if PRECISION == "fp32":
        return w, w
    elif PRECISION == "tf32":
        w = nearest_tf32(w)
        return w, w
    else:
        high = w.to(tl.bfloat16)
        if PRECISION == "bf16":
            return high, high
        else:
            return high, (w - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _tile(pointer, rows, columns, row, column, stride_row, stride_column):
    """[R, C] of a matrix [rows, columns], zeros outside."""
    cells = row[:, None].to(tl.int64) * stride_row + column[None, :].to(tl.int64) * stride_column
    return tl.load(pointer + cells, mask=(row < rows)[:, None] & (column < columns)[None, :], other=0.0)


@triton.jit(do_not_specialize=["rows"], repr=launch.kernel_name("layer_forward"))
def forward_kernel(
    x_ptr, w_ptr, b_ptr, value_ptr, derivative_ptr, rows, width, slope, fan_in,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, VALUE: tl.constexpr, DERIVATIVE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """f(x W^T + b) [rows, width] of x [rows, fan_in], and f' there."""
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    unit = tl.program_id(1) * N + tl.arange(0, N)
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, fan_in, K):
        k = first + tl.arange(0, K)
        x = _tile(x_ptr, rows, fan_in, row, k, fan_in, 1)
        w, low = _operand(_tile(w_ptr, width, fan_in, unit, k, fan_in, 1), PRECISION)
        total += matmul(x, tl.trans(w), tl.trans(low), PRECISION)
    bias = tl.load(b_ptr + unit, mask=unit < width, other=0.0)
    value, derivative = activate(total + bias[None, :], slope, ACTIVATION, PRECISION == "bf16")
    cells = row[:, None] * width + unit[None, :]
    mask = (row < rows)[:, None] & (unit < width)[None, :]
    if VALUE:
        tl.store(value_ptr + cells, value, mask=mask)
    if DERIVATIVE:
        tl.store(derivative_ptr + cells, derivative, mask=mask)


@triton.jit
def _times_weight(
    delta_ptr, last_ptr, w_ptr, row, below, rows, width, fan_in,
    PRECISION: tl.constexpr, LAST: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """delta W [M, N] at these rows and columns; with LAST delta is still to be multiplied by the last weight."""
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, width, K):
        k = first + tl.arange(0, K)
        delta = _tile(delta_ptr, rows, width, row, k, width, 1)
        if LAST:
            delta = delta * tl.load(last_ptr + k, mask=k < width, other=0.0)[None, :]
        w, low = _operand(_tile(w_ptr, width, fan_in, k, below, fan_in, 1), PRECISION)
        total += matmul(delta, w, low, PRECISION)
    return total


@triton.jit(do_not_specialize=["rows"], repr=launch.kernel_name("layer_backward"))
def backward_kernel(
    delta_ptr, last_ptr, w_ptr, derivative_ptr, factor_ptr, out_ptr, rows, width, fan_in,
    PRECISION: tl.constexpr, LAST: tl.constexpr, DERIVATIVE: tl.constexpr, FACTOR: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """(delta W) [rows, fan_in] of delta [rows, width], times f' of the layer below and a factor [rows].

    With LAST delta is f' of the last hidden layer, still to be multiplied by the last weight.
    """
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    below = tl.program_id(1) * N + tl.arange(0, N)
    total = _times_weight(delta_ptr, last_ptr, w_ptr, row, below, rows, width, fan_in, PRECISION, LAST, M, N, K)
    cells = row[:, None] * fan_in + below[None, :]
    mask = (row < rows)[:, None] & (below < fan_in)[None, :]
    if DERIVATIVE:
        total = total * tl.load(derivative_ptr + cells, mask=mask, other=0.0)
    if FACTOR:
        total = total * tl.load(factor_ptr + row, mask=row < rows, other=0.0)[:, None]
    tl.store(out_ptr + cells, total, mask=mask)


@triton.jit(do_not_specialize=["rows", "step"], repr=launch.kernel_name("layer_step"))
def step_kernel(
    delta_ptr, last_ptr, w_ptr, factor_ptr, z_ptr, table_ptr, rng_ptr, scale_ptr, out_ptr, rows, step, width, fan_in,
    lower, upper, PRECISION: tl.constexpr, LAST: tl.constexpr, FACTOR: tl.constexpr, REFERENCE: tl.constexpr,
    CLAMP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """A Langevin step of z [rows, fan_in] at the end of the product that gives dE/dz, which nothing caps."""
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    below = tl.program_id(1) * N + tl.arange(0, N)
    grad = _times_weight(delta_ptr, last_ptr, w_ptr, row, below, rows, width, fan_in, PRECISION, LAST, M, N, K)
    if FACTOR:
        grad = grad * tl.load(factor_ptr + row, mask=row < rows, other=0.0)[:, None]
    cells = row[:, None] * fan_in + below[None, :]
    mask = (row < rows)[:, None] & (below < fan_in)[None, :]
    z = tl.load(z_ptr + cells, mask=mask, other=0.0)
    scale = tl.load(scale_ptr + below, mask=below < fan_in, other=1.0)
    q = tl.program_id(1) * (N // 4) + tl.arange(0, N // 4)
    new = moved(z, grad, table_ptr + 3 * step, rng_ptr, step, row, q, scale, REFERENCE, M, N)
    if CLAMP:
        new = tl.minimum(tl.maximum(new, lower, propagate_nan=_NAN), upper, propagate_nan=_NAN)
    tl.store(out_ptr + cells, new, mask=mask)


@triton.jit(do_not_specialize=["rows"], repr=launch.kernel_name("layer_head"))
def head_kernel(
    h_ptr, w_ptr, b_ptr, g_ptr, energy_ptr, factor_ptr, rows, width, bound,
    BOUND: tl.constexpr, GIVEN: tl.constexpr, M: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """E [rows] from the last hidden layer, bounded, and dE/de, times g [rows] where that is GIVEN."""
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    e = tl.zeros((M,), tl.float32)
    for first in range(0, width, K):
        k = first + tl.arange(0, K)
        w = tl.load(w_ptr + k, mask=k < width, other=0.0)
        e += tl.sum(_tile(h_ptr, rows, width, row, k, width, 1) * w[None, :], 1)
    e += tl.load(b_ptr)
    factor = tl.full((M,), 1.0, tl.float32)
    if BOUND:
        s, rest = logistic(e * (2.0 / bound))
        factor = s * rest * 4.0
        e = bound * tanh(e / bound)
    if GIVEN:
        factor = factor * tl.load(g_ptr + row, mask=row < rows, other=0.0)
    tl.store(energy_ptr + row, e, mask=row < rows)
    tl.store(factor_ptr + row, factor, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "added"], repr=launch.kernel_name("layer_outer"))
def outer_kernel(
    delta_ptr, last_ptr, factor_ptr, x_ptr, d_weight_ptr, d_bias_ptr, rows, added, width, fan_in,
    PRECISION: tl.constexpr, LAST: tl.constexpr, FACTOR: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """delta^T x [width, fan_in] and the sum of delta [width] over `added` rows, a part of each a program.

    delta [rows, width] is still to be multiplied by a factor [rows] and, with LAST, by the last weight [width].
    """
    part = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * M + tl.arange(0, M)
    below = tl.program_id(2) * N + tl.arange(0, N)
    total = tl.zeros((M, N), tl.float32)
    sums = tl.zeros((M,), tl.float32)
    for first in range(0, added, K):
        row = part * added + first + tl.arange(0, K)
        delta = _tile(delta_ptr, rows, width, row, unit, width, 1)  # [K, M]
        if FACTOR:
            delta = delta * tl.load(factor_ptr + row, mask=row < rows, other=0.0)[:, None]
        x, low = _operand(_tile(x_ptr, rows, fan_in, row, below, fan_in, 1), PRECISION)
        total += matmul(tl.trans(delta), x, low, PRECISION)
        sums += tl.sum(delta, 0)
    if LAST:
        last = tl.load(last_ptr + unit, mask=unit < width, other=0.0)
        total = total * last[:, None]
        sums = sums * last
    cells = (part * width + unit)[:, None] * fan_in + below[None, :]
    tl.store(d_weight_ptr + cells, total, mask=(unit < width)[:, None] & (below < fan_in)[None, :])
    if tl.program_id(2) == 0:
        tl.store(d_bias_ptr + part * width + unit, sums, mask=unit < width)


def _precision(net: MLP) -> str:
    """The floor itself: the blocks of its operands fit anywhere. The interpreter computes in float32."""
    return "fp32" if launch.INTERPRETED else net.precision


def _blocks(n: int, size: int) -> int:
    return max(1, triton.cdiv(n, size))


def forward(x: Tensor, layer: int, net: MLP, value: Tensor, derivative: Tensor) -> None:
    """f(x W^T + b) [B, width] of x [B, fan_in], and f' there."""
    weight, rows = net.weights[layer].contiguous(), len(x)
    forward_kernel[(_blocks(rows, _ROWS), _blocks(len(weight), _COLUMNS))](
        x, weight, net.biases[layer].contiguous(), value, derivative, rows, len(weight), net.slope, weight.shape[1],
        ACTIVATION=net.activation, PRECISION=_precision(net), VALUE=value.numel() > 0,
        DERIVATIVE=derivative.numel() > 0, M=_ROWS, N=_COLUMNS, K=_DEPTH, num_warps=4, **launch.OPTIONS,
    )  # fmt: skip


def head(h: Tensor, net: MLP, g: Tensor | None, energy: Tensor, factor: Tensor) -> None:
    """E [B] from the last hidden layer, bounded, and dE/de, times g [B] where that is given."""
    head_kernel[(_blocks(len(h), _ROWS),)](
        h, net.weights[-1].contiguous(), net.biases[-1].contiguous(), energy if g is None else g, energy, factor,
        len(h), h.shape[1], net.bound or 1.0, BOUND=net.bound is not None, GIVEN=g is not None,
        M=_ROWS, K=_COLUMNS, num_warps=4, **launch.OPTIONS,
    )  # fmt: skip


def backward(
    delta: Tensor, layer: int, net: MLP, last: bool, derivative: Tensor | None, factor: Tensor | None, out: Tensor
) -> None:
    """(delta W) [B, fan_in], times f' of the layer below and a factor [B]; see kernels/layered.py."""
    weight, rows = net.weights[layer].contiguous(), len(delta)
    width, fan_in = weight.shape
    backward_kernel[(_blocks(rows, _ROWS), _blocks(fan_in, _COLUMNS))](
        delta, net.weights[-1].contiguous(), weight, out if derivative is None else derivative,
        out if factor is None else factor, out, rows, width, fan_in, PRECISION=_precision(net), LAST=last,
        DERIVATIVE=derivative is not None, FACTOR=factor is not None,
        M=_ROWS, N=_COLUMNS, K=_DEPTH, num_warps=4, **launch.OPTIONS,
    )  # fmt: skip


def step(of: Last, net: MLP, z: Tensor, coefficients: Tensor, rng: Tensor, k: int, hold: Constraints) -> Tensor:
    """z [B, d] after step k, dE/dz being made of `of`; the hold caps no gradient."""
    weight, out, (rows, dim) = net.weights[0].contiguous(), torch.empty_like(z), z.shape
    step_kernel[(_blocks(rows, _ROWS), _blocks(dim, _COLUMNS))](
        of.delta, net.weights[-1].contiguous(), weight, out if of.factor is None else of.factor, z,
        coefficients.contiguous(), rng.contiguous(), hold.scale.contiguous(), out, rows, k, len(weight), dim,
        *launch.limits(hold)[1:], PRECISION=_precision(net), LAST=of.last, FACTOR=of.factor is not None,
        REFERENCE=hold.reference, CLAMP=hold.lower is not None or hold.upper is not None,
        M=_ROWS, N=_COLUMNS, K=_DEPTH, num_warps=4, **launch.OPTIONS,
    )  # fmt: skip
    return out


def outer(
    delta: Tensor, x: Tensor, net: MLP, last: bool, factor: Tensor | None, added: int, d_weight: Tensor, d_bias: Tensor
) -> None:
    """delta^T x and the sum of delta by parts of `added` rows; see kernels/layered.py."""
    parts, width, fan_in = d_weight.shape
    outer_kernel[(parts, _blocks(width, _ROWS), _blocks(fan_in, _COLUMNS))](
        delta, net.weights[-1].contiguous(), x if factor is None else factor, x, d_weight, d_bias, len(x),
        added, width, fan_in, PRECISION=_precision(net), LAST=last, FACTOR=factor is not None,
        M=_ROWS, N=_COLUMNS, K=_DEPTH, num_warps=4, **launch.OPTIONS,
    )  # fmt: skip
