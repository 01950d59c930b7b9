// What the launchers of whole chains share: as many blocks as run at once, each taking tile after tile.
#pragma once

#include "cuda/chain.hpp"
#include "cuda/launch.hpp"

namespace mmebm::cuda {

inline int widest(const Net& net) {
  int width = 0;
  for (int l = 0; l + 1 < net.linear; ++l) width = net.out[l] > width ? net.out[l] : width;
  return width;
}

template <class Body>
void launch_tiles(const typename Body::Call& call, int64_t tiles, int shared, Stream stream) {
  const int64_t most = resident<Body>(shared);
  launch<Body>(call, tiles < most ? tiles : most, shared, stream);
}

// Of a kernel of warp_chain.hpp.
template <class Body>
void launch_warps(const ChainCall& call, Stream stream) {
  launch_tiles<Body>(call, blocks_for(call.rows, Body::kRows), Body::shared_bytes(call.net), stream);
}

}  // namespace mmebm::cuda
