"""Philox4x32-10 and its transforms as Triton functions, bit for bit the words of docs/conventions.md.

The polynomials are those of csrc/common/normal.hpp and a multiply-add is written out wherever they have one, so that
noise agrees to rounding with every other backend; kernels are launched without contraction of what is left. Integers
become floats through the mantissa of a larger number: the same values, without the slow conversion.
"""

from __future__ import annotations

import triton
import triton.language as tl

_A = tl.constexpr(0xD2511F53)
_B = tl.constexpr(0xCD9E8D57)
_WEYL_A = tl.constexpr(0x9E3779B9)
_WEYL_B = tl.constexpr(0xBB67AE85)
_MASK32 = tl.constexpr(0xFFFFFFFF)
_MASK48 = tl.constexpr(0xFFFFFFFFFFFF)
_SQRT_HALF = tl.constexpr(0x3F3504F3)

# Decided as modules are imported: Triton wraps a function for its interpreter where it is defined.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

CHAIN_NOISE = tl.constexpr(0)
ACCEPT = tl.constexpr(2)


@triton.jit
def _wide_product(x, FACTOR: tl.constexpr, WIDE: tl.constexpr):
    """Both words of a product, by one instruction where WIDE: tl.umulhi beside the low word's product makes two."""
    if INTERPRETED or not WIDE:
        return x * FACTOR, tl.umulhi(x, FACTOR)
    else:
        return tl.inline_asm_elementwise(
            "{ .reg .b64 p; mul.wide.u32 p, $2, $3; mov.b64 {$0, $1}, p; }", "=r,=r,r,r",
            [x, tl.full(x.shape, FACTOR, tl.uint32)], (tl.uint32, tl.uint32), True, 1,
        )  # fmt: skip


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1, WIDE: tl.constexpr = True):
    """Ten rounds on uint32 tensors or scalars; shapes broadcast.

    WIDE takes fewer instructions and pairs of registers: not for a kernel that has none to spare.
    """
    for i in tl.static_range(10):
        low_a, high_a = _wide_product(c0, _A, WIDE)
        low_b, high_b = _wide_product(c2, _B, WIDE)
        c0 = high_b ^ c1 ^ k0
        c2 = high_a ^ c3 ^ k1
        c1 = low_b
        c3 = low_a
        if i < 9:
            k0 = k0 + _WEYL_A
            k1 = k1 + _WEYL_B
    return c0, c1, c2, c3


@triton.jit
def words(seed, step, chain, purpose: tl.constexpr, q, WIDE: tl.constexpr = True):
    """The four words of call q (uint32, shapes broadcast); seed, step and chain are int64, taken as they come."""
    step = step & _MASK48
    chain = chain & _MASK48
    c0 = (chain & _MASK32).to(tl.uint32)
    c1 = (step & _MASK32).to(tl.uint32)
    c2 = q.to(tl.uint32) | (purpose << 24)
    c3 = (((step >> 32) << 16) | (chain >> 32)).to(tl.uint32)
    k0 = (seed & _MASK32).to(tl.uint32)
    k1 = ((seed >> 32) & _MASK32).to(tl.uint32)
    return philox4x32(c0, c1, c2, c3, k0, k1, WIDE)


