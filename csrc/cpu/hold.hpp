// What holds a chain beside its energy: the reference law, the cap on the gradient and the box; and the update itself.
#pragma once

#include "common/mutant.hpp"
#include "cpu/kernels.hpp"
#include "cpu/lanes.hpp"

namespace mmebm::cpu::MMEBM_ISA {

// -grad log p_0 at x; `inverse` is 1 / scale.
template <int N>
MMEBM_HD Real<N> pull(Real<N> x, Reference reference, float inverse) {
  if (reference == Reference::normal) return x * (inverse * inverse);
  // The sign of x times 1 / scale, and 0 at 0.
  return select(x != 0.0f, with_sign_of(x, inverse), Real<N>(MMEBM_MUTANT(sign_of_zero, inverse, 0.0f)));
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
  if (MMEBM_MUTANT(no_reference, true, hold.reference == Reference::none)) return energy;
  return energy + pull(MMEBM_MUTANT(reference_sign, -x, x), hold.reference, 1.0f / hold.scale[dim]);
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

// One step from x against the drift `by`.
template <int N>
MMEBM_HD Real<N> moved(Real<N> x, Real<N> by, Real<N> eps, float a, float b) {
  const float drift = MMEBM_MUTANT(drift_doubled, 2.0f * a, MMEBM_MUTANT(drift_three_percent, 1.03f * a, a));
  const float noise = MMEBM_MUTANT(noise_over_root_two, 0.70710678f * b, MMEBM_MUTANT(noise_one_percent, 1.01f * b, b));
  return fma32(eps, noise, fma32(by, -drift, x));
}

template <int N>
MMEBM_HD Real<N> moved_in_box(Real<N> x, Real<N> by, Real<N> eps, float a, float b, const Hold& hold) {
  return MMEBM_MUTANT(clamp_before_noise, fma32(eps, b, boxed(fma32(by, -a, x), hold)),
                      boxed(moved(x, by, eps, a, b), hold));
}

}  // namespace mmebm::cpu::MMEBM_ISA
