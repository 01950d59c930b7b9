// Bodies run under the emulator against plain loops; exits with 1 and says what differs.
#include <cstdio>

#include "cuda/fragments.hpp"
#include "cuda/simt.hpp"

using namespace mmebm;

// Two chained products of one warp, D = bf16(A B) C: the second A is packed from accumulators without a shuffle.
MMEBM_BODY void chained(const float* a, const float* b, const float* c, float* out, float* sums) {
  const int lane = simt::thread() % 32, warp = simt::thread() / 32;
  const auto in_a = [=](int i) { return fragments::a16(lane, i); };
  const auto in_b = [=](int i) { return fragments::b16(lane, i); };
  const auto pack = [&](const float* m, int stride, auto map, int r) {
    const fragments::Place p = map(2 * r), q = map(2 * r + 1);
    return simt::pack_bf16(m[p.row * stride + p.column], m[q.row * stride + q.column]);
  };
  uint32_t fa[4], fb[2];
  for (int r = 0; r < 4; ++r) fa[r] = pack(a + 256 * warp, 16, in_a, r);
  float mid[2][4] = {};
  for (int n = 0; n < 2; ++n) {
    for (int r = 0; r < 2; ++r) fb[r] = pack(b + 8 * n, 16, in_b, r);
    simt::mma_bf16(mid[n], fa, fb);
  }
  for (int r = 0; r < 4; ++r) fa[r] = simt::pack_bf16(mid[r / 2][2 * (r % 2)], mid[r / 2][2 * (r % 2) + 1]);
  for (int r = 0; r < 2; ++r) fb[r] = pack(c, 8, in_b, r);
  float d[4] = {};
  simt::mma_bf16(d, fa, fb);
  if (warp == 1) d[0] = simt::shuffle_xor(simt::shuffle_xor(d[0], 1), 1);  // comes later than the other warp
  for (int i = 0; i < 4; ++i) {
    const fragments::Place p = fragments::accumulator(lane, i);
    out[128 * warp + 8 * p.row + p.column] = d[i];
  }
  simt::barrier();  // the other warp's rows
  float own = out[128 * (1 - warp) + lane];
  for (int mask = 1; mask < 4; mask *= 2) own += simt::shuffle_xor(own, mask);
  sums[32 * warp + lane] = own;
}

#if defined(__CUDACC__)
__global__ void chained_kernel(const float* a, const float* b, const float* c, float* out, float* sums) {
  chained(a, b, c, out, sums);
}
#else
int main() {
  float a[512], b[256], c[128], out[256], sums[64];  // small integers: every product and sum is exact in bf16
  for (int i = 0; i < 512; ++i) a[i] = i * 7 % 11 % 3 - 1;
  for (int i = 0; i < 256; ++i) b[i] = i * 5 % 13 % 3 - 1;
  for (int i = 0; i < 128; ++i) c[i] = i * 3 % 17 - 8;
  simt::Block(64, [&] { chained(a, b, c, out, sums); }).run();
  float right[256];
  for (int row = 0; row < 32; ++row) {
    for (int n = 0; n < 8; ++n) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) {
        for (int j = 0; j < 16; ++j) sum += a[row * 16 + j] * b[j * 16 + k] * c[k * 8 + n];
      }
      right[row * 8 + n] = sum;
      const float got = out[row * 8 + n];
      if (got != sum) return std::printf("product at %d, %d: %g, not %g\n", row, n, got, sum), 1;
    }
  }
  for (int i = 0; i < 64; ++i) {
    const float* quad = right + 128 * (1 - i / 32) + i % 32 / 4 * 4;
    if (sums[i] != quad[0] + quad[1] + quad[2] + quad[3]) return std::printf("sum of the quad at %d\n", i), 1;
  }
  const float ties[] = {1.00390625f, 1.01171875f, -1.00390625f, 3.4e38f};  // half way: down, up, down; then inf
  const uint32_t words[] = {0x3f80, 0x3f82, 0xbf80, 0x7f80};
  for (int i = 0; i < 4; ++i) {
    if (simt::pack_bf16(ties[i], 0) != words[i]) return std::printf("bf16 of %g\n", ties[i]), 1;
  }
  try {
    simt::Block(64, [] { if (simt::thread() != 5) simt::barrier(); }).run();
    return std::printf("a barrier that a thread left out was not noticed\n"), 1;
  } catch (const std::logic_error&) {
  }
  return 0;
}
#endif
