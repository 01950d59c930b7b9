// The log density of a uniform mixture of diagonal experts and its gradient, a row at a time, lanes along its dims.
#include "common/functions.hpp"
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"
#include "cpu/workers.hpp"

namespace mmebm::cpu::MMEBM_ISA {

namespace {

constexpr float kHalfLogTwoPi = 0.918938533f;

// The experts of one row: 1 / scale, and what of log q_m does not depend on z.
class Mixture {
 public:
  Mixture(const MixtureCall& call, float* memory) : call_(call), inverse_(memory) {}

  static int64_t floats(const MixtureCall& call) { return call.experts * call.dim; }

  void at_row(int64_t row) {
    row_ = row;
    count_ = 0;
    const uint64_t all = (uint64_t{1} << call_.experts) - 1;
    for (uint64_t left = static_cast<uint64_t>(call_.present[row]) & all; left; left &= left - 1) {
      const int m = __builtin_ctzll(left);
      Floats logs = {};
      over_dims(call_.dim, [&](auto chunk) MMEBM_INLINE {
        const auto scale = chunk.load(call_.scale + offset(m), 1.0f);
        chunk.store(inverse_ + m * call_.dim, reciprocal(scale));
        logs += folded(log32(scale));
      });
      float log_scale = 0.0f;
      for (int l = 0; l < kLanes; ++l) log_scale += logs[l];
      constant_[count_] = -log_scale - constant_of_law();
      expert_[count_++] = m;
    }
  }

  int count() const { return count_; }
  int expert(int j) const { return expert_[j]; }
  int64_t offset(int64_t m) const { return (m * call_.rows + row_) * call_.dim; }
  const float* inverse(int64_t m) const { return inverse_ + m * call_.dim; }

  // The log density, and each present expert's share of it, in order.
  float log_prob(const float* z, float* share) const {
    if (count_ == 0) return standard(z);
    for (int from = 0; from < count_; from += kLanes) {
      Floats sums[kLanes] = {};
      for (int j = from; j < count_ && j < from + kLanes; ++j) {
        const int m = expert_[j];
        Floats sum = {};
        over_dims(call_.dim, [&](auto chunk) MMEBM_INLINE {
          const auto u = (chunk.load(z) - chunk.load(call_.loc + offset(m))) * chunk.load(inverse(m));
          sum += folded(call_.law == Law::normal ? u * u * 0.5f : absolute(u));
        });
        sums[j - from] = sum;
      }
      const Floats across = sums_across(sums);
      for (int j = from; j < count_ && j < from + kLanes; ++j) share[j] = constant_[j] - across[j - from];
    }
    float top = share[0];
    for (int j = 1; j < count_; ++j) top = share[j] > top ? share[j] : top;
    if (top == -__builtin_inff()) {
      for (int j = 0; j < count_; ++j) share[j] = __builtin_nanf("");
      return top;
    }
    // Relative to the largest, not to the mixture: that one is rounded where densities are far out.
    float total = 0.0f;
    for (int j = 0; j < count_; ++j) total += share[j] = exp_below(share[j] - top);
    for (int j = 0; j < count_; ++j) share[j] /= total;
    return top + log32(total / static_cast<float>(count_));
  }

 private:
  float constant_of_law() const {
    return static_cast<float>(call_.dim) * (call_.law == Law::normal ? kHalfLogTwoPi : 0.693147181f);
  }

  float standard(const float* z) const {
    Floats sum = {};
    over_dims(call_.dim, [&](auto chunk) MMEBM_INLINE {
      const auto x = chunk.load(z);
      sum += folded(call_.law == Law::normal ? x * x * 0.5f : absolute(x));
    });
    float total = 0.0f;
    for (int l = 0; l < kLanes; ++l) total += sum[l];
    return -total - constant_of_law();
  }

  const MixtureCall& call_;
  float* inverse_;
  int64_t row_ = 0;
  int count_ = 0;
  int expert_[kMaxExperts];
  float constant_[kMaxExperts];
};

// sign(x), 0 at 0.
template <int N>
MMEBM_HD Real<N> sign(Real<N> x) {
  return select(x != 0.0f, with_sign_of(x, 1.0f), Real<N>(0.0f));
}

}  // namespace

void mixture(const MixtureCall& call, int threads) {
  const int workers = row_team(threads, call.rows, call.dim * call.experts * call.lead);
  const Workspace workspace(workers, Mixture::floats(call));
#pragma omp parallel num_threads(workers) if (workers > 1)
  {
    Mixture mixture(call, workspace.own());
    float share[kMaxExperts];
#pragma omp for schedule(static)
    for (int64_t row = 0; row < call.rows; ++row) {
      mixture.at_row(row);
      for (int64_t k = 0; k < call.lead; ++k) {
        const int64_t at = k * call.rows + row;
        call.out[at] = mixture.log_prob(call.z + at * call.dim, share);
      }
    }
  }
}

void mixture_backward(const MixtureBackwardCall& call, int threads) {
  const MixtureCall& in = call.in;
  const int workers = row_team(threads, in.rows, in.dim * in.experts * in.lead);
  const Workspace workspace(workers, Mixture::floats(in));
#pragma omp parallel num_threads(workers) if (workers > 1)
  {
    Mixture mixture(in, workspace.own());
    float share[kMaxExperts];
#pragma omp for schedule(static)
    for (int64_t row = 0; row < in.rows; ++row) {
      mixture.at_row(row);
      for (int64_t m = 0; call.d_loc && m < in.experts; ++m) {
        std::memset(call.d_loc + mixture.offset(m), 0, static_cast<size_t>(in.dim) * sizeof(float));
        std::memset(call.d_scale + mixture.offset(m), 0, static_cast<size_t>(in.dim) * sizeof(float));
      }
      for (int64_t k = 0; k < in.lead; ++k) {
        const int64_t at = k * in.rows + row;
        const float* z = in.z + at * in.dim;
        const float g = call.g[at];
        mixture.log_prob(z, share);
        over_dims(in.dim, [&](auto chunk) MMEBM_INLINE {
          const auto x = chunk.load(z);
          auto dz = x * 0.0f;
          if (mixture.count() == 0) dz = (in.law == Law::normal ? x : sign(x)) * -g;
          for (int j = 0; j < mixture.count(); ++j) {
            const int64_t m = mixture.expert(j);
            const auto by = chunk.load(mixture.inverse(m));
            const float weight = g * share[j];
            const auto u = (x - chunk.load(in.loc + mixture.offset(m))) * by;
            const auto pull = (in.law == Law::normal ? u : sign(u)) * by * weight;
            dz = dz - pull;
            if (!call.d_loc) continue;
            float* d_loc = call.d_loc + mixture.offset(m);
            float* d_scale = call.d_scale + mixture.offset(m);
            const auto stretch = (in.law == Law::normal ? u * u : absolute(u)) - 1.0f;
            chunk.store(d_loc, chunk.load(d_loc) + pull);
            chunk.store(d_scale, chunk.load(d_scale) + stretch * by * weight);
          }
          chunk.store(call.dz + at * in.dim, dz);
        });
      }
    }
  }
}

}  // namespace mmebm::cpu::MMEBM_ISA
