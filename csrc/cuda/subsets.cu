// Products of diagonal normal experts, of every subset of a row's. Where subsets' KL are summed over dimensions, a warp has
// a row. All subsets share their precisions, as they are: a common scale would cost digits of the variances far from it.
// Where one is too extreme for that, every subset has its own scale.
#include "cuda/experts.hpp"

namespace mmebm::cuda {

namespace {

using namespace experts;

constexpr float kRange = 60.0f;  // of log-variances whose precisions may be added as they are
constexpr int kWarp = 32;
constexpr int kUnrolled = 5;  // experts whose subsets are unrolled; those of the others are a loop around them

MMEBM_HD float greater(float a, float b) { return select(a > b, a, b); }

// The largest log-variance of the row's experts, either sign.
template <int E>
MMEBM_BODY float extent(const Row& row, const float (&logvar)[E]) {
  float out = 0.0f;
  MMEBM_UNROLL
  for (int m = 0; m < E; ++m) out = greater(has(row.present, m) ? absolute(logvar[m]) : 0.0f, out);
  return out;
}

template <uint32_t Value>
struct Constant {
  static constexpr uint32_t value = Value;
};

// The sums of every subset's precisions, where none is extreme, depth first: that of s is one addition to that of s
// without its lowest expert, and no more of them are alive than there are experts.
template <int E>
struct Lattice {
  static constexpr int kBits = E < kUnrolled ? E : kUnrolled;
  static constexpr uint32_t kBlock = 1u << kBits;  // subsets that are unrolled

  uint32_t all;
  float always, full;  // the prior's precision in every subset, and in that of all experts
  float weight[E];     // precisions, 0 for experts absent
  const float (&mu)[E];

  MMEBM_BODY Lattice(const Row& row, const float (&means)[E], const float (&logvar)[E])
      : all(row.all),
        always(row.prior == Prior::always ? 1.0f : 0.0f),
        full(row.prior == Prior::full && row.present == row.all ? 1.0f : 0.0f),
        mu(means) {
    MMEBM_UNROLL
    for (int m = 0; m < E; ++m) weight[m] = has(row.present, m) ? exp32(-logvar[m]) : 0.0f;
  }

  // block(high) of every subset of the experts from kBits on.
  template <class Block>
  MMEBM_BODY static void each_high(uint32_t all, const Block& block) {
    if constexpr (E <= kUnrolled) {
      block(0u);
    } else {
      for (uint32_t high = 0; high <= all; high += kBlock) block(high);
    }
  }

  // take(low, s, sum, total) of the subsets s = high | low but the empty one; total is of precision times mean.
  template <class Take>
  MMEBM_BODY void block(uint32_t high, const Take& take) const {
    float sum = always, total = 0.0f;
    MMEBM_UNROLL
    for (int m = kBits; m < E; ++m) {
      if (!has(high, m)) continue;
      sum += weight[m];
      total = fma32(weight[m], mu[m], total);
    }
    branch<kBits, 0>(high, sum, total, take);
  }

  template <int Bits, uint32_t Low, class Take>
  MMEBM_BODY void branch(uint32_t high, float sum, float total, const Take& take) const {
    if constexpr (Bits > 0) {
      constexpr int m = Bits - 1;
      branch<m, Low>(high, sum, total, take);
      branch<m, (Low | 1u << m)>(high, sum + weight[m], fma32(weight[m], mu[m], total), take);
    } else {
      if constexpr (Low == 0) {
        if (high == 0) return;
      }
      if constexpr (Low == kBlock - 1) {
        if ((high | Low) == all) sum += full;
      }
      take(Constant<Low>(), high | Low, sum, total);
    }
  }
};

// variance - 1 where variance = e^logvar, which is known better than it would be from its rounded logarithm.
MMEBM_HD float less_one(float variance, float logvar) {
  return select(absolute(logvar) < 0.5f, expm1_32(logvar), variance - 1.0f);
}

// The KL of N(mean, variance) to the standard normal, by dimension.
MMEBM_HD float divergence(float mean, float variance, float logvar) {
  return fma32(mean, mean, less_one(variance, logvar) - logvar) * 0.5f;
}

// For a result that is larger than the caches.
MMEBM_BODY void stream(float* to, float value) {
#if defined(__CUDA_ARCH__)
  __stcs(to, value);
#else
  *to = value;
#endif
}

template <int E>
struct SubsetsBody {
  using Call = SubsetsCall;
  static constexpr int kThreads = experts::kThreads;
  static constexpr bool kMeets = false;

