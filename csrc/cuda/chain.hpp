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

MMEBM_BODY Words words_of(const ChainCall& call, int64_t row, int64_t k, Purpose purpose, int q) {
  const uint64_t step = (static_cast<uint64_t>(call.rng[1]) + static_cast<uint64_t>(k)) & kMask48;
  const uint64_t chain = (static_cast<uint64_t>(call.rng[2]) + static_cast<uint64_t>(row)) & kMask48;
  return words(static_cast<uint64_t>(call.rng[0]), chain, step, static_cast<uint32_t>(purpose), static_cast<uint32_t>(q));
}

// The four normals of call q.
MMEBM_BODY void noise(const ChainCall& call, int64_t row, int64_t k, int q, float (&eps)[4]) {
  const Words x = words_of(call, row, k, Purpose::chain, q);
  const auto one = normal_pair(x.x0, x.x1), two = normal_pair(x.x2, x.x3);
  eps[0] = one.a, eps[1] = one.b, eps[2] = two.a, eps[3] = two.b;
}

MMEBM_HD int padded(int n) { return (n + 15) / 16 * 16; }

}  // namespace mmebm::cuda
