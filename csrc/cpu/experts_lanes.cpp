// Products of diagonal normal experts, of a row's present ones and of every subset of them. A product's precision is a
// sum of precisions relative to the largest one; where their range is too wide for a float, every subset has its own.
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"
#include "cpu/workers.hpp"

namespace mmebm::cpu::MMEBM_ISA {

namespace {

constexpr float kRange = 60.0f;          // of log precisions that one scale may serve
constexpr int64_t kStreamed = 1 << 20;   // floats of a result from which on it goes past the caches

struct Row {
  const Experts& in;
  int64_t row;
  uint32_t present;
  uint32_t all;

  Row(const Experts& experts, int64_t r)
      : in(experts),
        row(r),
        all(static_cast<uint32_t>((uint64_t{1} << experts.experts) - 1)) {
    present = static_cast<uint32_t>(experts.present[r]) & all;
  }
  const float* mu(int64_t m) const { return in.mu + at(m); }
  const float* logvar(int64_t m) const { return in.logvar + at(m); }
  int64_t at(int64_t m) const { return (m * in.rows + row) * in.dim; }
  bool with_prior(uint32_t mask) const {
    return mask == 0 || in.prior == Prior::always || (in.prior == Prior::full && mask == all);
  }
};

template <class Body>
MMEBM_HD void each_bit(uint32_t mask, Body body) {
  for (; mask; mask &= mask - 1) body(__builtin_ctz(mask));
}

template <int N>
struct Product {
  Real<N> least, sum, mean;     // log-variance = least - ln sum
  Real<N> weight[kMaxExperts];  // precisions of the experts in it relative to e^-least

  MMEBM_HD Real<N> logvar() const { return least - log32(sum); }
};

template <int N>
MMEBM_HD Real<N> lesser(Real<N> a, Real<N> b) {
  return each<float, N>([&](int i) MMEBM_INLINE { return smaller(a.v[i], b.v[i]); });
}

// The product of the experts in `mask`.
template <int N>
MMEBM_HD void multiply(const Row& row, uint32_t mask, Chunk<N> chunk, Product<N>& out) {
  const bool prior = row.with_prior(mask);
  out.least = prior ? 0.0f : __builtin_inff();
  each_bit(mask, [&](int m) MMEBM_INLINE {
    out.weight[m] = chunk.load(row.logvar(m));
    out.least = lesser(out.least, out.weight[m]);
  });
  out.sum = prior ? exp_below(out.least) : Real<N>(0.0f);
  Real<N> total = 0.0f;
  each_bit(mask, [&](int m) MMEBM_INLINE {
    out.weight[m] = exp_below(out.least - out.weight[m]);
    out.sum = out.sum + out.weight[m];
    total = fma32(out.weight[m], chunk.load(row.mu(m)), total);
  });
  out.mean = total * reciprocal(out.sum);
}

// The same for every subset at once, relative to the largest precision of all: sum[s] = sum[s without its highest bit] +
// that expert's.
template <int N>
struct Lattice {
  Real<N>* sum;    // [2^M]
  Real<N>* total;  // [2^M], of precision times mean
  Real<N> least;
  Real<N> weight[kMaxExperts], mean[kMaxExperts];

  explicit Lattice(float* memory, uint32_t subsets)
      : sum(reinterpret_cast<Real<N>*>(memory)), total(sum + subsets + 1) {}

