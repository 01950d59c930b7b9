// The whole-chain kernel for sm_80 and later. Compiled by the tests; nothing launches it yet.
#include "cuda/chain.hpp"

namespace mmebm::cuda {

// Every warp takes tiles of 16 chains until none is left; after the weights are in place no warp waits for another.
template <int D, int H, int terms>
__global__ void __launch_bounds__(256) langevin_chain(const __grid_constant__ Chain call) {
  extern __shared__ __align__(16) char shared[];
  ChainTile<D, H, terms> tile(call, shared, static_cast<int>(blockDim.x));
  const int64_t warps = blockDim.x / 32;
  for (int64_t i = blockIdx.x * warps + threadIdx.x / 32; 16 * i < call.rows; i += gridDim.x * warps) tile.run(16 * i);
}

template __global__ void langevin_chain<32, 64, 1>(const __grid_constant__ Chain);
template __global__ void langevin_chain<32, 128, 1>(const __grid_constant__ Chain);

}  // namespace mmebm::cuda
