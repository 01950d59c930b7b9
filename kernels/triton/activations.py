"""Activations with their first derivatives as Triton functions; kernels/reference/activations.py is their oracle.

Formulas are those of csrc/common/activation.hpp. `APPROXIMATE` takes the hardware's tanh (relative error 2^-11, the
order of bfloat16's own rounding) where a logistic is wanted, and its estimates of logarithm and exponential (absolute
error 2e-7) in softplus and elu: for precision "bf16" alone, and never under the interpreter, which has no inline
assembly. NaN in, NaN out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .noise import INTERPRETED, minus_log

_LOG2_E = tl.constexpr(1.44269504)
_NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _within(x, LIMIT: tl.constexpr):
    return tl.maximum(tl.minimum(x, LIMIT, propagate_nan=_NAN), -LIMIT, propagate_nan=_NAN)


@triton.jit
def _reciprocal(x):
    """1 / x of x in [1, 2^100], within an ulp or two."""
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def _power_of_two(x):
    """2^x for x in [-126, 127], within 2 ulp."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def logistic(x):
    """1 / (1 + e^-x) and its complement, neither by cancellation."""
    e = _power_of_two(tl.maximum(x, -69.0, propagate_nan=_NAN) * -_LOG2_E)  # e^69 and what is made of it stay finite
    s = _reciprocal(e + 1.0)
    return s, e * s


@triton.jit
def _hardware_tanh(x):
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _hardware_log2(x):
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def _logistic(x, APPROXIMATE: tl.constexpr):
    if APPROXIMATE:
        half = _hardware_tanh(x * 0.5) * 0.5
        return half + 0.5, 0.5 - half
    else:
        return logistic(x)


@triton.jit
def silu_of_half(y):
    """silu(2 y) and twice its derivative there, by the hardware's tanh: two instructions less than from 2 y."""
    p = _hardware_tanh(y) + 1.0  # 2 logistic(2 y)
    value = y * p
    return value, tl.fma(p, tl.fma(y, 2.0, -value), p)


@triton.jit
def expm1(x):
    """e^x - 1 without cancellation next to 0: 2^n (2^f - 1) + (2^n - 1). Stands still past [-87, 88]."""
    x = tl.maximum(tl.minimum(x, 88.0, propagate_nan=_NAN), -87.0, propagate_nan=_NAN)
    whole = tl.fma(x, _LOG2_E, 12582912.0)
    f = tl.fma(x, _LOG2_E, 12582912.0 - whole)
    p = tl.fma(f, 0.000154531629, 0.00133908634)  # (2^f - 1) / f on [-1/2, 1/2] within 8e-9
    p = tl.fma(p, f, 0.00961808256)
    p = tl.fma(p, f, 0.0555035711)
    p = tl.fma(p, f, 0.240226508)
    p = tl.fma(p, f, 0.693147188)
    scale = ((whole.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    return tl.fma(scale, p * f, scale - 1.0)


@triton.jit
def tanh(x):
    """Within 2 ulp."""
    square = x * x
    p = tl.fma(square, -0.0066255973, 0.0213175246)  # tanh x / x on [0, 0.55], within 4e-9
    p = tl.fma(p, square, -0.0539107491)
    p = tl.fma(p, square, 0.133331204)
    p = tl.fma(p, square, -0.333333321)
    near = tl.fma(p * square, x, x)
    s, rest = logistic(x * 2.0)
    return tl.where(square < 0.3, near, s - rest)


@triton.jit
def activate(x, slope, ACTIVATION: tl.constexpr, APPROXIMATE: tl.constexpr):
    """Value and first derivative of the activation named; `slope` is leaky_relu's below zero."""
    if ACTIVATION == "silu":
        s, rest = _logistic(x, APPROXIMATE)
        value = x * s
        return value, tl.fma(value, rest, s)
    elif ACTIVATION == "gelu":
        # Upper tail of the normal law: e^(-x^2/2) t p(t), t = 1 / (1 + 0.3 |x|); p fitted on |x| <= 10, within 3e-8.
        near = _within(x, 12.0)
        t = _reciprocal(tl.fma(tl.abs(near), 0.3, 1.0))
        p = tl.fma(t, 0.0381150736, -0.167595915)
        p = tl.fma(p, t, 0.224740298)
        p = tl.fma(p, t, -0.0711532167)
        p = tl.fma(p, t, 0.138162505)
        p = tl.fma(p, t, 0.0968690771)
        p = tl.fma(p, t, 0.121268655)
        p = tl.fma(p, t, 0.119593553)
        density = _power_of_two(near * near * (-0.5 * _LOG2_E))
        tail = density * (t * p)
        cumulative = tl.where(x > 0.0, 1.0 - tail, tail)
        return x * cumulative, tl.fma(near * 0.398942280, density, cumulative)
    elif ACTIVATION == "gelu_tanh":
        # x logistic(w), w = 2 sqrt(2 / pi) (x + 0.044715 x^3).
        near = _within(x, 12.0)
        square = near * near
        s, rest = _logistic(near * tl.fma(square, 0.0713548163, 1.59576912), APPROXIMATE)
        value = x * s
        return value, tl.fma(value * rest, tl.fma(square, 0.214064449, 1.59576912), s)
    elif ACTIVATION == "leaky_relu":
        above = x > 0.0
        return tl.where(above, x, x * slope), tl.where(above, 1.0, slope)
    elif ACTIVATION == "relu":
        return tl.where(x < 0.0, 0.0, x), tl.where(x > 0.0, 1.0, 0.0)
    elif ACTIVATION == "softplus":
        if APPROXIMATE:
            e = _power_of_two(tl.abs(x) * -_LOG2_E)
            s = _reciprocal(e + 1.0)
            value = tl.fma(_hardware_log2(e + 1.0), 0.693147182, tl.maximum(x, 0.0, propagate_nan=_NAN))
            return value, tl.where(x > 0.0, s, e * s)
        else:
            # max(x, 0) + ln(1 + e^-|x|); what rounding 1 + e loses is put back by its first order.
            e = _power_of_two(tl.maximum(-tl.abs(x), -69.0, propagate_nan=_NAN) * _LOG2_E)
            sum = e + 1.0
            s = _reciprocal(sum)
            lost = e - (sum - 1.0)
            # The last term keeps a NaN, whose bits minus_log takes for a number.
            value = tl.where(x > 0.0, x, 0.0) + tl.fma(lost, s, -minus_log(sum)) + e * 0.0
            return value, tl.where(x > 0.0, s, e * s)
    elif ACTIVATION == "tanh":
        if APPROXIMATE:
            value = _hardware_tanh(x)
            return value, tl.fma(-value, value, 1.0)
        else:
            s, rest = logistic(x * 2.0)
            return tanh(x), s * rest * 4.0
    else:
        tl.static_assert(ACTIVATION == "elu", "an unknown activation")
        if APPROXIMATE:
            e = _power_of_two(tl.minimum(x, 0.0, propagate_nan=_NAN) * _LOG2_E)
            return tl.where(x > 0.0, x, e - 1.0), e
        else:
            below = expm1(tl.minimum(x, 0.0, propagate_nan=_NAN))
            return tl.where(x > 0.0, x, below), tl.where(x > 0.0, 1.0, below + 1.0)
