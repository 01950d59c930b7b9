// Whole chains of csrc/cuda/chain.hpp under the emulator, called from Python.
#include <cstring>
#include <vector>

#include "cuda/chain.hpp"

namespace {

using namespace mmebm;

constexpr int kThreads = 64;

template <int D, int H, int terms>
void run(const cuda::Chain& call) {
  std::vector<char> shared(cuda::shared_bytes<D, H, terms>(call.linear, kThreads) + 16);
  char* const aligned = shared.data() + (16 - reinterpret_cast<uintptr_t>(shared.data()) % 16) % 16;
  for (int64_t first = 0; first < call.rows; first += kThreads / 2) {
    std::memset(aligned, 0xff, cuda::shared_bytes<D, H, terms>(call.linear, kThreads));  // NaN, until it is written
    simt::Block(kThreads, [&] {
      cuda::ChainTile<D, H, terms> tile(call, aligned, kThreads);
      tile.run(first + 16 * (simt::thread() / 32));
    }).run();
  }
}

template <int D, int H>
int run(const cuda::Chain& call, int terms) {
  if (terms == 1) return run<D, H, 1>(call), 0;
  if (terms == 2) return run<D, H, 2>(call), 0;
  if (terms == 3) return run<D, H, 3>(call), 0;
  return 1;
}

}  // namespace

extern "C" int chain(const cuda::Chain* call, int dim, int width, int terms) {
  if (dim == 16 && width == 32) return run<16, 32>(*call, terms);
  if (dim == 32 && width == 64) return run<32, 64>(*call, terms);
  return 1;
}