@triton.jit
def uniform(x):
    """(x >> 9) 2^-23 + 2^-24 in [2^-24, 1 - 2^-24], exact."""
    return ((x >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 0.999999940395355224609375


@triton.jit
def _small_integer(x):
    """int32 in [-2^22, 2^22) to float32, exact."""
    return (x + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0


@triton.jit
def minus_log(u):
    """-ln u for normal u > 0, at most 0.83 ulp over the values of `uniform`."""
    shifted = u.to(tl.int32, bitcast=True) - _SQRT_HALF
    e = _small_integer(shifted >> 23)
    f = ((shifted & 0x007FFFFF) + _SQRT_HALF).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(f, 7.0376836292e-2, -1.1514610310e-1)  # Cephes logf
    p = tl.fma(p, f, 1.1676998740e-1)
    p = tl.fma(p, f, -1.2420140846e-1)
    p = tl.fma(p, f, 1.4249322787e-1)
    p = tl.fma(p, f, -1.6668057665e-1)
    p = tl.fma(p, f, 2.0000714765e-1)
    p = tl.fma(p, f, -2.4999993993e-1)
    p = tl.fma(p, f, 3.3333331174e-1)
    f2 = f * f
    tail = tl.fma(e, -2.12194440e-4, (f2 * f) * p)
    tail = tl.fma(f2, -0.5, tail)
    return -tl.fma(e, 0.693359375, f + tail)


@triton.jit
def cos_sin(x):
    """(cos, sin)(2 pi v), v = (x >> 8) 2^-24; quadrant and rest are exact."""
    turned = x + 0x20000000  # by an eighth: the two highest bits are the quadrant, the next 22 the rest
    # Angle / pi in [-1/4, 1/4): the rest times 2^-23, read as the mantissa of a number in [1, 1.5).
    t = (((turned >> 8) & 0x003FFFFF) | 0x3F800000).to(tl.float32, bitcast=True) - 1.25
    t2 = t * t
    s = tl.fma(t2, 0.0821458866, -0.5992645293)
    s = tl.fma(s, t2, 2.5501640399)
    s = tl.fma(s, t2, -5.1677127800)
    s = tl.fma(s, t2, -8.7422777e-8)  # pi - float(pi)
    s = tl.fma(t, 3.14159274, t * s)
    # A plain polynomial, off by 1.02 2^-24 at most; six operations more, as on the CPU, would make that 0.54.
    c = tl.fma(t2, -0.0258068913, 0.2353306304)
    c = tl.fma(c, t2, -1.3352627689)
    c = tl.fma(c, t2, 4.0587121264)
    c = tl.fma(c, t2, -4.93480220)
    c = tl.fma(c, t2, 1.0)
    odd = (turned & 0x40000000) != 0
    cosine = tl.where(odd, s, c).to(tl.uint32, bitcast=True) ^ ((turned + 0x40000000) & 0x80000000)
    sine = tl.where(odd, c, s).to(tl.uint32, bitcast=True) ^ (turned & 0x80000000)
    # cos changes sign in quadrants 1 and 2, sin in 2 and 3.
    return cosine.to(tl.float32, bitcast=True), sine.to(tl.float32, bitcast=True)


@triton.jit
def _minus_two_log(u):
    """-2 ln u: `minus_log` with every factor doubled, which changes no rounding."""
    shifted = u.to(tl.int32, bitcast=True) - _SQRT_HALF
    e = _small_integer(shifted >> 23)
    f = ((shifted & 0x007FFFFF) + _SQRT_HALF).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(f, 2.0 * 7.0376836292e-2, 2.0 * -1.1514610310e-1)
    p = tl.fma(p, f, 2.0 * 1.1676998740e-1)
    p = tl.fma(p, f, 2.0 * -1.2420140846e-1)
    p = tl.fma(p, f, 2.0 * 1.4249322787e-1)
    p = tl.fma(p, f, 2.0 * -1.6668057665e-1)
    p = tl.fma(p, f, 2.0 * 2.0000714765e-1)
    p = tl.fma(p, f, 2.0 * -2.4999993993e-1)
    p = tl.fma(p, f, 2.0 * 3.3333331174e-1)
    f2 = f * f
    tail = tl.fma(e, 2.0 * -2.12194440e-4, (f2 * f) * p)
    tail = tl.fma(f2, -1.0, tail)
    return tl.fma(e, 2.0 * -0.693359375, -tl.fma(f, 2.0, tail))


@triton.jit
def reciprocal_root(x):
    """1 / sqrt(x) of a normal number, the hardware's estimate without its path for denormals."""
    if INTERPRETED:
        return tl.rsqrt(x)
    else:
        return tl.inline_asm_elementwise("rsqrt.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def square_root(x):
    """Of normal x > 0, within an ulp: the estimate and one step of Newton's method."""
    inverse = reciprocal_root(x)
    root = x * inverse
    return tl.fma(inverse * 0.5, tl.fma(-root, root, x), root)


@triton.jit
def normal_pair(x0, x1):
    """Box-Muller on two words, within 2 ulp of the radius."""
    r = square_root(_minus_two_log(uniform(x0)))  # at least 2^-23, for every uniform is below 1
    c, s = cos_sin(x1)
    return r * c, r * s


@triton.jit
def normal4(seed, step, chain, purpose: tl.constexpr, q, WIDE: tl.constexpr = True):
    """The four standard normals of call q."""
    x0, x1, x2, x3 = words(seed, step, chain, purpose, q, WIDE)
    a, b = normal_pair(x0, x1)
    c, d = normal_pair(x2, x3)
    return a, b, c, d


@triton.jit
def laplace_unit(x):
    """Standard Laplace from one word: the lowest bit is the sign."""
    return (minus_log(uniform(x)).to(tl.uint32, bitcast=True) ^ (x << 31)).to(tl.float32, bitcast=True)


@triton.jit
def laplace4(seed, step, chain, purpose: tl.constexpr, q):
    """The four standard Laplace draws of call q."""
    x0, x1, x2, x3 = words(seed, step, chain, purpose, q)
    return laplace_unit(x0), laplace_unit(x1), laplace_unit(x2), laplace_unit(x3)


@triton.jit
def to_dims(a, b, c, d, ROWS: tl.constexpr, DIMS: tl.constexpr):
    """What calls q = 0, 1, .. gave, each [ROWS, DIMS / 4], in the order of dimensions: [ROWS, DIMS].

    Call 4 j + t holds 16 j + (2 t, 2 t + 1, 2 t + 8, 2 t + 9), which are a thread's own in an accumulator of the
    tensor cores: nothing moves between threads.
    """
    pairs = tl.join(tl.join(a, b), tl.join(c, d))  # [ROWS, q, pair, half]
    blocks = tl.reshape(pairs, (ROWS, DIMS // 16, 4, 2, 2))  # [ROWS, j, t, pair, half]
    return tl.reshape(tl.permute(blocks, (0, 1, 4, 2, 3)), (ROWS, DIMS))
