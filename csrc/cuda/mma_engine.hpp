// Weights in a block's memory and products with them by mma.sync: sm_80 and later, every precision of split.hpp.
#pragma once

#include "cuda/kernels.hpp"
#include "cuda/split.hpp"

namespace mmebm::cuda {

// D, H: padded widths of the input and of every hidden layer.
template <int D, int H, int terms>
class MmaEngine {
  using S = Split<terms>;
  static constexpr int kSkew = 8;  // elements behind a row of weights, so that rows start in different banks

 public:
  static constexpr int kChunk = terms == 6 ? 16 : 32;  // columns of a product at once, as registers allow
  static constexpr bool kHeld = false;
  using Operand = uint32_t[H / 16][S::kValues][4];
  template <int columns>
  using Sums = float[columns / 8][4];
  static_assert(D % kChunk == 0 && H % kChunk == 0 && D <= H);

  MMEBM_HD static constexpr int bytes(int hidden) { return 2 * S::kWeights * elements(hidden); }

  // All threads of the block; they may read the weights after their next barrier.
  // Weights come times `scale`, a power of two.
  MMEBM_BODY MmaEngine(const Net& net, float scale, char* memory, int threads)
      : weight_(reinterpret_cast<uint16_t*>(memory)), part_(elements(net.linear - 1)) {
    for (int l = 0; l + 1 < net.linear; ++l) {
      const int columns = l == 0 ? D : H;
      for (int i = simt::thread(); i < H * columns / 2; i += threads) {
        const int row = 2 * i / columns, column = 2 * i % columns;
        const float* const w = net.weight[l] + row * net.in[l] + column;
        const bool real = row < net.out[l];
        split_pair<S::kWeights>(
            real && column < net.in[l] ? w[0] * scale : 0.0f, real && column + 1 < net.in[l] ? w[1] * scale : 0.0f,
            [&](int part, uint32_t word) {
              *reinterpret_cast<uint32_t*>(weight_ + part * part_ + at(l) + row * (columns + kSkew) + column) = word;
            });
      }
    }
  }

  // c += x W^T of a layer with `depth` inputs, columns from `first` on.
  template <int depth>
  MMEBM_BODY void up(int layer, int first, const Operand& x, Sums<kChunk>& c) const {
    const uint16_t* const from = weight_ + at(layer) + first * (depth + kSkew);
    run<depth>(x, c, [&](int part, int k, int n, uint32_t(&one)[2], uint32_t(&two)[2]) {
      simt::load_b_pair(from + part * part_ + n * (depth + kSkew) + k, depth + kSkew, one, two);
    });
  }

  // c = x W of a layer with `across` inputs.
  template <int across>
  MMEBM_BODY void down(int layer, int first, const Operand& x, Sums<kChunk>& c) const {
    const uint16_t* const from = weight_ + at(layer) + first;
    MMEBM_UNROLL
    for (int n = 0; n < kChunk / 8; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
    run<H>(x, c, [&](int part, int k, int n, uint32_t(&one)[2], uint32_t(&two)[2]) {
      simt::load_b_rows_pair(from + part * part_ + k * (across + kSkew) + n, across + kSkew, one, two);
    });
  }

 private:
  MMEBM_HD static constexpr int elements(int hidden) { return H * (D + kSkew) + (hidden - 1) * H * (H + kSkew); }
  MMEBM_BODY static int at(int layer) { return layer == 0 ? 0 : H * (D + kSkew) + (layer - 1) * H * (H + kSkew); }

  template <int depth, class Load>
  MMEBM_BODY static void run(const Operand& x, Sums<kChunk>& c, Load load) {
    Sums<kChunk> small = {};
    MMEBM_UNROLL
    for (int j = 0; j < depth / 16; ++j) {
      MMEBM_UNROLL
      for (int n = 0; n < kChunk / 8; n += 2) {
        uint32_t b[2][S::kWeights][2];
        MMEBM_UNROLL
        for (int part = 0; part < S::kWeights; ++part) load(part, 16 * j, 8 * n, b[0][part], b[1][part]);
        multiply<terms>(x[j], b[0], c[n], small[n]);
        multiply<terms>(x[j], b[1], c[n + 1], small[n + 1]);
      }
    }
    if constexpr (S::kApart) {
      MMEBM_UNROLL
      for (int n = 0; n < kChunk / 8; ++n) {
        MMEBM_UNROLL
        for (int i = 0; i < 4; ++i) c[n][i] += small[n][i];
      }
    }
  }

  uint16_t* weight_;
  int part_;  // elements
};

}  // namespace mmebm::cuda
