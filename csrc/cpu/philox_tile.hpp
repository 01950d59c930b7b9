// Philox over a tile of lanes, for the instruction set this file is compiled with. Compilers turn the 32x32 -> 64
// products of a plain loop into full 64-bit multiplies, which are three times slower.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mmebm::cpu::MMEBM_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

typedef uint64_t U64s __attribute__((vector_size(kVectorBytes)));

// Products of the low halves; the high halves may hold anything.
inline U64s multiply_low(U64s a, U64s b) {
#if defined(__AVX512F__)
  return reinterpret_cast<U64s>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<U64s>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__x86_64__)
  return reinterpret_cast<U64s>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Counters to words in place; each word is the low half of its lane.
template <int lanes>
inline void philox_tile(uint64_t (&c)[4][lanes], uint32_t k0, uint32_t k1) {
  constexpr int kWidth = sizeof(U64s) / sizeof(uint64_t);
  constexpr int kInFlight = 4;  // vectors whose multiplies overlap
  static_assert(lanes % (kWidth * kInFlight) == 0);
  const U64s m0 = U64s{} + 0xD2511F53u, m1 = U64s{} + 0xCD9E8D57u;
  for (int l = 0; l < lanes; l += kWidth * kInFlight) {
    U64s x[4][kInFlight];
    for (int w = 0; w < 4; ++w) std::memcpy(x[w], &c[w][l], sizeof x[w]);
    uint32_t r0 = k0, r1 = k1;
    for (int round = 0; round < 10; ++round) {
      for (int v = 0; v < kInFlight; ++v) {
        const U64s a = multiply_low(m0, x[0][v]), b = multiply_low(m1, x[2][v]);
        x[0][v] = (b >> 32) ^ x[1][v] ^ r0;
        x[1][v] = b;
        x[2][v] = (a >> 32) ^ x[3][v] ^ r1;
        x[3][v] = a;
      }
      r0 += 0x9E3779B9u;
      r1 += 0xBB67AE85u;
    }
    for (int w = 0; w < 4; ++w) std::memcpy(&c[w][l], x[w], sizeof x[w]);
  }
}

}  // namespace mmebm::cpu::MMEBM_ISA
