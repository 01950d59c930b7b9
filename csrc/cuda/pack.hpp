// Weights of hidden layers in the device's memory, split in bf16 parts and in the order of mma_bf16's B: the two words of
// a lane side by side, 32 lanes a fragment, its parts, then fragments along k, then along n. Each layer is there twice,
// for products with W^T and with W.
#pragma once

#include "cuda/fragments.hpp"
#include "cuda/kernels.hpp"
#include "cuda/split.hpp"

namespace mmebm::cuda {

MMEBM_HD int padded(int n) { return (n + 15) / 16 * 16; }

struct alignas(8) Pair32 {
  uint32_t x, y;
};

template <int parts>
class Packed {
 public:
  MMEBM_HD Packed(const Net& net, const Pair32* memory) : net_(net), memory_(memory) {}

  // Of all layers, in pairs of words.
  MMEBM_HD static int64_t size(const Net& net) { return start(net, net.linear - 1, false); }

  // A lane's first pair of a layer; the next fragment's lies 32 pairs on.
  MMEBM_BODY const Pair32* lane(int layer, bool back, int lane) const { return memory_ + start(net_, layer, back) + lane; }

  MMEBM_BODY int64_t place(int layer, bool back, int tile, int step, int part, int lane) const {
    const int steps = padded(back ? net_.out[layer] : net_.in[layer]) / 16;
    return ((int64_t{tile} * steps + step) * parts + part) * 32 + lane;
  }

  MMEBM_HD static int64_t start(const Net& net, int layer, bool back) {
    int64_t from = 0;
    for (int l = 0; l < layer; ++l) from += 2 * fragments(net, l);
    return from + (back ? fragments(net, layer) : 0);
  }

 private:
  MMEBM_HD static int64_t fragments(const Net& net, int layer) {
    return int64_t{padded(net.out[layer])} * padded(net.in[layer]) / (8 * 16) * 32 * parts;
  }

  const Net& net_;
  const Pair32* memory_;
};

// A thread has one lane of one fragment, all its parts.
template <int parts>
struct Pack {
  struct Call {
    Net net;
    Pair32* memory;
  };
  static constexpr int kThreads = 256;
  static constexpr bool kMeets = false;

  MMEBM_BODY static void run(const Call& call, char*) {
    const Packed<parts> packed(call.net, call.memory);
    int64_t i = (simt::block() * kThreads + simt::thread()) / 32;  // fragment
    const int lane = simt::thread() % 32;
    for (int layer = 0; layer + 1 < call.net.linear; ++layer) {
      const int in = call.net.in[layer], out = call.net.out[layer];
      for (int back = 0; back < 2; ++back) {
        const int steps = padded(back ? out : in) / 16, count = padded(back ? in : out) / 8 * steps;
        if (i >= count) {
          i -= count;
          continue;
        }
        const int tile = static_cast<int>(i) / steps, step = static_cast<int>(i) % steps;
        uint32_t words[2][parts];
        MMEBM_UNROLL
        for (int r = 0; r < 2; ++r) {
          float x[2];
          MMEBM_UNROLL
          for (int half = 0; half < 2; ++half) {
            const fragments::Place at = fragments::b16(lane, 2 * r + half);
            const int k = 16 * step + at.row, n = 8 * tile + at.column, row = back ? k : n, column = back ? n : k;
            x[half] = row < out && column < in ? call.net.weight[layer][row * in + column] : 0.0f;
          }
          split_pair<parts>(x[0], x[1], [&](int part, uint32_t word) { words[r][part] = word; });
        }
        MMEBM_UNROLL
        for (int part = 0; part < parts; ++part) {
          const int64_t to = Packed<parts>::start(call.net, layer, back) + packed.place(layer, back, tile, step, part, lane);
          call.memory[to] = {words[0][part], words[1][part]};
        }
        return;
      }
    }
  }
};

}  // namespace mmebm::cuda
