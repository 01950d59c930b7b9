// The vocabulary that kernels' formulas are written in, for a single float. csrc/cpu/lanes.hpp has the same names for
// blocks of SIMD vectors, so that one formula serves CPU lanes, GPU threads and tests.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MMEBM_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define MMEBM_HD inline __attribute__((always_inline))
#else
#define MMEBM_HD inline
#endif

namespace mmebm {

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
  return __builtin_bit_cast(int32_t, x);
#endif
}

MMEBM_HD float bits_float(int32_t x) {
#if defined(__CUDA_ARCH__)
  return __int_as_float(x);
#else
  return __builtin_bit_cast(float, x);
#endif
}

MMEBM_HD float to_float(int32_t x) { return static_cast<float>(x); }
MMEBM_HD int32_t to_signed(uint32_t x) { return static_cast<int32_t>(x); }
MMEBM_HD float select(bool condition, float yes, float no) { return condition ? yes : no; }

// NaN stays NaN.
MMEBM_HD float at_most(float x, float top) {
#if defined(__CUDA_ARCH__)
  float out;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(x), "f"(top));
  return out;
#else
  return x > top ? top : x;
#endif
}
MMEBM_HD float at_least(float x, float low) {
#if defined(__CUDA_ARCH__)
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(x), "f"(low));
  return out;
#else
  return x < low ? low : x;
#endif
}

// 1 / x of a normal x to about an ulp; lanes refine the hardware's estimate.
MMEBM_HD float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
#else
  return 1.0f / x;
#endif
}

#if defined(__CUDA_ARCH__)
// The square root of x in [2^-24, 2^24], within an ulp: the estimate of 1 / sqrt(x) and one step of Newton's method.
__device__ __forceinline__ float root(float x) {
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  const float near = x * inverse;
  return fmaf(inverse * 0.5f, fmaf(-near, near, x), near);
}
#endif

// p 2^n for n = whole - 1.5 2^23 in [-126, 127]: adding that constant left n in the low bits of `whole`.
MMEBM_HD float scaled_by_power(float p, float whole) {
  return p * bits_float(static_cast<int32_t>((static_cast<uint32_t>(float_bits(whole)) << 23) + 0x3f800000u));
}

}  // namespace mmebm
