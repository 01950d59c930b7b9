// What the launchers of warp_chain.hpp's kernels share.
#pragma once

#include "cuda/launch.hpp"

namespace mmebm::cuda {

inline int widest(const Net& net) {
  int width = 0;
  for (int l = 0; l + 1 < net.linear; ++l) width = net.out[l] > width ? net.out[l] : width;
  return width;
}

// As many blocks as run at once, each taking tile after tile.
template <class Body>
void launch_tiles(const ChainCall& call, Stream stream) {
  const int shared = Body::shared_bytes(call.net);
  const int64_t blocks = blocks_for(call.rows, Body::kRows * (Body::kThreads / 128)), most = resident<Body>(shared);
  launch<Body>(call, blocks < most ? blocks : most, shared, stream);
}

}  // namespace mmebm::cuda
