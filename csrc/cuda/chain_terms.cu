// The whole-chain kernels of one precision: compiled once for every number of terms, MMEBM_TERMS.
#include "cuda/block_chain.hpp"
#include "cuda/chain_launch.hpp"
#include "cuda/mma_engine.hpp"
#include "cuda/pack.hpp"
#include "cuda/warp_chain.hpp"

namespace mmebm::cuda {

namespace {

constexpr int kTerms = MMEBM_TERMS;

// act<Body>() of the least kernel that holds the network, if there is one.
template <class Act>
void choose(const Net& net, Act act) {
  const int width = widest(net);
  if (net.in[0] <= 32 && width <= 64) return act.template operator()<WarpChain<MmaEngine, 32, 64, kTerms>>();
  if (net.in[0] <= 32 && width <= 128) return act.template operator()<WarpChain<MmaEngine, 32, 128, kTerms>>();
  if (net.in[0] <= 64 && width <= 64) return act.template operator()<WarpChain<MmaEngine, 64, 64, kTerms>>();
  if (net.in[0] <= 64 && width <= 128) return act.template operator()<WarpChain<MmaEngine, 64, 128, kTerms>>();
}

}  // namespace

template <>
void block_chain<kTerms>(const ChainCall& call, bool adjusted, Stream stream) {
  using Body = BlockChain<kTerms, false>;
  const typename Body::Call launched{call, {call.net, nullptr}, adjusted};
  launch_tiles<Body>(launched, blocks_for(call.rows, Body::kRows), Body::shared_bytes(call.net, adjusted), stream);
}

template <>
int block_chain_bytes<kTerms>(const Net& net, bool adjusted) {
  return BlockChain<kTerms, false>::shared_bytes(net, adjusted);
}

template <>
void streamed_chain<kTerms>(const ChainCall& call, bool adjusted, void* workspace, Stream stream) {
  using Body = BlockChain<kTerms, true>;
  Pair32* const memory = static_cast<Pair32*>(workspace);
  using Weights = Pack<Split<kTerms>::kWeights>;
  const int64_t threads = Packed<Split<kTerms>::kWeights>::size(call.net) / Split<kTerms>::kWeights;
  launch<Weights>({call.net, memory}, blocks_for(threads, Weights::kThreads), 0, stream);
  const typename Body::Call launched{call, {call.net, memory}, adjusted};
  launch_tiles<Body>(launched, blocks_for(call.rows, Body::kRows), Body::shared_bytes(call.net, adjusted), stream);
}

template <>
int streamed_chain_bytes<kTerms>(const Net& net, bool adjusted) {
  return BlockChain<kTerms, true>::shared_bytes(net, adjusted);
}

template <>
int64_t workspace_bytes<kTerms>(const Net& net) {
  return Packed<Split<kTerms>::kWeights>::size(net) * static_cast<int64_t>(sizeof(Pair32));
}

template <>
void warp_chain<kTerms>(const ChainCall& call, Stream stream) {
  choose(call.net, [&]<class Body>() { launch_warps<Body>(call, stream); });
}

template <>
int warp_chain_bytes<kTerms>(const Net& net) {
  int bytes = 0;
  choose(net, [&]<class Body>() { bytes = Body::shared_bytes(net); });
  return bytes;
}

}  // namespace mmebm::cuda
