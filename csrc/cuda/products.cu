// Products of diagonal normal experts: of a row's present ones.
#include "cuda/experts.hpp"

namespace mmebm::cuda {

namespace {

using namespace experts;

template <int E>
struct ProductBody {
  using Call = ProductCall;
  static constexpr int kThreads = experts::kThreads;
  static constexpr bool kMeets = false;

  MMEBM_BODY static void run(const Call& call, char*) {
    const Experts& in = call.in;
    const int64_t at = element();
    if (at >= in.rows * in.dim) return;
    const Row row = Row::at(in, at / in.dim);
    float mu[E], logvar[E];
    load(in, in.logvar, at, row.present, logvar);
    load(in, in.mu, at, row.present, mu);
    Product<E> product;
    multiply(mu, logvar, row.present, row.with_prior(row.present), product);
    call.mu[at] = product.mean;
    call.logvar[at] = product.logvar();
  }
};

template <int E>
struct ProductBackwardBody {
  using Call = ProductBackwardCall;
  static constexpr int kThreads = experts::kThreads;
  static constexpr bool kMeets = false;

  MMEBM_BODY static void run(const Call& call, char*) {
    const Experts& in = call.in;
    const int64_t at = element();
    if (at >= in.rows * in.dim) return;
    const Row row = Row::at(in, at / in.dim);
    float mu[E], logvar[E], d_mu[E] = {}, d_logvar[E] = {};
    load(in, in.logvar, at, row.present, logvar);
    load(in, in.mu, at, row.present, mu);
    Product<E> product;
    multiply(mu, logvar, row.present, row.with_prior(row.present), product);
    send_back(mu, row.present, product, call.g_mu[at], call.g_logvar[at], d_mu, d_logvar);
    store(in, call.d_mu, at, d_mu);
    store(in, call.d_logvar, at, d_logvar);
  }
};

template <template <int> class Body, class Call>
void launch_product(const Call& call, Stream stream) {
  launch_for<Body, 2, 5, 8, 16, kMaxExperts>(call, call.in.rows * call.in.dim, kThreads, stream);
}

}  // namespace

void product(const ProductCall& call, Stream stream) { launch_product<ProductBody>(call, stream); }

void product_backward(const ProductBackwardCall& call, Stream stream) {
  launch_product<ProductBackwardBody>(call, stream);
}

}  // namespace mmebm::cuda
