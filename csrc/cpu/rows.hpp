// Rows of contiguous dims, lanes along the dims: chunks of several vectors, then of one, the last in part.
#pragma once

#include <cstring>

#include "cpu/transpose.hpp"
#include "cpu/workers.hpp"

namespace mmebm::cpu::MMEBM_ISA {

inline constexpr int kRowVectors = 4;

template <int N>
struct Chunk {
  static constexpr int vectors = N;

  int64_t at;    // first dim
  int64_t live;  // dims, fewer than N * kLanes in the last chunk of one vector

  MMEBM_HD bool whole() const { return N > 1 || live == kLanes; }

  // Lanes past the end hold `past`.
  MMEBM_HD Real<N> load(const float* row, float past = 0.0f) const {
    if (whole()) return load_block<N>(row + at);
    Real<N> x = past;
    std::memcpy(&x.v[0], row + at, static_cast<size_t>(live) * sizeof(float));
    return x;
  }
  MMEBM_HD void store(float* row, Real<N> x) const {
    if (whole()) return store_block(row + at, x);
    std::memcpy(row + at, &x.v[0], static_cast<size_t>(live) * sizeof(float));
  }
  // x with 0 in the lanes past the end.
  MMEBM_HD Real<N> inside(Real<N> x) const {
    if (whole()) return x;
    Real<N> kept = 0.0f;
    std::memcpy(&kept.v[0], &x.v[0], static_cast<size_t>(live) * sizeof(float));
    return kept;
  }
  // Past the caches, for a result larger than they are: whole lines, one after the other.
  MMEBM_HD void stream(float* row, Real<N> x) const {
    for (int v = 0; v < N; ++v) {
#if defined(__AVX512F__)
      _mm512_stream_ps(row + at + v * kLanes, x.v[v]);
#elif defined(__AVX2__)
      _mm256_stream_ps(row + at + v * kLanes, x.v[v]);
#else
      MMEBM_ISA::store(row + at + v * kLanes, x.v[v]);
#endif
    }
  }
};

// body(chunk) over all dims of a row.
template <class Body>
MMEBM_HD void over_dims(int64_t dim, Body body) {
  int64_t i = 0;
  for (; i + kRowVectors * kLanes <= dim; i += kRowVectors * kLanes) body(Chunk<kRowVectors>{i, kRowVectors * kLanes});
  for (; i < dim; i += kLanes) body(Chunk<1>{i, dim - i < kLanes ? dim - i : kLanes});
}

// Threads for so many rows of so many floats each: below some 16,000 floats a second one costs more than it brings.
inline int row_team(int threads, int64_t rows, int64_t floats) {
  const int64_t pieces = rows * floats >> 14;
  return team(threads, pieces < rows ? pieces : rows);
}

// Lane i is the sum of x[i]'s lanes; x is used up.
MMEBM_HD Floats sums_across(Floats (&x)[kLanes]) {
  transpose(x);
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) x[i] += x[i + step];
  }
  return x[0];
}

template <int N>
MMEBM_HD Floats folded(Real<N> x) {
  Floats sum = x.v[0];
  for (int v = 1; v < N; ++v) sum += x.v[v];
  return sum;
}

}  // namespace mmebm::cpu::MMEBM_ISA