  MMEBM_BODY static void run(const Call& call, char*) {
    const Experts& in = call.in;
    const int64_t at = element(), each = in.rows * in.dim;
    if (at >= each) return;
    const Row row = Row::at(in, at / in.dim);
    float mu[E], logvar[E];
    load(in, in.logvar, at, row.present, logvar);
    load(in, in.mu, at, row.present, mu);
    const auto put = [&](uint32_t s, float mean, float lv) {
      stream(call.mu + (s - 1) * each + at, mean);
      stream(call.logvar + (s - 1) * each + at, lv);
    };
    if (extent(row, logvar) < kRange) {
      const Lattice<E> lattice(row, mu, logvar);
      Lattice<E>::each_high(row.all, [&](uint32_t high) {
        lattice.block(high, [&](auto, uint32_t s, float sum, float total) {
          const bool any = (s & row.present) != 0;
          put(s, any ? total * reciprocal(sum) : 0.0f, any ? -log32(sum) : 0.0f);
        });
      });
      return;
    }
    for (uint32_t s = 1; s <= row.all; ++s) {
      Product<E> product;
      multiply(mu, logvar, s & row.present, row.with_prior(s & row.present), product);
      put(s, product.mean, product.logvar());
    }
  }
};

MMEBM_BODY float sum_of_warp(float x) {
  for (int mask = 1; mask < kWarp; mask *= 2) x += simt::shuffle_xor(x, mask);
  return x;
}

// Every lane's N sums by subset -> of subset `lane % N` the sum over N neighbouring lanes: each exchange hands on half
// of what a lane holds.
template <int N>
MMEBM_BODY float sums_across(const float (&x)[N]) {
  if constexpr (N == 1) {
    return x[0];
  } else {
    constexpr int kHalf = N / 2;
    const bool upper = (simt::thread() & kHalf) != 0;
    float half[kHalf];
    MMEBM_UNROLL
    for (int i = 0; i < kHalf; ++i) {
      half[i] = select(upper, x[i + kHalf], x[i]) + simt::shuffle_xor(select(upper, x[i], x[i + kHalf]), kHalf);
    }
    return sums_across(half);
  }
}

template <int E>
struct SubsetsKlBody {
  using Call = SubsetsCall;
  static constexpr int kThreads = experts::kThreads;
  static constexpr bool kMeets = true;
  static constexpr int kRows = kThreads / kWarp;

  MMEBM_BODY static void run(const Call& call, char*) {
    const Experts& in = call.in;
    const int lane = simt::thread() % kWarp;
    const int64_t r = simt::block() * kRows + simt::thread() / kWarp;
    if (r >= in.rows) return;
    const Row row = Row::at(in, r);
    float mu[E], logvar[E];
    float widest = 0.0f;
    for (int64_t dim = lane; dim < in.dim; dim += kWarp) {
      load(in, in.logvar, r * in.dim + dim, row.present, logvar);
      widest = greater(extent(row, logvar), widest);
    }
    for (int mask = 1; mask < kWarp; mask *= 2) widest = greater(simt::shuffle_xor(widest, mask), widest);
    const auto load_both = [&](int64_t dim) {
      load(in, in.logvar, r * in.dim + dim, row.present, logvar);
      load(in, in.mu, r * in.dim + dim, row.present, mu);
    };
    if (widest < kRange) {
      Lattice<E>::each_high(row.all, [&](uint32_t high) {
        constexpr int kBlock = Lattice<E>::kBlock;
        float kl[kBlock] = {};
        for (int64_t dim = lane; dim < in.dim; dim += kWarp) {
          load_both(dim);
          const Lattice<E> lattice(row, mu, logvar);
          lattice.block(high, [&](auto low, uint32_t s, float sum, float total) {
            if ((s & row.present) == 0) return;
            const float variance = reciprocal(sum);
            kl[decltype(low)::value] += divergence(total * variance, variance, -log32(sum));
          });
        }
        float sum = sums_across(kl);
        for (int mask = kBlock; mask < kWarp; mask *= 2) sum += simt::shuffle_xor(sum, mask);
        const uint32_t s = high | static_cast<uint32_t>(lane);
        if (lane < kBlock && s != 0) call.kl[(s - 1) * in.rows + r] = sum;
      });
      return;
    }
    for (uint32_t s = 1; s <= row.all; ++s) {
      const uint32_t mask = s & row.present;
      float sum = 0.0f;
      for (int64_t dim = lane; mask != 0 && dim < in.dim; dim += kWarp) {
        load_both(dim);
        Product<E> product;
        multiply(mu, logvar, mask, row.with_prior(mask), product);
        const float lv = product.logvar();
        sum += divergence(product.mean, exp32(lv), lv);
      }
      sum = sum_of_warp(sum);
      if (lane == 0) call.kl[(s - 1) * in.rows + r] = sum;
    }
  }
};

// Sums by pairs over the subsets in a block's order. Those of the subsets with an expert go to it as they are complete.
template <int Bits>
struct Tree {
  float open[Bits] = {};  // the half without expert m that waits for its other half
  float all = 0.0f;

  template <class Low, int E>
  MMEBM_BODY void add(Low, float x, float (&by_expert)[E]) {
    bool complete = true;
    MMEBM_UNROLL
    for (int m = 0; m < Bits; ++m) {
      if (!complete) continue;
      complete = has(Low::value, m);
      if (complete) {
        by_expert[m] += x;
        x += open[m];
      } else {
        open[m] = x;
      }
    }
    if (complete) all = x;
  }
};

template <int E, bool Kl>
struct SubsetsBackwardBody {
  using Call = SubsetsBackwardCall;
  static constexpr int kThreads = experts::kThreads;
  static constexpr bool kMeets = false;

