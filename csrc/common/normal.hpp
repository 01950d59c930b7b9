// Words to normals and Laplace draws in float32: multiply-adds written out, no libm but sqrt, so every backend rounds
// alike. R is float or a block of lanes, Word its unsigned 32-bit companion.
#pragma once

#include "common/mutant.hpp"
#include "common/philox.hpp"
#include "common/real.hpp"

namespace mmebm {

template <class R>
struct Pair {
  R a, b;
};

// Signed conversions: below 2^24 they say the same and every instruction set has them.
template <class Word>
MMEBM_HD auto uniform(Word x) {
#if defined(__CUDA_ARCH__)
  return bits_float(to_signed(x >> 9 | 0x3f800000u)) - 0x1.fffffep-1f;  // the same, without the slow conversion
#else
  return fma32(to_float(to_signed(x >> 9)), 0x1p-23f, MMEBM_MUTANT(uniform_from_zero, 0.0f, 0x1p-24f));
#endif
}

// -ln u for normal u > 0; at most 0.83 ulp over all 2^23 values of uniform().
template <class R>
MMEBM_HD R minus_log(R u) {
  // u = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), so that f keeps its relative accuracy next to u = 1.
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  const auto shifted = float_bits(u) - kSqrtHalf;
  const R e = small_to_float(shifted >> 23);
  const R f = bits_float((shifted & 0x007fffff) + kSqrtHalf) - 1.0f;
  // Cephes logf: ln(1 + f) = f - f^2 / 2 + f^3 p(f).
  R p = fma32(f, 7.0376836292e-2f, -1.1514610310e-1f);
  p = fma32(p, f, 1.1676998740e-1f);
  p = fma32(p, f, -1.2420140846e-1f);
  p = fma32(p, f, 1.4249322787e-1f);
  p = fma32(p, f, -1.6668057665e-1f);
  p = fma32(p, f, 2.0000714765e-1f);
  p = fma32(p, f, -2.4999993993e-1f);
  p = fma32(p, f, 3.3333331174e-1f);
  const R f2 = f * f;
  R tail = fma32(e, -2.12194440e-4f, (f2 * f) * p);
  tail = fma32(f2, -0.5f, tail);
  // 0.693359375 has 9 bits: its product with e is exact.
  return -fma32(e, 0.693359375f, f + tail);
}

// (cos, sin)(2 pi v) for v = (x >> 8) 2^-24. The quadrant and the rest are integers: nothing is lost in the reduction.
template <class Word>
MMEBM_HD auto cos_sin(Word x) {
  const auto k = to_signed(x >> 8);
  const auto quadrant = (k + (1 << 21)) >> 22;
  const auto t = small_to_float(k - (quadrant << 22)) * 0x1p-23f;  // angle / pi in [-1/4, 1/4]
  using R = decltype(t * t);
  const R t2 = t * t;
  // Taylor coefficients of sin(pi t) and cos(pi t); the first omitted terms are below 2e-9 at |t| = 1/4.
  R s = fma32(t2, 0.0821458866f, -0.5992645293f);
  s = fma32(s, t2, 2.5501640399f);
  s = fma32(s, t2, -5.1677127800f);
  s = fma32(s, t2, -8.7422777e-8f);  // pi - float(pi)
  s = fma32(t, 3.14159274f, t * s);
  // 1 - h with both roundings of h = pi^2 t^2 / 2 carried along: what is left is the last addition's half ulp.
  R c = fma32(t2, -0.0258068913f, 0.2353306304f);
  c = fma32(c, t2, -1.3352627689f);
  c = fma32(c, t2, 4.0587121264f);
  c = fma32(c, t2, -1.4518579e-7f);  // float(pi^2 / 2) - pi^2 / 2
  const R h = t2 * 4.93480206f;
  const R lost = fma32(t2, 4.93480206f, -h) + fma32(t, t, -t2) * 4.93480206f;
  const R w = 1.0f - h;
  c = w + (((1.0f - w) - h) + fma32(c, t2, -lost));
  const auto odd = (quadrant & 1) != 0;
  const R cosine = select(odd, s, c);
  const R sine = select(odd, c, s);
  // cos changes sign in quadrants 1 and 2, sin in 2 and 3; quadrant 4 is 0.
  return Pair<R>{bits_float(float_bits(cosine) ^ (((quadrant + 1) & 2) << 30)),
                 bits_float(float_bits(sine) ^ ((quadrant & 2) << 30))};
}

template <class Word>
MMEBM_HD auto normal_pair(Word x0, Word x1) {
  const auto square = minus_log(uniform(x0)) * 2.0f;
  const auto r = root(select(square > 0.0f, square, 0.0f));
  const auto angle = cos_sin(x1);
  return Pair<decltype(r * r)>{r * angle.a, r * angle.b};
}

template <class Word>
MMEBM_HD auto laplace_unit(Word x) {
  return bits_float(float_bits(minus_log(uniform(x))) ^ to_signed(x << 31));
}

}  // namespace mmebm
