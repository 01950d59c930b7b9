// What the kernels for whole chains share: the call, and a step's noise.
#pragma once

#include "common/normal.hpp"
#include "cuda/hold.hpp"
#include "cuda/split.hpp"

namespace mmebm::cuda {

inline constexpr int kMaxLinear = 4;  // up to three hidden layers and the last

struct Net {
  const float* weight[kMaxLinear];  // [out, in]
  const float* bias[kMaxLinear];    // [out]
  int in[kMaxLinear], out[kMaxLinear];
  int linear;  // layers, the last included: at least two
  Activation activation;
  float slope, bound;  // bound 0: none
};

struct ChainCall {
  const float* z;  // [rows, dim]
  int64_t rows, steps;
  Net net;
  const float* coefficients;  // [steps, 3]: a, b, t
  const int64_t* rng;         // seed, offset, first chain
  Hold hold;
  int64_t record_every;  // 0: nothing is kept
  float* out;            // [rows, dim]
  float *states, *energies;  // [steps / record_every, rows(, dim)]
  // [rows], asked for together, or null; the last two are of the adjusted chain alone.
  float *mean_energy, *grad_norm, *displacement, *acceptance, *work;
};

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
