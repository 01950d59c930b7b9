#include "cpu/hold.hpp"
#include "cpu/noise.hpp"
#include "cpu/transpose.hpp"
#include "cpu/workers.hpp"

namespace mmebm::cpu::MMEBM_ISA {

namespace {

constexpr int kVectors = kMaxVectors;
constexpr int kChains = kVectors * kLanes;

// Lanes [from, from + kChains) of the steps * rows.
void draw_tile(const DrawCall& call, int64_t from) {
  uint64_t chain[kChains], step[kChains];
  int64_t row = from % call.rows, s = from / call.rows;
  for (int l = 0; l < kChains; ++l) {
    chain[l] = (call.stream.chain + static_cast<uint64_t>(row)) & kMask48;
    step[l] = (call.stream.offset + static_cast<uint64_t>(s)) & kMask48;
    if (++row == call.rows) {
      row = 0;
      ++s;
    }
  }
  Noise<kVectors> noise;
  noise.start(call.stream.seed, chain, step);
  alignas(64) float tile[16 * kChains];
  for (int64_t block = 0; block < call.dim; block += 16) {
    const int64_t dims = call.dim - block < 16 ? call.dim - block : 16;
    for (int64_t t = 0; t < 4 && 2 * t < dims; ++t) {
      const uint32_t q = static_cast<uint32_t>(block / 4 + t);
      Real<kVectors> x[4];
      if (call.law == Law::normal) {
        noise.normals(call.purpose, q, x);
      } else {
        Block<uint32_t, kVectors> words[4];
        noise.words(call.purpose, q, words);
        for (int j = 0; j < 4; ++j) x[j] = laplace_unit(words[j]);
      }
      for (int j = 0; j < 4; ++j) {
        const int64_t i = 2 * t + kDimsOfCall[j];
        if (i >= dims) continue;
        store_block(tile + i * kChains, call.scale ? x[j] * call.scale[block + i] : x[j]);
      }
    }
    scatter(tile, dims, call.steps * call.rows - from, kChains, call.out + from * call.dim + block, call.dim);
  }
}

}  // namespace

void draw(const DrawCall& call, int threads) {
  constexpr int64_t kPiece = 256;  // tiles: a small draw stays on the calling thread
  const int64_t tiles = (call.steps * call.rows + kChains - 1) / kChains;
  [[maybe_unused]] const int workers = team(threads, tiles * ((call.dim + 15) / 16) / kPiece);
#pragma omp parallel for schedule(static) num_threads(workers) if (workers > 1)
  for (int64_t t = 0; t < tiles; ++t) draw_tile(call, t * kChains);
}

void langevin_update(const UpdateCall& call, int threads) {
  const int64_t tiles = (call.rows + kChains - 1) / kChains;
  const int workers = team(threads, tiles * ((call.dim + 15) / 16) / 64);
  const int64_t size = call.dim * kChains;
  const Workspace workspace(workers, 2 * size);
#pragma omp parallel for schedule(static) num_threads(workers) if (workers > 1)
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t row = t * kChains, rows = call.rows - row;
    uint64_t chain[kChains], step[kChains];
    for (int l = 0; l < kChains; ++l) {
      chain[l] = (call.stream.chain + static_cast<uint64_t>(row + l)) & kMask48;
      step[l] = call.stream.offset & kMask48;
    }
    Noise<kVectors> noise;
    noise.start(call.stream.seed, chain, step);
    float* z = workspace.own();
    float* grad = z + size;
    gather(call.z + row * call.dim, call.dim, rows, kChains, z);
    gather(call.grad + row * call.dim, call.dim, rows, kChains, grad);
    Real<kVectors> factor = call.t;
    if (call.hold.grad_clip != 0.0f) {
      factor = clip_factor(sum_of_squares<kVectors>(grad, call.dim), call.hold.grad_clip) * call.t;
    }
    const int64_t n = calls(call.dim);
    for (int64_t q = 0; q < n; ++q) {
      Real<kVectors> eps[4];
      noise.normals(static_cast<uint32_t>(Purpose::chain), static_cast<uint32_t>(q), eps);
      for (int j = 0; j < 4; ++j) {
        const int64_t i = first_dim(q) + kDimsOfCall[j];
        if (i >= call.dim) continue;
        const Real<kVectors> x = load_block<kVectors>(z + i * kChains);
        const Real<kVectors> by = drift(x, load_block<kVectors>(grad + i * kChains), factor, call.hold, i);
        store_block(z + i * kChains, moved_in_box(x, by, eps[j], call.a, call.b, call.hold));
      }
    }
    scatter(z, call.dim, rows, kChains, call.out + row * call.dim);
  }
}

}  // namespace mmebm::cpu::MMEBM_ISA
