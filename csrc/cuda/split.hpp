// Products of matrices of floats on bf16 tensor cores: operands as sums of bf16 parts, and which parts meet.
#pragma once

#include "cuda/simt.hpp"

namespace mmebm::cuda {

// terms: products for one. 1: bf16. 2: weights in two parts. 3: both operands in two parts, short by 2^-16. 6: both in
// three parts, short by less than float32's own rounding.
template <int terms>
struct Split {
  static_assert(terms == 1 || terms == 2 || terms == 3 || terms == 6);
  static constexpr int kWeights = terms == 1 ? 1 : terms == 6 ? 3 : 2;  // parts of a weight
  static constexpr int kValues = terms < 3 ? 1 : terms == 6 ? 3 : 2;    // parts of what it multiplies
  static constexpr int kOrders = kWeights;  // part i meets part j where i + j is less
  // Float32's small terms are summed on their own: added one by one to the large ones they would cost it roundings.
  static constexpr bool kApart = terms == 6;
};

MMEBM_BODY float bf16_of(uint32_t packed, bool high) {
  return bits_float(static_cast<int32_t>(high ? packed & 0xffff0000u : packed << 16));
}

// Two floats in `parts` bf16 parts, largest first; part(i, word) takes them.
template <int parts, class Part>
MMEBM_BODY void split_pair(float low, float high, Part part) {
  MMEBM_UNROLL
  for (int i = 0; i < parts; ++i) {
    const uint32_t word = simt::pack_bf16(low, high);
    part(i, word);
    low -= bf16_of(word, false);
    high -= bf16_of(word, true);
  }
}

// c += A B, or its small terms to `small`.
template <int terms>
MMEBM_BODY void multiply(const uint32_t (&a)[Split<terms>::kValues][4], const uint32_t (&b)[Split<terms>::kWeights][2],
                         float (&c)[4], float (&small)[4]) {
  using S = Split<terms>;
  MMEBM_UNROLL
  for (int order = S::kOrders - 1; order >= 0; --order) {
    MMEBM_UNROLL
    for (int i = 0; i < S::kValues; ++i) {
      if (i > order || order - i >= S::kWeights) continue;
      simt::mma_bf16(S::kApart && order > 0 ? small : c, a[i], b[order - i]);
    }
  }
}

}  // namespace mmebm::cuda
