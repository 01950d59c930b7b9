// Words to normals and Laplace draws in float32: fmaf written out, no libm but sqrt, so every backend rounds alike.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "common/philox.hpp"

namespace mmebm {

struct Pair {
  float a, b;
};

MMEBM_HD float fma32(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

MMEBM_HD float sqrt32(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

MMEBM_HD int32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(x);
#else
  return std::bit_cast<int32_t>(x);
#endif
}

MMEBM_HD float bits_float(int32_t x) {
#if defined(__CUDA_ARCH__)
  return __int_as_float(x);
#else
  return std::bit_cast<float>(x);
#endif
}

// Signed conversions: below 2^24 they say the same and vectorise on every instruction set.
MMEBM_HD float uniform(uint32_t x) { return fma32(static_cast<float>(static_cast<int32_t>(x >> 9)), 0x1p-23f, 0x1p-24f); }

// -ln u for u in [2^-24, 1 - 2^-24]; at most 0.83 ulp over all 2^23 values of uniform().
MMEBM_HD float minus_log(float u) {
  // u = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), so that f keeps its relative accuracy next to u = 1.
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  const int32_t shifted = float_bits(u) - kSqrtHalf;
  const float e = static_cast<float>(shifted >> 23);
  const float f = bits_float((shifted & 0x007fffff) + kSqrtHalf) - 1.0f;
  // Cephes logf: ln(1 + f) = f - f^2 / 2 + f^3 p(f).
  float p = 7.0376836292e-2f;
  p = fma32(p, f, -1.1514610310e-1f);
  p = fma32(p, f, 1.1676998740e-1f);
  p = fma32(p, f, -1.2420140846e-1f);
  p = fma32(p, f, 1.4249322787e-1f);
  p = fma32(p, f, -1.6668057665e-1f);
  p = fma32(p, f, 2.0000714765e-1f);
  p = fma32(p, f, -2.4999993993e-1f);
  p = fma32(p, f, 3.3333331174e-1f);
  const float f2 = f * f;
  float tail = fma32(e, -2.12194440e-4f, (f2 * f) * p);
  tail = fma32(-0.5f, f2, tail);
  // 0.693359375 has 9 bits: its product with e is exact.
  return -fma32(e, 0.693359375f, f + tail);
}

// (cos, sin)(2 pi v) for v = (x >> 8) 2^-24. The quadrant and the rest are integers: nothing is lost in the reduction.
MMEBM_HD Pair cos_sin(uint32_t x) {
  const int32_t k = static_cast<int32_t>(x >> 8);
  const int32_t quadrant = (k + (1 << 21)) >> 22;
  const float t = static_cast<float>(k - (quadrant << 22)) * 0x1p-23f;  // angle / pi in [-1/4, 1/4]
  const float t2 = t * t;
  // Taylor coefficients of sin(pi t) and cos(pi t); the first omitted terms are below 2e-9 at |t| = 1/4.
  float s = fma32(t2, 0.0821458866f, -0.5992645293f);
  s = fma32(s, t2, 2.5501640399f);
  s = fma32(s, t2, -5.1677127800f);
  s = fma32(s, t2, -8.7422777e-8f);  // pi - float(pi)
  s = fma32(t, 3.14159274f, t * s);
  // 1 - h with both roundings of h = pi^2 t^2 / 2 carried along: what is left is the last addition's half ulp.
  float c = fma32(t2, -0.0258068913f, 0.2353306304f);
  c = fma32(c, t2, -1.3352627689f);
  c = fma32(c, t2, 4.0587121264f);
  c = fma32(c, t2, -1.4518579e-7f);  // float(pi^2 / 2) - pi^2 / 2
  const float h = 4.93480206f * t2;
  const float lost = fma32(4.93480206f, t2, -h) + 4.93480206f * fma32(t, t, -t2);
  const float w = 1.0f - h;
  c = w + (((1.0f - w) - h) + fma32(c, t2, -lost));
  const bool odd = quadrant & 1;
  const float cosine = odd ? s : c;
  const float sine = odd ? c : s;
  // cos changes sign in quadrants 1 and 2, sin in 2 and 3; quadrant 4 is 0.
  return {bits_float(float_bits(cosine) ^ (((quadrant + 1) & 2) << 30)), bits_float(float_bits(sine) ^ ((quadrant & 2) << 30))};
}

MMEBM_HD Pair normal_pair(uint32_t x0, uint32_t x1) {
  const float square = 2.0f * minus_log(uniform(x0));
  const float r = sqrt32(square > 0.0f ? square : 0.0f);
  const Pair angle = cos_sin(x1);
  return {r * angle.a, r * angle.b};
}

MMEBM_HD float laplace_unit(uint32_t x) {
  return bits_float(float_bits(minus_log(uniform(x))) ^ static_cast<int32_t>(x << 31));
}

}  // namespace mmebm
