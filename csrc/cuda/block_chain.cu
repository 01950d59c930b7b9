#include "cuda/block_chain.hpp"

#include "cuda/launch.hpp"

namespace mmebm::cuda {

namespace {

template <int terms>
void run(const ChainCall& call, bool adjusted, Stream stream) {
  using Body = BlockChain<terms>;
  const int shared = Body::shared_bytes(call.net, adjusted);
  const int64_t tiles = blocks_for(call.rows, Body::kRows), most = resident<Body>(shared);
  launch<Body>({call, BlockLayout(call.net), adjusted}, tiles < most ? tiles : most, shared, stream);
}

}  // namespace

void block_chain(const ChainCall& call, bool adjusted, int terms, Stream stream) {
  if (terms == 1) return run<1>(call, adjusted, stream);
  if (terms == 2) return run<2>(call, adjusted, stream);
  if (terms == 3) return run<3>(call, adjusted, stream);
  return run<6>(call, adjusted, stream);
}

int block_chain_bytes(const Net& net, bool adjusted, int terms) {
  if (terms == 1) return BlockChain<1>::shared_bytes(net, adjusted);
  if (terms == 2) return BlockChain<2>::shared_bytes(net, adjusted);
  if (terms == 3) return BlockChain<3>::shared_bytes(net, adjusted);
  return BlockChain<6>::shared_bytes(net, adjusted);
}

}  // namespace mmebm::cuda
