// What holds a chain beside its energy: the reference law, the cap on the gradient and the box; and the network's bound.
#pragma once

#include "common/activation.hpp"
#include "cuda/kernels.hpp"
#include "cuda/simt.hpp"

namespace mmebm::cuda {

// -grad log p_0 at x, `inverse` being 1 / scale. A NaN stays one where this is added to it.
MMEBM_BODY float pull(Reference reference, float x, float inverse) {
  if (reference == Reference::none) return 0.0f;
  if (reference == Reference::normal) return x * (inverse * inverse);
  return x == 0.0f ? 0.0f : bits_float(float_bits(inverse) | (float_bits(x) & INT32_MIN));
}

// log p_0(x) - log p_0(y), one dimension.
MMEBM_BODY float log_ratio(Reference reference, float x, float y, float inverse) {
  if (reference == Reference::none) return 0.0f;
  if (reference == Reference::normal) return (y - x) * (y + x) * (0.5f * inverse * inverse);
  return (absolute(y) - absolute(x)) * inverse;
}

// What the cap makes of a gradient of that norm: a factor; a NaN stays one.
MMEBM_BODY float clipped(float norm, float clip) { return clip / at_least(norm, clip); }

MMEBM_BODY float boxed(const Hold& hold, float x) { return at_least(at_most(x, hold.upper), hold.lower); }

// c tanh(e / c) and its derivative; bound 0 is none.
MMEBM_BODY ValueAndFirst<float> bounded(float e, float bound) {
  if (bound == 0.0f) return {e, 1.0f};
  const auto [value, first] = mmebm::activate<Activation::tanh>(e * (1.0f / bound), 0.0f);
  return {value * bound, first};
}

}  // namespace mmebm::cuda
