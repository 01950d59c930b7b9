"""The energy of a small MLP and its gradient inside a program: weights resident, activations in registers.

Rows are chains [M, D]; a layer's weight is [H, K] as PyTorch keeps it, padded with zeros to powers of two. Products
follow the floor `PRECISION`: fp32 (IEEE), tf32, bf16x3 (both operands in two parts, three products), bf16w2 (weights in
two parts), bf16. Sums, activations and energies are float32 in each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activations import activate, logistic, silu_of_half, tanh


@triton.jit
def nearest_tf32(x):
    """Rounded to the 10 bits that the tensor cores keep: left alone they cut, which is a bias."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def load_weight(
    pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr, HALVED: tl.constexpr
):
    """A weight [rows, columns] as [ROWS, COLUMNS] in the operands' type, and what that rounding lost (or itself)."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    w = tl.load(pointer + row * columns + column, mask=(row < rows) & (column < columns), other=0.0)  # [ROWS, COLUMNS]
    if HALVED:
        w = w * 0.5
    if PRECISION == "fp32":
        return w, w
    elif PRECISION == "tf32":
        w = nearest_tf32(w)
        return w, w
    elif PRECISION == "bf16":
        high = w.to(tl.bfloat16)
        return high, high
    else:
        high = w.to(tl.bfloat16)
        return high, (w - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def load_network(
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    w3_ptr,
    b3_ptr,
    w_ptr,
    b_ptr,
    DIM: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    H3: tl.constexpr,
    D: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    HALVED: tl.constexpr,
):
    """Weights and biases of DEPTH hidden layers (those that are not there repeat the last) and of the last layer."""
    w1, low1 = load_weight(w1_ptr, H1, DIM, P1, D, PRECISION, HALVED)
    i = tl.arange(0, P1)
    b1 = tl.load(b1_ptr + i, mask=i < H1, other=0.0)
    w2, low2, b2, w3, low3, b3 = w1, low1, b1, w1, low1, b1
    if DEPTH >= 2:
        w2, low2 = load_weight(w2_ptr, H2, H1, P2, P1, PRECISION, HALVED)
        i2 = tl.arange(0, P2)
        b2 = tl.load(b2_ptr + i2, mask=i2 < H2, other=0.0)
    if DEPTH == 3:
        w3, low3 = load_weight(w3_ptr, H3, H2, P3, P2, PRECISION, HALVED)
        i3 = tl.arange(0, P3)
        b3 = tl.load(b3_ptr + i3, mask=i3 < H3, other=0.0)
    if HALVED:
        b1, b2, b3 = b1 * 0.5, b2 * 0.5, b3 * 0.5
    LAST: tl.constexpr = DIM if DEPTH == 0 else (H1 if DEPTH == 1 else (H2 if DEPTH == 2 else H3))
    PADDED: tl.constexpr = D if DEPTH == 0 else (P1 if DEPTH == 1 else (P2 if DEPTH == 2 else P3))
    j = tl.arange(0, PADDED)
    w = tl.load(w_ptr + j, mask=j < LAST, other=0.0)
    return w1, low1, b1, w2, low2, b2, w3, low3, b3, w, tl.load(b_ptr)


@triton.jit
def matmul(x, w, low, PRECISION: tl.constexpr):
    """x [M, K] float32 times w [K, N] as `load_weight` gave it: [M, N] float32."""
    if PRECISION == "fp32":
        return tl.dot(x, w, input_precision="ieee")
    elif PRECISION == "tf32":
        return tl.dot(nearest_tf32(x), w, input_precision="tf32")
    elif PRECISION == "bf16":
        return tl.dot(x.to(tl.bfloat16), w)
    else:
        high = x.to(tl.bfloat16)
        if PRECISION == "bf16w2":
            product = tl.dot(high, low)
        else:
            tl.static_assert(PRECISION == "bf16x3", "an unknown precision")
            product = tl.dot(high, low, tl.dot((x - high.to(tl.float32)).to(tl.bfloat16), w))
        return tl.dot(high, w, product)


@triton.jit
def _hidden(x, w, low, b, slope, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, HALVED: tl.constexpr):
    """A hidden layer's value and derivative [M, H] from its input x [M, K]."""
    a = matmul(x, tl.trans(w), tl.trans(low), PRECISION) + b[None, :]
    if HALVED:
        return silu_of_half(a)
    else:
        return activate(a, slope, ACTIVATION, PRECISION == "bf16")


@triton.jit
def energy_and_grad(
    z,
    w1,
    low1,
    b1,
    w2,
    low2,
    b2,
    w3,
    low3,
    b3,
    w,
    b,
    slope,
    bound,
    DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BOUND: tl.constexpr,
    HALVED: tl.constexpr,
):
    """E(z) [M] and dE/dz [M, D] of z [M, D] through DEPTH <= 3 hidden layers and the last weight w [H], bias b.

    The compiler drops the energy where neither a bound nor the caller reads it. HALVED says that hidden layers are held
    at half their size, as `silu_of_half` wants them: its factor 2 of a derivative and the half of the weight that it
    meets on the way back cancel, both being exact.
    """
    if DEPTH == 0:
        e = tl.sum(z * w[None, :], 1) + b
        grad = tl.broadcast_to(w[None, :], z.shape)
    else:
        x, f1 = _hidden(z, w1, low1, b1, slope, ACTIVATION, PRECISION, HALVED)
        last = f1  # [M, H], the derivative in the last hidden layer
        if DEPTH >= 2:
            x, f2 = _hidden(x, w2, low2, b2, slope, ACTIVATION, PRECISION, HALVED)
            last = f2
        if DEPTH == 3:
            x, f3 = _hidden(x, w3, low3, b3, slope, ACTIVATION, PRECISION, HALVED)
            last = f3
        e = tl.sum(x * w[None, :], 1) + b
        delta = last * w[None, :]
        if DEPTH == 3:
            delta = matmul(delta, w3, low3, PRECISION) * f2
        if DEPTH >= 2:
            delta = matmul(delta, w2, low2, PRECISION) * f1
        grad = matmul(delta, w1, low1, PRECISION)  # [M, D]
    if BOUND:
        s, rest = logistic(e * (2.0 / bound))
        grad = grad * (s * rest * 4.0)[:, None]
        e = bound * tanh(e / bound)
    return e, grad
