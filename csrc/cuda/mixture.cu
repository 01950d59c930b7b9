// The log density of a uniform mixture of diagonal experts and its gradient: a warp has a row's point z, lanes its
// dimensions. All lanes hold all experts' sums, so that each has the shares and none is handed on.
#include <limits>

#include "common/functions.hpp"
#include "cuda/launch.hpp"

namespace mmebm::cuda {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

MMEBM_HD float lesser(float a, float b) { return select(a < b, a, b); }
MMEBM_HD float greater(float a, float b) { return select(a < b, b, a); }

MMEBM_BODY int lane() { return simt::thread() % kWarp; }
MMEBM_BODY int64_t warp() { return simt::block() * kWarps + simt::thread() / kWarp; }

MMEBM_BODY float sum_of_warp(float x) {
  MMEBM_UNROLL
  for (int mask = 1; mask < kWarp; mask *= 2) x += simt::shuffle_xor(x, mask);
  return x;
}

// The warp's sum in two parts, of which the second is what the first's additions lost.
MMEBM_BODY Pair<float> exact_sum_of_warp(float x) {
  float lost = 0.0f;
  MMEBM_UNROLL
  for (int mask = 1; mask < kWarp; mask *= 2) {
    const float other = simt::shuffle_xor(x, mask), sum = x + other;
    const float low = lesser(x, other), high = greater(x, other);  // alike for both lanes
    const float back = sum - low;
    lost = lost + simt::shuffle_xor(lost, mask) + ((low - (sum - back)) + (high - back));
    x = sum;
  }
  return {x, select(absolute(x) < kInfinity, lost, 0.0f)};
}

// sign(x), 0 at 0.
MMEBM_HD float sign(float x) { return select(x > 0.0f, 1.0f, select(x < 0.0f, -1.0f, x)); }

// A row's mixture of E experts or fewer.
template <int E>
struct Mixture {
  const MixtureCall& call;
  int64_t row;
  uint32_t present;
  int count;
  bool normal;

  MMEBM_BODY Mixture(const MixtureCall& of, int64_t r) : call(of), row(r), count(0), normal(of.law == Law::normal) {
    present = static_cast<uint32_t>(of.present[r]) & static_cast<uint32_t>((uint64_t{1} << of.experts) - 1);
    MMEBM_UNROLL
    for (int m = 0; m < E; ++m) count += has(m);
  }

  MMEBM_BODY bool has(int m) const { return (present >> m & 1u) != 0; }
  // Where loc and scale have a dimension of the first expert, and how far the next expert's is.
  MMEBM_BODY int64_t first(int64_t dim) const { return row * call.dim + dim; }
  MMEBM_BODY int64_t next() const { return call.rows * call.dim; }
  MMEBM_BODY float distance(float u) const { return normal ? u * u * 0.5f : absolute(u); }
  MMEBM_BODY float slope(float u) const { return normal ? u : sign(u); }

  // The log density at z, and each present expert's share of it.
  MMEBM_BODY float log_prob(const float* z, float (&share)[E]) const {
    const float each = normal ? 0.918938533f : 0.693147181f;  // ln sqrt(2 pi), ln 2
    const float constant = static_cast<float>(call.dim) * each;
    if (count == 0) {
      float sum = 0.0f;
      for (int64_t dim = lane(); dim < call.dim; dim += kWarp) sum += distance(z[dim]);
      return -sum_of_warp(sum) - constant;
    }
    MMEBM_UNROLL
    for (int m = 0; m < E; ++m) share[m] = 0.0f;
    for (int64_t dim = lane(); dim < call.dim; dim += kWarp) {
      const float x = z[dim];
      int64_t at = first(dim);
      MMEBM_UNROLL
      for (int m = 0; m < E; ++m, at += next()) {
        if (!has(m)) continue;
        const float scale = call.scale[at];
        share[m] += distance((x - call.loc[at]) / scale) + log32(scale);
      }
    }
    float top = -kInfinity, top_rest = 0.0f, rest[E];
    MMEBM_UNROLL
    for (int m = 0; m < E; ++m) {
      if (!has(m)) continue;
      const Pair<float> sum = exact_sum_of_warp(share[m]);
      share[m] = -sum.a;
      rest[m] = -sum.b;
      const bool lower = share[m] <= top;
      top = select(lower, top, share[m]);
      top_rest = select(lower, top_rest, rest[m]);
    }
    // Relative to the largest, not to the mixture: that one is rounded where densities are far out. So are the sums,
    // whose last digits are the shares' first.
    float total = 0.0f;
    MMEBM_UNROLL
    for (int m = 0; m < E; ++m) {
      if (!has(m)) continue;
      share[m] = top == -kInfinity ? kNaN : exp_below((share[m] - top) + (rest[m] - top_rest));
      total += share[m];
    }
    MMEBM_UNROLL
    for (int m = 0; m < E; ++m) share[m] /= total;
    return top == -kInfinity ? top : top - constant + log32(total / static_cast<float>(count));
  }
};

template <int E>
struct MixtureBody {
  using Call = MixtureCall;
  static constexpr int kThreads = cuda::kThreads;
  static constexpr bool kMeets = true;

