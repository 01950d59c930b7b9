#include "cuda/chain_launch.hpp"
#include "cuda/warp_chain.hpp"
#include "cuda/wgmma_engine.hpp"

namespace mmebm::cuda {

namespace {

// act<Body>() of the least kernel that holds the network, if there is one.
template <class Act>
void choose(const Net& net, Act act) {
  const int width = widest(net);
  if (net.in[0] <= 32 && width <= 64) return act.template operator()<WarpChain<WgmmaEngine, 32, 64, 1>>();
  if (net.in[0] <= 32 && width <= 128) return act.template operator()<WarpChain<WgmmaEngine, 32, 128, 1>>();
  if (net.in[0] <= 32 && width <= 256) return act.template operator()<WarpChain<WgmmaEngine, 32, 256, 1>>();
  if (net.in[0] <= 64 && width <= 64) return act.template operator()<WarpChain<WgmmaEngine, 64, 64, 1>>();
  if (net.in[0] <= 64 && width <= 128) return act.template operator()<WarpChain<WgmmaEngine, 64, 128, 1>>();
}

}  // namespace

void wgmma_chain(const ChainCall& call, Stream stream) {
  choose(call.net, [&]<class Body>() { launch_warps<Body>(call, stream); });
}

int wgmma_chain_bytes(const Net& net) {
  int bytes = 0;
  choose(net, [&]<class Body>() { bytes = Body::shared_bytes(net); });
  return bytes;
}

}  // namespace mmebm::cuda
