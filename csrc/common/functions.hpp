// Elementary functions for float or blocks of lanes, NaN in, NaN out. Errors are against exact values in float64.
#pragma once

#include "common/normal.hpp"
#include "common/real.hpp"

namespace mmebm {

template <class R>
MMEBM_HD R absolute(R x) {
  return bits_float(float_bits(x) & 0x7fffffff);
}

namespace detail {
// 2^r on [-1/2, 1/2] within 9.2e-8, and 1 at 0.
template <class R>
MMEBM_HD R power_of_two(R r) {
  R p = fma32(r, 0.001326472513f, 0.009671512998f);
  p = fma32(p, r, 0.0555073375f);
  p = fma32(p, r, 0.2402224208f);
  p = fma32(p, r, 0.6931469776f);
  return fma32(p, r, 1.0f);
}
}  // namespace detail

// e^x within 1.3 ulp on [-87, 88]; below and above it stands still.
template <class R>
MMEBM_HD R exp32(R x) {
  constexpr float kRound = 0x1.8p23f;
  x = at_least(at_most(x, 88.0f), -87.0f);
  const R whole = fma32(x, 1.44269504f, kRound);
  const R n = whole - kRound;
  R f = fma32(n, -0.693359375f, x);  // Cody and Waite: x - n ln 2 in two parts
  f = fma32(n, 2.12194440e-4f, f);
  R p = fma32(f, 1.9875691500e-4f, 1.3981999507e-3f);  // Cephes expf
  p = fma32(p, f, 8.3334519073e-3f);
  p = fma32(p, f, 4.1665795894e-2f);
  p = fma32(p, f, 1.6666665459e-1f);
  p = fma32(p, f, 5.0000001201e-1f);
  p = fma32(p, f * f, f) + 1.0f;
  return scaled_by_power(p, whole);
}

// e^x for x <= 0, within 1e-7 of the largest it can be: a term of a sum whose largest term is e^0.
template <class R>
MMEBM_HD R exp_below(R x) {
  constexpr float kRound = 0x1.8p23f;
  x = at_least(x, -69.0f);  // 1e-30: its products with what is not tiny stay normal numbers
  const R whole = fma32(x, 1.44269504f, kRound);
  return scaled_by_power(detail::power_of_two(fma32(x, 1.44269504f, kRound - whole)), whole);
}

// e^x - 1 without cancellation next to 0: 2^n (2^f - 1) + (2^n - 1). Stands still past [-87, 88].
template <class R>
MMEBM_HD R expm1_32(R x) {
  constexpr float kRound = 0x1.8p23f;
  x = at_least(at_most(x, 88.0f), -87.0f);
  const R whole = fma32(x, 1.44269504f, kRound);
  const R f = fma32(x, 1.44269504f, kRound - whole);
  R p = fma32(f, 0.000154531629f, 0.00133908634f);  // (2^f - 1) / f on [-1/2, 1/2] within 8e-9
  p = fma32(p, f, 0.00961808256f);
  p = fma32(p, f, 0.0555035711f);
  p = fma32(p, f, 0.240226508f);
  p = fma32(p, f, 0.693147188f);
  const R scale = scaled_by_power(R(1.0f), whole);
  return fma32(scale, p * f, scale - 1.0f);
}

// ln x for normal x > 0.
template <class R>
MMEBM_HD R log32(R x) {
  return fma32(x, 0.0f, -minus_log(x));  // minus_log itself takes a NaN's bits for a number
}

template <class R>
struct Logistic {
  R s, rest;  // 1 / (1 + e^-x) and its complement, neither by cancellation
};

#if defined(__CUDA_ARCH__)
// 2^x for x in [-126, 127], within 2 ulp.
__device__ __forceinline__ float hardware_power_of_two(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
#endif

// Both within 1.5e-7. The exponential's argument is not split in two parts: s (1 - s) |x| damps what that loses.
template <class R>
MMEBM_HD Logistic<R> logistic(R x) {
#if defined(__CUDA_ARCH__)
  const R e = hardware_power_of_two(at_least(x, -69.0f) * -1.44269504f);
#else
  constexpr float kRound = 0x1.8p23f;
  x = at_least(at_most(x, 69.0f), -69.0f);  // e^-69 = 1e-30: its products stay normal numbers, which are fast
  const R whole = fma32(x, -1.44269504f, kRound);
  const R e = scaled_by_power(detail::power_of_two(fma32(x, -1.44269504f, kRound - whole)), whole);  // e^-x
#endif
  const R s = reciprocal(e + 1.0f);
  return {s, e * s};
}

// Within 2 ulp.
template <class R>
MMEBM_HD R tanh32(R x) {
  const R square = x * x;
  R p = fma32(square, -0.0066255973f, 0.0213175246f);  // tanh x / x on [0, 0.55], within 4e-9
  p = fma32(p, square, -0.0539107491f);
  p = fma32(p, square, 0.133331204f);
  p = fma32(p, square, -0.333333321f);
  const R near = fma32(p * square, x, x);
  const Logistic<R> twice = logistic(absolute(x) * 2.0f);
  const R far = bits_float(float_bits(twice.s - twice.rest) | (float_bits(x) & INT32_MIN));
  return select(square < 0.3f, near, far);
}

}  // namespace mmebm
