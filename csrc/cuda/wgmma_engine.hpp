// Weights in a block's memory and products with them by wgmma: sm_90a, bf16. One copy of a weight serves both ways.
//
// A weight [H, columns] lies in blocks of up to 64 columns, a row of a block in 64 or 128 bytes, eight rows an atom whose
// 16-byte pieces are swizzled (PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout"). Read along k it is
// W^T, "K-major"; read along its rows, with the transposing bit, it is W, "MN-major".
#pragma once

#include "cuda/kernels.hpp"
#include "cuda/split.hpp"

namespace mmebm::cuda {

template <int D, int H, int terms>
class WgmmaEngine {
  static_assert(terms == 1 && (D == 32 || D == 64) && H % 64 == 0);

 public:
  static constexpr int kChunk = H > 64 ? 64 : 32;  // columns of a product at once, as registers allow
  static constexpr bool kHeld = H > 128;           // see warp_chain.hpp
  using Operand = uint32_t[H / 16][1][4];
  template <int columns>
  using Sums = float[columns / 8][4];

  MMEBM_HD static constexpr int bytes(int hidden) { return 2 * H * (D + (hidden - 1) * H); }

  // All threads of the block; they may read the weights after their next barrier. `memory` starts at 1024 bytes.
  // Weights come times `scale`, a power of two.
  MMEBM_BODY WgmmaEngine(const Net& net, float scale, char* memory, int threads) : place_(simt::place(memory)) {
    for (int l = 0; l + 1 < net.linear; ++l) {
      const int columns = l == 0 ? D : H, width = columns < 64 ? columns : 64;
      for (int i = simt::thread(); i < H * columns / 2; i += threads) {
        const int row = 2 * i / columns, column = 2 * i % columns;
        const float* const w = net.weight[l] + row * net.in[l] + column;
        const bool real = row < net.out[l];
        const uint32_t word = simt::pack_bf16(real && column < net.in[l] ? w[0] * scale : 0.0f,
                                              real && column + 1 < net.in[l] ? w[1] * scale : 0.0f);
        const int plain = column / width * (H * 2 * width) + row * 2 * width + 2 * (column % width);
        *reinterpret_cast<uint32_t*>(memory + at(l) + simt::swizzled(plain, 2 * width)) = word;
      }
    }
    simt::publish();
  }

  // c += x W^T of a layer with `depth` inputs, columns from `first` on; four warps come together.
  template <int depth>
  MMEBM_BODY void up(int layer, int first, const Operand& x, Sums<kChunk>& c) const {
    constexpr int kWidth = depth < 64 ? depth : 64, kRow = 2 * kWidth;
    const simt::Place from = place_ + (at(layer) + first * kRow) / 16;
    begin<depth>(x, c);
    MMEBM_UNROLL
    for (int j = 0; j < depth / 16; ++j) {
      const int to = 16 * j / kWidth * (H * kRow) + 2 * (16 * j % kWidth);
      simt::wgmma<false, true>(c, x[j][0], simt::descriptor(from + to / 16, 0, 8 * kRow, kRow));
    }
    simt::wgmma_end();
    pin(c);
  }

  // c = x W of a layer with `across` inputs.
  template <int across>
  MMEBM_BODY void down(int layer, int first, const Operand& x, Sums<(across < kChunk ? across : kChunk)>& c) const {
    constexpr int kWidth = across < 64 ? across : 64, kRow = 2 * kWidth;
    const simt::Place from = place_ + (at(layer) + first / kWidth * (H * kRow) + 2 * (first % kWidth)) / 16;
    begin<H>(x, c);
    MMEBM_UNROLL
    for (int j = 0; j < H / 16; ++j) {
      const uint64_t w = simt::descriptor(from + j * kRow, H * kRow, 8 * kRow, kRow);
      if (j == 0) {
        simt::wgmma<true, false>(c, x[j][0], w);
      } else {
        simt::wgmma<true, true>(c, x[j][0], w);
      }
    }
    simt::wgmma_end();
    pin(c);
  }

 private:
  template <size_t tiles>
  MMEBM_BODY static void pin(float (&c)[tiles][4]) {
    MMEBM_UNROLL
    for (size_t n = 0; n < tiles; ++n) {
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) simt::pin(c[n][i]);
    }
  }

  template <int depth, size_t tiles>
  MMEBM_BODY static void begin(const Operand& x, float (&c)[tiles][4]) {
    pin(c);
    MMEBM_UNROLL
    for (int j = 0; j < depth / 16; ++j) {
      MMEBM_UNROLL
      for (int r = 0; r < 4; ++r) simt::pin(x[j][0][r]);
    }
    simt::wgmma_begin();
  }

  MMEBM_BODY static int at(int layer) { return layer == 0 ? 0 : 2 * H * (D + (layer - 1) * H); }

  simt::Place place_;
};

}  // namespace mmebm::cuda
