// The register tile: kRows outputs for kVectors vectors of chains. Lanes are chains, so nothing is ever summed across
// lanes and every chain's arithmetic is the same in whatever tile it lies.
#pragma once

#include "cpu/lanes.hpp"

namespace mmebm::cpu::MMEBM_ISA {

// 8 x 3 accumulators, 3 operands and a broadcast fill 32 registers; 6 x 2, 2 and 1 fill 16.
inline constexpr int kRows = kManyRegisters ? 8 : 6;

constexpr int64_t whole_rows(int64_t n) { return (n + kRows - 1) / kRows * kRows; }

// sum[r] += sum_k w(k, r) x[k] for kRows rows; x is [terms][vectors * kLanes].
template <int vectors, class Weight>
MMEBM_HD void accumulate(Floats (&sum)[kRows][vectors], Weight w, int64_t terms, const float* x) {
#pragma GCC unroll 2
  for (int64_t k = 0; k < terms; ++k) {
    Floats in[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) in[v] = load(x + (k * vectors + v) * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Floats by = broadcast(w(k, r));
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[r][v] = multiply_add(by, in[v], sum[r][v]);
    }
  }
}

// Terms that a sum takes in one run. A longer one is a sum of runs: a run's rounding grows with its length.
inline constexpr int64_t kLongest = 512, kRun = 64;

// `panel` for more terms than that. Not inlined: it would cost the others registers.
template <int vectors>
[[gnu::noinline]] void long_panel(const float* w, int64_t terms, const float* x, const float* start, const float* scale,
                                  float* y) {
  Floats total[kRows][vectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < vectors; ++v) total[r][v] = broadcast(start ? start[r] : 0.0f);
  }
  for (int64_t from = 0; from < terms; from += kRun) {
    Floats run[kRows][vectors] = {};
    const float* at = w + from * kRows;
    accumulate<vectors>(run, [at](int64_t k, int r) MMEBM_INLINE { return at[k * kRows + r]; },
                        terms - from < kRun ? terms - from : kRun, x + from * vectors * kLanes);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < vectors; ++v) total[r][v] += run[r][v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < vectors; ++v) {
      const int64_t at = (r * vectors + v) * kLanes;
      store(y + at, scale ? total[r][v] * load(scale + at) : total[r][v]);
    }
  }
}

// y[r] = (start[r] + sum_k w[k][r] x[k]) * scale[r] for kRows rows; w packed [terms][kRows], x, y and scale
// [row][chains], start a number a row; start and scale may be null, and y may be scale.
template <int vectors>
inline void panel(const float* w, int64_t terms, const float* x, const float* start, const float* scale, float* y) {
  if (terms > kLongest) return long_panel<vectors>(w, terms, x, start, scale, y);
  Floats sum[kRows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[r][v] = broadcast(start ? start[r] : 0.0f);
  }
  accumulate<vectors>(sum, [w](int64_t k, int r) MMEBM_INLINE { return w[k * kRows + r]; }, terms, x);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      const int64_t at = (r * vectors + v) * kLanes;
      store(y + at, scale ? sum[r][v] * load(scale + at) : sum[r][v]);
    }
  }
}

// y[r] += sum_c delta[r][c] x[c] over the chains c of a tile: delta [kRows][chains], x [chains][vectors * kLanes],
// y [kRows][vectors * kLanes].
template <int vectors, int chains>
inline void outer_panel(const float* delta, const float* x, float* y) {
  Floats sum[kRows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[r][v] = load(y + (r * vectors + v) * kLanes);
  }
  accumulate<vectors>(sum, [delta](int64_t k, int r) MMEBM_INLINE { return delta[r * chains + k]; }, chains, x);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) store(y + (r * vectors + v) * kLanes, sum[r][v]);
  }
}

}  // namespace mmebm::cpu::MMEBM_ISA
