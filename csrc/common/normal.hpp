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
  const R e = to_float(shifted >> 23);
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
  const auto t = to_float(k - (quadrant << 22)) * 0x1p-23f;  // angle / pi in [-1/4, 1/4]
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

#if defined(__CUDA_ARCH__)
// -2 ln u of uniform(): minus_log with every factor doubled, which changes no rounding.
__device__ __forceinline__ float minus_two_log(float u) {
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  const int32_t shifted = __float_as_int(u) - kSqrtHalf;
  const float e = __int_as_float((shifted >> 23) + 0x4b400000) - 12582912.0f;  // the conversion itself is slow
  const float f = __int_as_float((shifted & 0x007fffff) + kSqrtHalf) - 1.0f;
  float p = fmaf(f, 2.0f * 7.0376836292e-2f, 2.0f * -1.1514610310e-1f);
  p = fmaf(p, f, 2.0f * 1.1676998740e-1f);
  p = fmaf(p, f, 2.0f * -1.2420140846e-1f);
  p = fmaf(p, f, 2.0f * 1.4249322787e-1f);
  p = fmaf(p, f, 2.0f * -1.6668057665e-1f);
  p = fmaf(p, f, 2.0f * 2.0000714765e-1f);
  p = fmaf(p, f, 2.0f * -2.4999993993e-1f);
  p = fmaf(p, f, 2.0f * 3.3333331174e-1f);
  const float f2 = f * f;
  float tail = fmaf(e, 2.0f * -2.12194440e-4f, (f2 * f) * p);
  tail = fmaf(f2, -1.0f, tail);
  return fmaf(e, -2.0f * 0.693359375f, -fmaf(f, 2.0f, tail));
}

// cos_sin in fewer instructions. Turned by an eighth, the two highest bits are the quadrant and the next 22 the rest,
// read as a mantissa; the cosine is a plain polynomial, 1.02 2^-24 off at most where the other is 0.54 2^-24.
__device__ __forceinline__ Pair<float> short_cos_sin(uint32_t x) {
  const uint32_t turned = x + 0x20000000u;
  const float t = __uint_as_float((turned >> 8 & 0x003fffffu) | 0x3f800000u) - 1.25f;
  const float t2 = t * t;
  float s = fmaf(t2, 0.0821458866f, -0.5992645293f);
  s = fmaf(s, t2, 2.5501640399f);
  s = fmaf(s, t2, -5.1677127800f);
  s = fmaf(s, t2, -8.7422777e-8f);
  s = fmaf(t, 3.14159274f, t * s);
  float c = fmaf(t2, -0.0258068913f, 0.2353306304f);
  c = fmaf(c, t2, -1.3352627689f);
  c = fmaf(c, t2, 4.0587121264f);
  c = fmaf(c, t2, -4.93480220f);
  c = fmaf(c, t2, 1.0f);
  const bool odd = (turned & 0x40000000u) != 0;
  return {__uint_as_float(__float_as_uint(odd ? s : c) ^ ((turned + 0x40000000u) & 0x80000000u)),
          __uint_as_float(__float_as_uint(odd ? c : s) ^ (turned & 0x80000000u))};
}
#endif

template <class Word>
MMEBM_HD auto normal_pair(Word x0, Word x1) {
#if defined(__CUDA_ARCH__)
  const float r = root(minus_two_log(uniform(x0)));  // at least 2^-23, for every uniform is below 1
  const auto angle = short_cos_sin(x1);
#else
  const auto square = minus_log(uniform(x0)) * 2.0f;
  const auto r = sqrt32(select(square > 0.0f, square, 0.0f));
  const auto angle = cos_sin(x1);
#endif
  return Pair<decltype(r * r)>{r * angle.a, r * angle.b};
}

template <class Word>
MMEBM_HD auto laplace_unit(Word x) {
  return bits_float(float_bits(minus_log(uniform(x))) ^ to_signed(x << 31));
}

}  // namespace mmebm
