// Compiled once per instruction set. Calls are gathered into tiles of independent lanes, whatever the shape is, which
// leaves the compiler plain loops to vectorise; the scattered stores cost less than odd dims would.
#include <algorithm>

#include "common/normal.hpp"
#include "common/philox.hpp"
#include "cpu/draw.hpp"
#include "cpu/philox_tile.hpp"

namespace mmebm::cpu::MMEBM_ISA {

namespace {

constexpr int kTile = 64;
constexpr int64_t kDims[4] = {0, 1, 8, 9};  // of a call, from its first

template <Law law, bool scaled>
void draw_tiles(float* out, const float* scale, DrawShape shape, DrawStream stream, int64_t begin, int64_t end) {
  const int64_t n = calls(shape.dim);
  const uint32_t k0 = static_cast<uint32_t>(stream.seed), k1 = static_cast<uint32_t>(stream.seed >> 32);
  int64_t q = begin % n;
  int64_t row = begin / n % shape.rows;
  int64_t s = begin / n / shape.rows;

  alignas(64) uint64_t c[4][kTile] = {};
  alignas(64) float y[4][kTile];
  int64_t at[kTile];    // where the lane's row starts in out
  int64_t first[kTile]; // the lane's first dim
  for (; begin < end; begin += kTile) {
    const int lanes = static_cast<int>(std::min<int64_t>(kTile, end - begin));
    for (int l = 0; l < lanes; ++l) {
      const Words ctr = counter((stream.chain + static_cast<uint64_t>(row)) & kMask48,
                                (stream.offset + static_cast<uint64_t>(s)) & kMask48, stream.purpose, static_cast<uint32_t>(q));
      c[0][l] = ctr.x0;
      c[1][l] = ctr.x1;
      c[2][l] = ctr.x2;
      c[3][l] = ctr.x3;
      at[l] = (s * shape.rows + row) * shape.dim;
      first[l] = first_dim(q);
      if (++q == n) {
        q = 0;
        if (++row == shape.rows) {
          row = 0;
          ++s;
        }
      }
    }
    philox_tile(c, k0, k1);
    for (int l = 0; l < kTile; ++l) {
      const Words x{static_cast<uint32_t>(c[0][l]), static_cast<uint32_t>(c[1][l]), static_cast<uint32_t>(c[2][l]),
                    static_cast<uint32_t>(c[3][l])};
      if constexpr (law == Law::normal) {
        const Pair low = normal_pair(x.x0, x.x1), high = normal_pair(x.x2, x.x3);
        y[0][l] = low.a;
        y[1][l] = low.b;
        y[2][l] = high.a;
        y[3][l] = high.b;
      } else {
        y[0][l] = laplace_unit(x.x0);
        y[1][l] = laplace_unit(x.x1);
        y[2][l] = laplace_unit(x.x2);
        y[3][l] = laplace_unit(x.x3);
      }
    }
    for (int l = 0; l < lanes; ++l) {
      float* to = out + at[l] + first[l];
      const float* by = scaled ? scale + first[l] : nullptr;
      if (first[l] + kDims[3] < shape.dim) {
        for (int j = 0; j < 4; ++j) to[kDims[j]] = scaled ? y[j][l] * by[kDims[j]] : y[j][l];
      } else {
        for (int j = 0; j < 4; ++j) {
          if (first[l] + kDims[j] < shape.dim) to[kDims[j]] = scaled ? y[j][l] * by[kDims[j]] : y[j][l];
        }
      }
    }
  }
}

}  // namespace

void draw_lanes(float* out, const float* scale, DrawShape shape, DrawStream stream, Law law, int64_t begin, int64_t end) {
  const auto tiles = law == Law::normal ? (scale ? draw_tiles<Law::normal, true> : draw_tiles<Law::normal, false>)
                                        : (scale ? draw_tiles<Law::laplace, true> : draw_tiles<Law::laplace, false>);
  tiles(out, scale, shape, stream, begin, end);
}

}  // namespace mmebm::cpu::MMEBM_ISA
