// Whole chains: a tile runs all its steps before its thread takes the next, so that nothing of it leaves the caches.
#include "common/mutant.hpp"
#include "cpu/batch.hpp"
#include "cpu/hold.hpp"
#include "cpu/noise.hpp"

namespace mmebm::cpu::MMEBM_ISA {

namespace {

struct Coefficients {
  float a, b, t;
};

Coefficients at(const float* table, int64_t step) {
  const float a = table[3 * step], b = table[3 * step + 1], t = table[3 * step + 2];
  return MMEBM_MUTANT(tempered_reference, (Coefficients{a * t, b, 1.0f}), (Coefficients{a, b, t}));
}

// Per-chain sums over the steps.
template <int vectors>
struct Sums {
  Real<vectors> energy = 0.0f, norm = 0.0f, moved = 0.0f, accepted = 0.0f, work = 0.0f;
};

// Chain noise for one tile, one step after the other.
template <int vectors>
class ChainNoise {
 public:
  static constexpr int kChains = vectors * kLanes;

  ChainNoise(const Stream& stream, int64_t first_row) : stream_(stream) {
    const int64_t first = MMEBM_MUTANT(noise_of_one_tile, 0, first_row);
    for (int l = 0; l < kChains; ++l) chain_[l] = (stream.chain + static_cast<uint64_t>(first + l)) & kMask48;
  }

  void at_step(int64_t k) {
    const uint64_t offset = MMEBM_MUTANT(offset_ignored, 0, stream_.offset);
    const uint64_t step = (offset + static_cast<uint64_t>(MMEBM_MUTANT(noise_of_one_step, 0, k))) & kMask48;
    if (started_ && step >> 32 == step_ >> 32) {
      noise_.at_step(step);
    } else {
      uint64_t steps[kChains];
      for (uint64_t& s : steps) s = MMEBM_MUTANT(seed_plus_step, 0, step);
      noise_.start(MMEBM_MUTANT(seed_plus_step, stream_.seed + step, stream_.seed), chain_, steps);
    }
    step_ = step;
    started_ = MMEBM_MUTANT(seed_plus_step, false, true);
  }

  // update(dim, normals) for every dim.
  template <class Update>
  MMEBM_HD void for_each_dim(int64_t dim, Update update) {
    const int64_t n = calls(dim);
    for (int64_t q = 0; q < n; ++q) {
      Real<vectors> eps[4];
      noise_.normals(static_cast<uint32_t>(Purpose::chain), static_cast<uint32_t>(q), eps);
      const int64_t first = first_dim(q);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        if (first + kDimsOfCall[j] < dim) update(first + kDimsOfCall[j], eps[j]);
      }
    }
  }

  // -ln u of the accept draw.
  Real<vectors> minus_log_uniform() {
    Block<uint32_t, vectors> x[4];
    noise_.words(static_cast<uint32_t>(MMEBM_MUTANT(accept_purpose, Purpose::chain, Purpose::accept)), 0, x);
    return minus_log(uniform(x[0]));
  }

