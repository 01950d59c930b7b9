// What holds a chain beside its energy: the reference law, the cap on the gradient and the box; and the update itself.
#pragma once

#include "cpu/kernels.hpp"
#include "cpu/lanes.hpp"

namespace mmebm::cpu::MMEBM_ISA {

// -grad log p_0 at x; `inverse` is 1 / scale.
template <int N>
MMEBM_HD Real<N> pull(Real<N> x, Reference reference, float inverse) {
  if (reference == Reference::normal) return x * (inverse * inverse);
  // The sign of x times 1 / scale, and 0 at 0.
  return select(x != 0.0f, with_sign_of(x, inverse), Real<N>(0.0f));
}

// log p_0(x) - log p_0(y), one dimension.
template <int N>
MMEBM_HD Real<N> log_ratio(Real<N> x, Real<N> y, Reference reference, float inverse) {
  if (reference == Reference::normal) return (y - x) * (y + x) * (0.5f * inverse * inverse);
  return (absolute(y) - absolute(x)) * inverse;
}

// t grad' - grad log p_0, grad' = grad by `factor` (the bound's derivative, the clip).
template <int N>
MMEBM_HD Real<N> drift(Real<N> x, Real<N> grad, Real<N> factor, const Hold& hold, int64_t dim) {
  const Real<N> energy = grad * factor;
  if (hold.reference == Reference::none) return energy;
  return energy + pull(x, hold.reference, 1.0f / hold.scale[dim]);
}

// min(1, clip / |grad|) by chain; a NaN stays one.
template <int N>
MMEBM_HD Real<N> clip_factor(Real<N> squares, float clip) {
  const Real<N> norm = sqrt32(squares);
  const Real<N> over = each<float, N>([&](int i) MMEBM_INLINE { return larger(broadcast(clip), norm.v[i]); });
  return each<float, N>([&](int i) MMEBM_INLINE { return clip / over.v[i]; });
}

// Per chain, over the dims of a tile [dim][chains].
template <int vectors>
inline Real<vectors> sum_of_squares(const float* tile, int64_t dim) {
  Real<vectors> sum = 0.0f;
  for (int64_t i = 0; i < dim; ++i) {
    const Real<vectors> x = load_block<vectors>(tile + i * vectors * kLanes);
    sum = fma32(x, x, sum);
  }
  return sum;
}

template <int N>
MMEBM_HD Real<N> boxed(Real<N> x, const Hold& hold) {
  if (hold.lower > -__builtin_inff()) x = at_least(x, hold.lower);
  if (hold.upper < __builtin_inff()) x = at_most(x, hold.upper);
  return x;
}

}  // namespace mmebm::cpu::MMEBM_ISA
