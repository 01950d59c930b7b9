// What kernels for products of diagonal normal experts share. A thread has all experts of one element (row and
// dimension). A product's precision is a sum of precisions relative to the largest one.
#pragma once

#include <limits>

#include "common/functions.hpp"
#include "cuda/launch.hpp"

namespace mmebm::cuda::experts {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kThreads = 256;

MMEBM_HD bool has(uint32_t mask, int m) { return (mask >> m & 1u) != 0; }
MMEBM_HD float lesser(float a, float b) { return select(a < b, a, b); }

struct Row {
  uint32_t present, all;
  Prior prior;

  MMEBM_BODY static Row at(const Experts& in, int64_t row) {
    const uint32_t all = static_cast<uint32_t>((uint64_t{1} << in.experts) - 1);
    return {static_cast<uint32_t>(in.present[row]) & all, all, in.prior};
  }
  MMEBM_BODY bool with_prior(uint32_t mask) const {
    return mask == 0 || prior == Prior::always || (prior == Prior::full && mask == all);
  }
  // Whether the product of `mask` is one expert as it is.
  MMEBM_BODY bool alone(uint32_t mask) const { return (mask & (mask - 1)) == 0 && !with_prior(mask); }
};

// The thread's own element.
MMEBM_BODY int64_t element() { return simt::block() * kThreads + simt::thread(); }

// The experts' values at an element, 0 for those absent.
template <int E>
MMEBM_BODY void load(const Experts& in, const float* from, int64_t at, uint32_t present, float (&out)[E]) {
  MMEBM_UNROLL
  for (int m = 0; m < E; ++m) out[m] = has(present, m) ? from[m * in.rows * in.dim + at] : 0.0f;
}

template <int E>
MMEBM_BODY void store(const Experts& in, float* to, int64_t at, const float (&values)[E]) {
  MMEBM_UNROLL
  for (int m = 0; m < E; ++m) {
    if (m < in.experts) to[m * in.rows * in.dim + at] = values[m];
  }
}

template <int E>
struct Product {
  float least, sum, mean;  // log-variance = least - ln sum
  float weight[E];         // precisions of the experts in it relative to e^-least

  MMEBM_BODY float logvar() const { return least - log32(sum); }
};

// The product of the experts in `mask`.
template <int E>
MMEBM_BODY void multiply(const float (&mu)[E], const float (&logvar)[E], uint32_t mask, bool prior, Product<E>& out) {
  out.least = prior ? 0.0f : kInfinity;
  MMEBM_UNROLL
  for (int m = 0; m < E; ++m) {
    if (has(mask, m)) out.least = lesser(logvar[m], out.least);
  }
  out.sum = prior ? exp_below(out.least) : 0.0f;
  float total = 0.0f;
  MMEBM_UNROLL
  for (int m = 0; m < E; ++m) {
    out.weight[m] = 0.0f;
    if (!has(mask, m)) continue;
    out.weight[m] = exp_below(out.least - logvar[m]);
    out.sum += out.weight[m];
    total = fma32(out.weight[m], mu[m], total);
  }
  out.mean = total * reciprocal(out.sum);
}

// What one product sends back to its experts, added to what they have.
template <int E>
MMEBM_BODY void send_back(const float (&mu)[E], uint32_t mask, const Product<E>& product, float g_mean, float g_logvar,
                          float (&d_mu)[E], float (&d_logvar)[E]) {
  const float inverse = reciprocal(product.sum);
  MMEBM_UNROLL
  for (int m = 0; m < E; ++m) {
    if (!has(mask, m)) continue;
    const float weight = product.weight[m] * inverse;
    d_mu[m] += weight * g_mean;
    d_logvar[m] += weight * fma32(-g_mean, mu[m] - product.mean, g_logvar);
  }
}

// The body for the least of `Counts` that holds all experts: arrays of that size are registers.
template <template <int> class Body, int... Counts, class Call>
void launch_for(const Call& call, int64_t items, int64_t each, Stream stream) {
  (void)((call.in.experts <= Counts && (launch<Body<Counts>>(call, blocks_for(items, each), 0, stream), true)) || ...);
}

}  // namespace mmebm::cuda::experts