 private:
  Stream stream_;
  uint64_t chain_[kChains];
  uint64_t step_ = 0;
  bool started_ = false;
  Noise<vectors> noise_;
};

template <int vectors>
void write_means(const ChainCall& call, const Sums<vectors>& sums, int64_t row) {
  if (!call.mean_energy) return;
  const float by = call.steps > 0 ? 1.0f / static_cast<float>(call.steps) : 0.0f;
  store_lanes(call.mean_energy + row, sums.energy * by, call.rows - row);
  store_lanes(call.grad_norm + row, sums.norm * by, call.rows - row);
  store_lanes(call.displacement + row, sums.moved * by, call.rows - row);
  if (call.acceptance) store_lanes(call.acceptance + row, sums.accepted * by, call.rows - row);
  if (call.work) store_lanes(call.work + row, sums.work, call.rows - row);
}

template <int vectors>
void unadjusted(const ChainCall& call, const Packed& net, float* memory, int64_t row) {
  constexpr int kChains = vectors * kLanes;
  const int64_t dim = net.width[0], rows = call.rows - row, every = call.record_every;
  const Hold& hold = call.hold;
  float* z = memory;
  float* grad = z + whole_rows(dim) * kChains;
  Tile<vectors> tile(net, grad + whole_rows(dim) * kChains);
  ChainNoise<vectors> noise(call.stream, row);
  Sums<vectors> sums;
  const bool statistics = call.mean_energy != nullptr;
  gather(call.z + row * dim, dim, rows, kChains, z);

  const auto record = [&](int64_t kept, Real<vectors> e) {
    store_lanes(call.energies + kept * call.rows + row, bounded(e, net.bound).value, rows);
  };
  for (int64_t k = 0; k < MMEBM_MUTANT(one_step_short, call.steps - 1, call.steps); ++k) {
    const bool due = every > 0 && k > 0 && k % every == 0;  // the energy of the state kept before this step
    Real<vectors> factor = 1.0f;
    if (statistics || due || net.bound != 0.0f) {
      const Real<vectors> e = tile.energy_and_gradient(z, grad);
      if (due) record(k / every - 1, e);
      const auto [value, first] = bounded(e, net.bound);
      sums.energy = sums.energy + value;
      factor = first;
    } else {
      tile.gradient(z, grad);
    }
    if (statistics || hold.grad_clip != 0.0f) {
      const Real<vectors> squares = sum_of_squares<vectors>(grad, dim) * factor * factor;
      sums.norm = sums.norm + sqrt32(squares);
      if (hold.grad_clip != 0.0f) {
        const Real<vectors> seen = MMEBM_MUTANT(
            clip_after_t, squares * at(call.coefficients, k).t * at(call.coefficients, k).t, squares);
        factor = factor * clip_factor(seen, hold.grad_clip);
      }
    }
    const auto [a, b, t] = at(call.coefficients, k);
    factor = factor * t;
    Real<vectors> squares = 0.0f;
    noise.at_step(k);
    noise.for_each_dim(dim, [&](int64_t i, Real<vectors> eps) MMEBM_INLINE {
      const Real<vectors> x = load_block<vectors>(z + i * kChains);
      const Real<vectors> by = drift(x, load_block<vectors>(grad + i * kChains), factor, hold, i);
      const Real<vectors> next = moved_in_box(x, by, eps, a, b, hold);
      if (statistics) {
        const Real<vectors> step = next - x;
        squares = fma32(step, step, squares);
      }
      store_block(z + i * kChains, next);
    });
    sums.moved = sums.moved + sqrt32(squares);
    if (every > 0 && (k + 1) % every == 0) {
      scatter(z, dim, rows, kChains, call.states + ((k + 1) / every - 1) * call.rows * dim + row * dim);
    }
  }
  if (every > 0 && call.steps > 0 && call.steps % every == 0) record(call.steps / every - 1, tile.energy(z));
  scatter(z, dim, rows, kChains, call.out + row * dim);
  write_means(call, sums, row);
}

// A state with its energy, its gradient and what the bound and the clip make of the latter.
template <int vectors>
struct State {
  float *z, *grad;
  Real<vectors> energy, norm, factor;