  MMEBM_BODY static void run(const Call& call, char*) {
    const Experts& in = call.in;
    const int64_t at = element(), each = in.rows * in.dim;
    if (at >= each) return;
    const int64_t r = at / in.dim;
    const Row row = Row::at(in, r);
    float mu[E], logvar[E], d_mu[E] = {}, d_logvar[E] = {};
    load(in, in.logvar, at, row.present, logvar);
    load(in, in.mu, at, row.present, mu);
    // The gradient that reaches subset s's mean and log-variance.
    struct Gradient {
      float mean, logvar;
    };
    const auto incoming = [&](uint32_t s, float mean, float variance, float lv) -> Gradient {
      if constexpr (Kl) {
        const float g = call.g_kl[(s - 1) * in.rows + r];
        return {mean * g, less_one(variance, lv) * (0.5f * g)};
      } else {
        return {call.g_mu[(s - 1) * each + at], call.g_logvar[(s - 1) * each + at]};
      }
    };
    if (extent(row, logvar) < kRange) {
      using Sums = Lattice<E>;
      const Sums lattice(row, mu, logvar);
      Sums::each_high(row.all, [&](uint32_t high) {
        Tree<Sums::kBits> back_mu, back_logvar;
        lattice.block(high, [&](auto low, uint32_t s, float sum, float total) {
          Gradient back{0.0f, 0.0f};
          if ((s & row.present) != 0 && !row.alone(s & row.present)) {
            const float variance = reciprocal(sum), mean = total * variance;
            const Gradient g = incoming(s, mean, variance, -log32(sum));
            back = {g.mean * variance, fma32(g.mean, mean, g.logvar) * variance};
          }
          back_mu.add(low, back.mean, d_mu);
          back_logvar.add(low, back.logvar, d_logvar);
        });
        MMEBM_UNROLL
        for (int m = Sums::kBits; m < E; ++m) {
          if (!has(high, m)) continue;
          d_mu[m] += back_mu.all;
          d_logvar[m] += back_logvar.all;
        }
      });
      MMEBM_UNROLL
      for (int m = 0; m < E; ++m) {
        const bool held = has(row.present, m);
        d_logvar[m] = held ? lattice.weight[m] * fma32(-mu[m], d_mu[m], d_logvar[m]) : 0.0f;
        d_mu[m] = held ? lattice.weight[m] * d_mu[m] : 0.0f;
        // On the way through precisions an expert alone would lose digits, and have the largest gradients do so.
        if (!held || !row.alone(1u << m)) continue;
        const uint32_t absent = row.all & ~row.present;
        uint32_t others = 0;
        do {
          const Gradient g = incoming(others | 1u << m, mu[m], exp32(logvar[m]), logvar[m]);
          d_mu[m] += g.mean;
          d_logvar[m] += g.logvar;
          others = (others - absent) & absent;
        } while (others != 0);
      }
    } else {
      for (uint32_t s = 1; s <= row.all; ++s) {
        const uint32_t mask = s & row.present;
        if (mask == 0) continue;
        Product<E> product;
        multiply(mu, logvar, mask, row.with_prior(mask), product);
        const float lv = product.logvar();
        const Gradient g = incoming(s, product.mean, exp32(lv), lv);
        send_back(mu, mask, product, g.mean, g.logvar, d_mu, d_logvar);
      }
    }
    store(in, call.d_mu, at, d_mu);
    store(in, call.d_logvar, at, d_logvar);
  }
};

template <int E>
using SubsetsBackwardAllBody = SubsetsBackwardBody<E, false>;
template <int E>
using SubsetsBackwardKlBody = SubsetsBackwardBody<E, true>;

template <template <int> class Body, class Call>
void launch_subsets(const Call& call, int64_t items, int64_t each, Stream stream) {
  launch_for<Body, 1, 2, 3, 4, kUnrolled, 8, kMaxExperts>(call, items, each, stream);
}

}  // namespace

void subsets(const SubsetsCall& call, Stream stream) {
  if (call.kl) {
    launch_subsets<SubsetsKlBody>(call, call.in.rows, kThreads / kWarp, stream);
  } else {
    launch_subsets<SubsetsBody>(call, call.in.rows * call.in.dim, kThreads, stream);
  }
}

void subsets_backward(const SubsetsBackwardCall& call, Stream stream) {
  if (call.g_kl) {
    launch_subsets<SubsetsBackwardKlBody>(call, call.in.rows * call.in.dim, kThreads, stream);
  } else {
    launch_subsets<SubsetsBackwardAllBody>(call, call.in.rows * call.in.dim, kThreads, stream);
  }
}

}  // namespace mmebm::cuda