  MMEBM_BODY static void run(const Call& call, char*) {
    const int64_t item = warp();
    if (item >= call.rows * call.lead) return;
    const int64_t row = item / call.lead;  // neighbours share a row's experts
    const int64_t at = item % call.lead * call.rows + row;
    const Mixture<E> mixture(call, row);
    float share[E];
    const float log_prob = mixture.log_prob(call.z + at * call.dim, share);
    if (lane() == 0) call.out[at] = log_prob;
  }
};

// A warp has one z, or where it is to have the gradient in loc and scale, all of a row: it sums over them in order.
template <int E, bool Parameters>
struct MixtureBackwardBody {
  using Call = MixtureBackwardCall;
  static constexpr int kThreads = cuda::kThreads;
  static constexpr bool kMeets = true;

  MMEBM_BODY static void run(const Call& call, char*) {
    const MixtureCall& in = call.in;
    const int64_t item = warp();
    if (item >= (Parameters ? in.rows : in.rows * in.lead)) return;
    const int64_t row = Parameters ? item : item / in.lead;
    const Mixture<E> mixture(in, row);
    if constexpr (Parameters) {
      clear(call, mixture);
      for (int64_t k = 0; k < in.lead; ++k) send_back(call, mixture, k);
    } else {
      send_back(call, mixture, item % in.lead);
    }
  }

  // What no z reaches.
  MMEBM_BODY static void clear(const Call& call, const Mixture<E>& mixture) {
    for (int m = 0; m < call.in.experts; ++m) {
      if (mixture.has(m) && call.in.lead > 0) continue;
      for (int64_t dim = lane(); dim < call.in.dim; dim += kWarp) {
        const int64_t at = mixture.first(dim) + m * mixture.next();
        call.d_loc[at] = call.d_scale[at] = 0.0f;
      }
    }
  }

  MMEBM_BODY static void send_back(const Call& call, const Mixture<E>& mixture, int64_t k) {
    const MixtureCall& in = call.in;
    const int64_t point = k * in.rows + mixture.row;
    const float* z = in.z + point * in.dim;
    float* dz = call.dz + point * in.dim;
    const float g = call.g[point];
    if (mixture.count == 0) {
      for (int64_t dim = lane(); dim < in.dim; dim += kWarp) dz[dim] = mixture.slope(z[dim]) * -g;
      return;
    }
    float share[E];
    mixture.log_prob(z, share);
    for (int64_t dim = lane(); dim < in.dim; dim += kWarp) {
      const float x = z[dim];
      float sum = 0.0f;
      int64_t at = mixture.first(dim);
      MMEBM_UNROLL
      for (int m = 0; m < E; ++m, at += mixture.next()) {
        if (!mixture.has(m)) continue;
        const float scale = in.scale[at], weight = g * share[m] / scale;
        const float u = (x - in.loc[at]) / scale;
        const float pull = mixture.slope(u) * weight;
        sum -= pull;
        if constexpr (Parameters) {
          const float stretch = ((mixture.normal ? u * u : absolute(u)) - 1.0f) * weight;
          call.d_loc[at] = k == 0 ? pull : call.d_loc[at] + pull;
          call.d_scale[at] = k == 0 ? stretch : call.d_scale[at] + stretch;
        }
      }
      dz[dim] = sum;
    }
  }
};

template <int E>
using PointsBackwardBody = MixtureBackwardBody<E, false>;
template <int E>
using AllBackwardBody = MixtureBackwardBody<E, true>;

// The body for the least count that holds all experts: arrays of that size are registers.
template <template <int> class Body, int... Counts, class Call>
void launch_for(const Call& call, int64_t experts, int64_t items, Stream stream) {
  (void)((experts <= Counts && (launch<Body<Counts>>(call, blocks_for(items, kWarps), 0, stream), true)) || ...);
}

template <template <int> class Body, class Call>
void launch_any(const Call& call, int64_t experts, int64_t items, Stream stream) {
  if (items != 0) launch_for<Body, 2, 5, 8, 16, kMaxExperts>(call, experts, items, stream);
}

}  // namespace

void mixture(const MixtureCall& call, Stream stream) {
  launch_any<MixtureBody>(call, call.experts, call.lead * call.rows, stream);
}

void mixture_backward(const MixtureBackwardCall& call, Stream stream) {
  const MixtureCall& in = call.in;
  if (in.dim == 0) return;
  if (call.d_loc) {
    launch_any<AllBackwardBody>(call, in.experts, in.rows, stream);  // also without a z: the gradients are 0 then
  } else {
    launch_any<PointsBackwardBody>(call, in.experts, in.lead * in.rows, stream);
  }
}

}  // namespace mmebm::cuda