  void evaluate(Tile<vectors>& tile, const Packed& net, const Hold& hold) {
    const auto [value, first] = bounded(tile.energy_and_gradient(z, grad), net.bound);
    energy = value;
    const Real<vectors> squares = sum_of_squares<vectors>(grad, net.width[0]) * first * first;
    norm = sqrt32(squares);
    factor = hold.grad_clip != 0.0f ? first * clip_factor(squares, hold.grad_clip) : first;
  }
};

// Metropolis-adjusted: the proposal is the unadjusted step, its density the one of the drift really used.
template <int vectors>
void adjusted(const ChainCall& call, const Packed& net, float* memory, int64_t row) {
  constexpr int kChains = vectors * kLanes;
  const int64_t dim = net.width[0], rows = call.rows - row, every = call.record_every;
  const Hold& hold = call.hold;
  const int64_t size = whole_rows(dim) * kChains;
  State<vectors> now{memory, memory + size, 0.0f, 0.0f, 0.0f}, next{memory + 2 * size, memory + 3 * size, 0.0f, 0.0f, 0.0f};
  Tile<vectors> tile(net, memory + 4 * size);
  ChainNoise<vectors> noise(call.stream, row);
  Sums<vectors> sums;
  gather(call.z + row * dim, dim, rows, kChains, now.z);
  now.evaluate(tile, net, hold);

  for (int64_t k = 0; k < MMEBM_MUTANT(one_step_short, call.steps - 1, call.steps); ++k) {
    const auto [a, b, t] = at(call.coefficients, k);
    sums.energy = sums.energy + now.energy;
    sums.norm = sums.norm + now.norm;
    if (k > 0) sums.work = fma32(now.energy, Real<vectors>(t - at(call.coefficients, k - 1).t), sums.work);
    noise.at_step(k);
    noise.for_each_dim(dim, [&](int64_t i, Real<vectors> eps) MMEBM_INLINE {
      const Real<vectors> x = load_block<vectors>(now.z + i * kChains);
      const Real<vectors> by = drift(x, load_block<vectors>(now.grad + i * kChains), now.factor * t, hold, i);
      store_block(next.z + i * kChains, moved(x, by, eps, a, b));
    });
    next.evaluate(tile, net, hold);

    // log of the acceptance ratio, term by term, so that little cancels.
    Real<vectors> ratio = (now.energy - next.energy) * t, squares = 0.0f;
    Real<vectors> inside = 1.0f, proposal = 0.0f;
    for (int64_t i = 0; i < dim; ++i) {
      const Real<vectors> x = load_block<vectors>(now.z + i * kChains), y = load_block<vectors>(next.z + i * kChains);
      const Real<vectors> there = drift(x, load_block<vectors>(now.grad + i * kChains), now.factor * t, hold, i);
      const Real<vectors> back = drift(y, load_block<vectors>(next.grad + i * kChains), next.factor * t, hold, i);
      const Real<vectors> step = y - x;
      // |y - x + a there|^2 - |x - y + a back|^2 is a (there + back) (2 step - a (back - there)): no square is subtracted.
      proposal = fma32(there + back, fma32(back - there, a, step * -2.0f), proposal);
      squares = fma32(step, step, squares);
      if (hold.reference != Reference::none) ratio = ratio + log_ratio(y, x, hold.reference, 1.0f / hold.scale[i]);
      inside = select(y < hold.lower, Real<vectors>(0.0f), inside);
      inside = select(y > hold.upper, Real<vectors>(0.0f), inside);
    }
    ratio = MMEBM_MUTANT(no_proposal_ratio, ratio, ratio - proposal * (0.5f * a / (b * b)));
    // Accepted where ln u < ratio; a NaN compares false. A proposal without noise has no density.
    const Real<vectors> likely = select(MMEBM_MUTANT(accept_sign, -ratio, ratio) + noise.minus_log_uniform() > 0.0f,
                                        inside, Real<vectors>(0.0f));
    const Real<vectors> accepted =
        b != 0.0f ? MMEBM_MUTANT(nan_accepts, select(ratio != ratio, inside, likely), likely) : Real<vectors>(0.0f);
    const auto taken = accepted != 0.0f;
    for (int64_t i = 0; i < dim; ++i) {
      const int64_t o = i * kChains;
      store_block(now.z + o, select(taken, load_block<vectors>(next.z + o), load_block<vectors>(now.z + o)));
      store_block(now.grad + o,
                  MMEBM_MUTANT(stale_gradient, load_block<vectors>(next.grad + o),
                               select(taken, load_block<vectors>(next.grad + o), load_block<vectors>(now.grad + o))));
    }
    now.energy = MMEBM_MUTANT(stale_energy, next.energy, select(taken, next.energy, now.energy));
    now.norm = select(taken, next.norm, now.norm);
    now.factor = select(taken, next.factor, now.factor);
    sums.accepted = sums.accepted + accepted;
    sums.moved = sums.moved + select(taken, sqrt32(squares), Real<vectors>(0.0f));
    if (every > 0 && (k + 1) % every == 0) {
      const int64_t kept = (k + 1) / every - 1;
      scatter(now.z, dim, rows, kChains, call.states + kept * call.rows * dim + row * dim);
      store_lanes(call.energies + kept * call.rows + row, now.energy, rows);
    }
  }
  scatter(now.z, dim, rows, kChains, call.out + row * dim);
  write_means(call, sums, row);
}

}  // namespace

void langevin(const ChainCall& call, int threads) {
  with_vectors(call.rows, threads, [&](auto v) {
    const int64_t own = 2 * whole_rows(call.net.layers[0].in) * v * kLanes;
    over_tiles<v>(call.net, call.rows, threads, own, [&](const Packed& net, float* memory, int64_t row) {
      unadjusted<v>(call, net, memory, row);
    });
  });
}

void mala(const ChainCall& call, int threads) {
  with_vectors(call.rows, threads, [&](auto v) {
    const int64_t own = 4 * whole_rows(call.net.layers[0].in) * v * kLanes;
    over_tiles<v>(call.net, call.rows, threads, own, [&](const Packed& net, float* memory, int64_t row) {
      adjusted<v>(call, net, memory, row);
    });
  });
}

}  // namespace mmebm::cpu::MMEBM_ISA