  // Whether one scale serves all subsets.
  bool build(const Row& row, Chunk<N> chunk) {
    const bool with_prior = row.in.prior != Prior::never;
    Real<N> most = with_prior ? 0.0f : -__builtin_inff();
    least = with_prior ? 0.0f : __builtin_inff();
    each_bit(row.present, [&](int m) MMEBM_INLINE {
      weight[m] = chunk.load(row.logvar(m));
      least = lesser(least, weight[m]);
      most = -lesser(-most, -weight[m]);
    });
    const auto narrow = (most - least) < kRange;
    Vector<int32_t> everywhere = narrow.v[0];
    for (int v = 1; v < N; ++v) everywhere &= narrow.v[v];
    for (int l = 0; l < kLanes; ++l) {
      if (!everywhere[l]) return false;
    }
    each_bit(row.present, [&](int m) MMEBM_INLINE {
      weight[m] = exp_below(least - weight[m]);
      mean[m] = chunk.load(row.mu(m));
    });
    const Real<N> prior = exp_below(least);
    sum[0] = row.in.prior == Prior::always ? prior : Real<N>(0.0f);
    total[0] = 0.0f;
    for (int64_t m = 0; m < row.in.experts; ++m) {
      const uint32_t bit = uint32_t{1} << m;
      if (row.present & bit) {
        const Real<N> by = weight[m] * mean[m];
        for (uint32_t rest = 0; rest < bit; ++rest) {
          sum[bit | rest] = sum[rest] + weight[m];
          total[bit | rest] = total[rest] + by;
        }
      } else {
        for (uint32_t rest = 0; rest < bit; ++rest) {
          sum[bit | rest] = sum[rest];
          total[bit | rest] = total[rest];
        }
      }
    }
    if (row.in.prior == Prior::full && row.present == row.all) {
      sum[row.all] = sum[row.all] + prior;
    }
    return true;
  }
};

// The KL of N(mean, e^logvar) to the standard normal, by dimension.
template <int N>
MMEBM_HD Real<N> divergence(Real<N> mean, Real<N> logvar) {
  return fma32(mean, mean, expm1_32(logvar) - logvar) * 0.5f;
}

// Every subset's mean and log-variance at a chunk: take(s, mean, logvar).
template <int N, class Take>
void each_subset(const Row& row, Chunk<N> chunk, float* memory, Take take) {
  Lattice<N> lattice(memory, row.all);
  if (row.present != 0 && lattice.build(row, chunk)) {
    for (uint32_t s = 1; s <= row.all; ++s) {
      if ((s & row.present) == 0) {
        take(s, Real<N>(0.0f), Real<N>(0.0f));
      } else {
        take(s, lattice.total[s] * reciprocal(lattice.sum[s]), lattice.least - log32(lattice.sum[s]));
      }
    }
    return;
  }
  Product<N> product;
  for (uint32_t s = 1; s <= row.all; ++s) {
    multiply(row, s & row.present, chunk, product);
    take(s, product.mean, product.logvar());
  }
}

// What one product sends back to its experts: add(m, d_mu, d_logvar).
template <int N, class Add>
MMEBM_HD void send_back(const Row& row, uint32_t mask, Chunk<N> chunk, const Product<N>& product, Real<N> g_mean,
                        Real<N> g_logvar, Add add) {
  const Real<N> inverse = reciprocal(product.sum);
  each_bit(mask, [&](int m) MMEBM_INLINE {
    const Real<N> weight = product.weight[m] * inverse;
    const Real<N> away = chunk.load(row.mu(m)) - product.mean;
    add(m, weight * g_mean, weight * fma32(-g_mean, away, g_logvar));
  });
}

int64_t lattice_floats(const Experts& in) { return 2 * kRowVectors * kLanes * (int64_t{1} << in.experts); }

}  // namespace

void product(const ProductCall& call, int threads) {
  const Experts& in = call.in;
  const int workers = row_team(threads, in.rows, in.experts * in.dim);
#pragma omp parallel for schedule(static) num_threads(workers) if (workers > 1)
  for (int64_t r = 0; r < in.rows; ++r) {
    const Row row(in, r);
    over_dims(in.dim, [&](auto chunk) MMEBM_INLINE {
      Product<decltype(chunk)::vectors> product;
      multiply(row, row.present, chunk, product);
      chunk.store(call.mu + r * in.dim, product.mean);
      chunk.store(call.logvar + r * in.dim, product.logvar());
    });
  }
}

void product_backward(const ProductBackwardCall& call, int threads) {
  const Experts& in = call.in;
  const int workers = row_team(threads, in.rows, in.experts * in.dim);
#pragma omp parallel for schedule(static) num_threads(workers) if (workers > 1)
  for (int64_t r = 0; r < in.rows; ++r) {
    const Row row(in, r);
    over_dims(in.dim, [&](auto chunk) MMEBM_INLINE {
      constexpr int N = decltype(chunk)::vectors;
      Product<N> product;
      multiply(row, row.present, chunk, product);
      send_back(row, row.present, chunk, product, chunk.load(call.g_mu + r * in.dim), chunk.load(call.g_logvar + r * in.dim),
                [&](int m, Real<N> d_mu, Real<N> d_logvar) MMEBM_INLINE {
                  chunk.store(call.d_mu + row.at(m), d_mu);
                  chunk.store(call.d_logvar + row.at(m), d_logvar);
                });
      each_bit(row.all & ~row.present, [&](int m) MMEBM_INLINE {
        chunk.store(call.d_mu + row.at(m), Real<N>(0.0f));
        chunk.store(call.d_logvar + row.at(m), Real<N>(0.0f));
      });
    });
  }
}

void subsets(const SubsetsCall& call, int threads) {
  const Experts& in = call.in;
  const int64_t all = (int64_t{1} << in.experts) - 1;
  const bool streamed = call.mu && all * in.rows * in.dim >= kStreamed && in.dim % (kRowVectors * kLanes) == 0 &&
                        reinterpret_cast<uintptr_t>(call.mu) % 64 == 0 && reinterpret_cast<uintptr_t>(call.logvar) % 64 == 0;
  const int workers = row_team(threads, in.rows, all * in.dim);
  const Workspace workspace(workers, lattice_floats(in) + (all + 1) * kLanes);
#pragma omp parallel num_threads(workers) if (workers > 1)
  {
    float* lattice = workspace.own();
    float* sums = lattice + lattice_floats(in);  // a subset's KL by lane
#pragma omp for schedule(static)
    for (int64_t r = 0; r < in.rows; ++r) {
      const Row row(in, r);
      if (call.kl) std::memset(sums, 0, static_cast<size_t>((all + 1) * kLanes) * sizeof(float));
      over_dims(in.dim, [&](auto chunk) MMEBM_INLINE {
        constexpr int N = decltype(chunk)::vectors;
        each_subset(row, chunk, lattice, [&](uint32_t s, Real<N> mean, Real<N> logvar) MMEBM_INLINE {
          if (call.kl) {
            // Lanes past the end are products of standard normals, whose KL is not 0.
            const Floats kl = folded(chunk.inside(divergence(mean, logvar)));
            store(sums + (s - 1) * kLanes, load(sums + (s - 1) * kLanes) + kl);
            return;
          }
          const int64_t at = (static_cast<int64_t>(s - 1) * in.rows + r) * in.dim;
          if (streamed) {
            chunk.stream(call.mu + at, mean);
            chunk.stream(call.logvar + at, logvar);
          } else {
            chunk.store(call.mu + at, mean);
            chunk.store(call.logvar + at, logvar);
          }
        });
      });
      for (int64_t s = 0; call.kl && s < all; s += kLanes) {
        Floats x[kLanes] = {};
        for (int l = 0; l < kLanes && s + l < all; ++l) x[l] = load(sums + (s + l) * kLanes);
        const Floats kl = sums_across(x);
        for (int l = 0; l < kLanes && s + l < all; ++l) call.kl[(s + l) * in.rows + r] = kl[l];
      }
    }
#if defined(__AVX2__)
    if (streamed) _mm_sfence();
#endif
  }
}

void subsets_backward(const SubsetsBackwardCall& call, int threads) {
  const Experts& in = call.in;
  const int64_t all = (int64_t{1} << in.experts) - 1;
  const int workers = row_team(threads, in.rows, all * in.dim);
  const Workspace workspace(workers, lattice_floats(in));
#pragma omp parallel num_threads(workers) if (workers > 1)
  {
    float* memory = workspace.own();
#pragma omp for schedule(static)
    for (int64_t r = 0; r < in.rows; ++r) {
      const Row row(in, r);
      over_dims(in.dim, [&](auto chunk) MMEBM_INLINE {
        constexpr int N = decltype(chunk)::vectors;
        Real<N> d_mu[kMaxExperts], d_logvar[kMaxExperts];
        for (int64_t m = 0; m < in.experts; ++m) d_mu[m] = d_logvar[m] = 0.0f;
        // The gradient that reaches subset s's mean and log-variance.
        const auto incoming = [&](uint32_t s, Real<N> mean, Real<N> logvar) MMEBM_INLINE {
          if (call.g_kl) {
            const float g = call.g_kl[static_cast<int64_t>(s - 1) * in.rows + r];
            return Pair<Real<N>>{mean * g, expm1_32(logvar) * (0.5f * g)};
          }
          const int64_t at = (static_cast<int64_t>(s - 1) * in.rows + r) * in.dim;
          return Pair<Real<N>>{chunk.load(call.g_mu + at), chunk.load(call.g_logvar + at)};
        };
        Lattice<N> lattice(memory, row.all);
        if (row.present != 0 && lattice.build(row, chunk)) {
          // sum[s] and total[s] turn into what is sent back along them, from the largest subset down.
          Real<N>*back_mu = lattice.total, *back_logvar = lattice.sum;
          for (uint32_t s = 1; s <= row.all; ++s) {
            if ((s & row.present) == 0) {
              back_mu[s] = back_logvar[s] = 0.0f;
              continue;
            }
            const Real<N> inverse = reciprocal(lattice.sum[s]), mean = lattice.total[s] * inverse;
            const auto g = incoming(s, mean, lattice.least - log32(lattice.sum[s]));
            back_mu[s] = g.a * inverse;
            back_logvar[s] = fma32(g.a, mean, g.b) * inverse;
          }
          for (uint32_t s = row.all; s > 0; --s) {
            const int m = __builtin_ctz(s);
            const uint32_t rest = s & (s - 1);
            d_mu[m] = d_mu[m] + back_mu[s];
            d_logvar[m] = d_logvar[m] + back_logvar[s];
            if (rest == 0) continue;
            back_mu[rest] = back_mu[rest] + back_mu[s];
            back_logvar[rest] = back_logvar[rest] + back_logvar[s];
          }
          each_bit(row.present, [&](int m) MMEBM_INLINE {
            d_logvar[m] = lattice.weight[m] * fma32(-lattice.mean[m], d_mu[m], d_logvar[m]);
            d_mu[m] = lattice.weight[m] * d_mu[m];
          });
          each_bit(row.all & ~row.present, [&](int m) MMEBM_INLINE { d_mu[m] = d_logvar[m] = 0.0f; });
        } else {
          Product<N> product;
          for (uint32_t s = 1; s <= row.all; ++s) {
            const uint32_t mask = s & row.present;
            if (mask == 0) continue;
            multiply(row, mask, chunk, product);
            const auto g = incoming(s, product.mean, product.logvar());
            send_back(row, mask, chunk, product, g.a, g.b, [&](int m, Real<N> mu, Real<N> logvar) MMEBM_INLINE {
              d_mu[m] = d_mu[m] + mu;
              d_logvar[m] = d_logvar[m] + logvar;
            });
          }
        }
        for (int64_t m = 0; m < in.experts; ++m) {
          chunk.store(call.d_mu + row.at(m), d_mu[m]);
          chunk.store(call.d_logvar + row.at(m), d_logvar[m]);
        }
      });
    }
  }
}

}  // namespace mmebm::cpu::MMEBM_ISA
