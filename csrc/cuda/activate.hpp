// Activations at bf16's accuracy, silu's of half of what it is a function of: by the hardware's tanh (relative error 2^-11), one slow instruction each. The host has
// no such tanh, and takes the exact ones.
#pragma once

#include "common/activation.hpp"
#include "cuda/simt.hpp"

namespace mmebm::cuda {

#if defined(__CUDA_ARCH__)
__device__ __forceinline__ float hardware_tanh(float x) {
  float out;
  asm("tanh.approx.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
#endif

// silu(2 y) and twice its derivative there.
MMEBM_BODY ValueAndFirst<float> silu_of_half(float y) {
#if defined(__CUDA_ARCH__)
  const float p = hardware_tanh(y) + 1.0f;  // 2 logistic(2 y)
#else
  const float p = 2.0f * logistic(2.0f * y).s;
#endif
  const float value = y * p;
  return {value, fma32(p, fma32(y, 2.0f, -value), p)};
}

template <Activation kind, bool near>
MMEBM_BODY ValueAndFirst<float> activate(float x, float slope) {
#if defined(__CUDA_ARCH__)
  if constexpr (near && kind == Activation::gelu_tanh) {
    const float square = x * x;
    const float s = fmaf(hardware_tanh(x * fmaf(square, 0.0356774081f, 0.79788456f)), 0.5f, 0.5f), value = x * s;
    const float steep = at_most(fmaf(square, 0.214064449f, 1.59576912f), 100.0f);  // past |x| = 12 it meets a zero
    return {value, fmaf(value * (1.0f - s), steep, s)};
  }
  if constexpr (near && kind == Activation::tanh) {
    const float value = hardware_tanh(x);
    return {value, fmaf(-value, value, 1.0f)};
  }
#endif
  if constexpr (near && kind == Activation::silu) return silu_of_half(x);
  return mmebm::activate<kind>(x, slope);
}

}  // namespace mmebm::cuda
