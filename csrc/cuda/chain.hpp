// What the kernels for whole chains share.
#pragma once

#include "common/normal.hpp"
#include "cuda/hold.hpp"
#include "cuda/kernels.hpp"
#include "cuda/split.hpp"

namespace mmebm::cuda {

struct Step {
  float a, b, t;
};

MMEBM_BODY Step step_of(const ChainCall& call, int64_t k) {
  return {call.coefficients[3 * k], call.coefficients[3 * k + 1], call.coefficients[3 * k + 2]};
}

// Where a chain's words come from: read once, for stores in between would have it read again.
struct Source {
  uint64_t seed, offset, chain;

  MMEBM_BODY Source(const ChainCall& call, int64_t row)
      : seed(static_cast<uint64_t>(call.rng[0])),
        offset(static_cast<uint64_t>(call.rng[1])),
        chain((static_cast<uint64_t>(call.rng[2]) + static_cast<uint64_t>(row)) & kMask48) {}

  MMEBM_BODY Words words(int64_t k, Purpose purpose, int q) const {
    const uint64_t step = (offset + static_cast<uint64_t>(k)) & kMask48;
    return mmebm::words(seed, chain, step, static_cast<uint32_t>(purpose), static_cast<uint32_t>(q));
  }

  // The four normals of call q.
  MMEBM_BODY void noise(int64_t k, int q, float (&eps)[4]) const {
    const Words x = words(k, Purpose::chain, q);
    const auto one = normal_pair(x.x0, x.x1), two = normal_pair(x.x2, x.x3);
    eps[0] = one.a, eps[1] = one.b, eps[2] = two.a, eps[3] = two.b;
  }
};

}  // namespace mmebm::cuda
