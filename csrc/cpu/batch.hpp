// A batch in tiles of chains, one tile a thread at a time.
#pragma once

#include "common/mutant.hpp"
#include "cpu/network.hpp"
#include "cpu/transpose.hpp"

namespace mmebm::cpu::MMEBM_ISA {

// Vectors of chains a tile takes. Wide tiles use a weight more often, narrow ones leave no lane or thread idle.
inline int tile_vectors(int64_t rows, int threads) {
  // Time of a tile by its vectors, relative: a broadcast weight serves that many multiply-adds.
  constexpr double kTime[4] = {0.0, 1.25, 2.1, 3.0};
  int best = 1;
  double least = 0.0;
  for (int v = 1; v <= kMaxVectors; ++v) {
    const int64_t tiles = (rows + v * kLanes - 1) / (v * kLanes);
    const int64_t turns = (tiles + threads - 1) / threads;
    const double time = static_cast<double>(turns) * kTime[v];
    if (v == 1 || time <= least) {
      best = v;
      least = time;
    }
  }
  return best;
}

// Packs `net`, then runs body(packed, tile's memory, first row) for every tile of `vectors`; `own` floats are its.
template <int vectors, class Body>
void over_tiles(const Net& net, int64_t rows, int threads, int64_t own, Body body) {
  constexpr int64_t kChains = vectors * kLanes;
  const int64_t tiles = (rows + kChains - 1) / kChains;
  const Packed packed = lay_out(net, scratch(Scratch::shared, packed_size(net)));
  const int64_t all_panels = panels(net);
  const int64_t floats = Tile<vectors>::size(packed) + own;
  const int workers = team(threads, tiles);
  const Workspace workspace(workers, floats);
#pragma omp parallel num_threads(workers) if (workers > 1)
  {
#pragma omp for schedule(static)
    for (int64_t p = 0; p < all_panels; ++p) fill(net, packed, p);
    float* memory = workspace.own();
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < tiles; ++t) body(packed, memory, t * kChains);
  }
}

// The same with the number of vectors chosen.
template <class Body>
void with_vectors(int64_t rows, int threads, Body body) {
  switch (tile_vectors(rows, threads)) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    default:
      return body(std::integral_constant<int, kMaxVectors>{});
  }
}

// B(e) = c tanh(e / c) and B'(e), or e and 1 without a bound.
template <int vectors>
MMEBM_HD ValueAndFirst<Real<vectors>> bounded(Real<vectors> e, float bound) {
  if (bound == 0.0f) return {e, Real<vectors>(1.0f)};
  const auto [value, first] = activate<Activation::tanh>(e * (1.0f / bound), 0.0f);
  return {value * bound, MMEBM_MUTANT(no_bound_derivative, Real<vectors>(1.0f), first)};
}

// Stores the first `rows` lanes.
template <int vectors>
inline void store_lanes(float* to, Real<vectors> x, int64_t rows) {
  float lanes[vectors * kLanes];
  store_block(lanes, x);
  const int64_t n = rows < vectors * kLanes ? rows : vectors * kLanes;
  std::memcpy(to, lanes, static_cast<size_t>(n) * sizeof(float));
}

}  // namespace mmebm::cpu::MMEBM_ISA
