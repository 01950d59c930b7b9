#include "cuda/warp_chain.hpp"

#include "cuda/mma_engine.hpp"
#include "cuda/warp_chain_launch.hpp"

namespace mmebm::cuda {

namespace {

// act<D, H, terms>() of the least kernel that holds the network, if there is one.
template <class Act>
void choose(const Net& net, int terms, Act act) {
  const auto with_terms = [&]<int D, int H>() {
    if (terms == 1) act.template operator()<WarpChain<MmaEngine, D, H, 1>>();
    if (terms == 2) act.template operator()<WarpChain<MmaEngine, D, H, 2>>();
    if (terms == 3) act.template operator()<WarpChain<MmaEngine, D, H, 3>>();
    if (terms == 6) act.template operator()<WarpChain<MmaEngine, D, H, 6>>();
  };
  const int width = widest(net);
  if (net.in[0] <= 32 && width <= 64) return with_terms.template operator()<32, 64>();
  if (net.in[0] <= 32 && width <= 128) return with_terms.template operator()<32, 128>();
  if (net.in[0] <= 64 && width <= 64) return with_terms.template operator()<64, 64>();
  if (net.in[0] <= 64 && width <= 128) return with_terms.template operator()<64, 128>();
}

}  // namespace

void warp_chain(const ChainCall& call, int terms, Stream stream) {
  choose(call.net, terms, [&]<class Body>() { launch_tiles<Body>(call, stream); });
}

int warp_chain_bytes(const Net& net, int terms) {
  int bytes = 0;
  choose(net, terms, [&]<class Body>() { bytes = Body::shared_bytes(net); });
  return bytes;
}

}  // namespace mmebm::cuda
