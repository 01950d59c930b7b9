// Philox words and normals for blocks of lanes, each lane its own (chain, step). The counter's lane parts are fixed for
// all calls q of a step, so of ten rounds one product of the first two and all of the last eight are left per call.
#pragma once

#include <cstring>

#include "common/normal.hpp"
#include "common/philox.hpp"
#include "cpu/lanes.hpp"

namespace mmebm::cpu::MMEBM_ISA {

using Longs = Vector<uint64_t>;

// Products of the low halves; the high halves may hold anything.
MMEBM_HD Longs multiply_low(Longs a, Longs b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Longs>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Longs>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__x86_64__)
  return reinterpret_cast<Longs>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

inline constexpr uint64_t kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u;
inline constexpr uint32_t kW0 = 0x9E3779B9u, kW1 = 0xBB67AE85u;

template <int vectors>
class Noise {
 public:
  // chain and step of every lane, mod 2^48.
  void start(uint64_t seed, const uint64_t* chain, const uint64_t* step) {
    k0_ = static_cast<uint32_t>(seed);
    k1_ = static_cast<uint32_t>(seed >> 32);
    for (int j = 0; j < kHalves; ++j) {
      uint64_t chains[kLanes / 2], steps[kLanes / 2];
      for (int e = 0; e < kLanes / 2; ++e) {
        // The two halves of a vector hold its even and its odd lanes.
        const int lane = j / 2 * kLanes + 2 * e + j % 2;
        chains[e] = chain[lane];
        steps[e] = step[lane];
      }
      Longs c, s;
      std::memcpy(&c, chains, sizeof c);
      std::memcpy(&s, steps, sizeof s);
      first_[j] = multiply_low(Longs{} + kM0, c);
      step_[j] = (s & 0xffffffffu) ^ k0_;
      second_[j] = multiply_low(Longs{} + kM1, first_[j] >> 32 ^ ((s >> 32 << 16 | c >> 32) ^ k1_));
    }
  }

  // The same step for every lane, after a start with any step of the same upper 16 bits.
  void at_step(uint64_t step) {
    for (int j = 0; j < kHalves; ++j) step_[j] = Longs{} + (static_cast<uint32_t>(step) ^ k0_);
  }

  // The four words of call q.
  MMEBM_HD void words(uint32_t purpose, uint32_t q, Block<uint32_t, vectors> (&out)[4]) const {
    const uint64_t product = kM1 * (purpose << 24 | q);
    const uint64_t high = product >> 32, low = product & 0xffffffffu;
    // One after another where registers are few, all at once where they hold them.
    constexpr int kInFlight = kManyRegisters ? kHalves : 2;
#pragma GCC unroll 8
    for (int from = 0; from < kHalves; from += kInFlight) {
      Longs x[4][kInFlight];
#pragma GCC unroll 8
      for (int i = 0; i < kInFlight; ++i) {
        const int j = from + i;
        const Longs a = multiply_low(Longs{} + kM0, step_[j] ^ high);
        x[0][i] = second_[j] >> 32 ^ (low ^ (k0_ + kW0));
        x[1][i] = second_[j];
        x[2][i] = a >> 32 ^ first_[j] ^ (k1_ + kW1);
        x[3][i] = a;
      }
      uint32_t r0 = k0_ + 2 * kW0, r1 = k1_ + 2 * kW1;
      for (int round = 2; round < MMEBM_MUTANT(nine_rounds, 9, 10); ++round) {
#pragma GCC unroll 8
        for (int i = 0; i < kInFlight; ++i) {
          const Longs a = multiply_low(Longs{} + kM0, x[0][i]), b = multiply_low(Longs{} + kM1, x[2][i]);
          x[0][i] = b >> 32 ^ x[1][i] ^ r0;
          x[1][i] = b;
          x[2][i] = a >> 32 ^ x[3][i] ^ r1;
          x[3][i] = a;
        }
        r0 += kW0;
        r1 += kW1;
      }
#pragma GCC unroll 8
      for (int w = 0; w < 4; ++w) {
#pragma GCC unroll 8
        for (int i = 0; i < kInFlight; i += 2) {
          out[w].v[(from + i) / 2] = reinterpret_cast<Vector<uint32_t>>((x[w][i] & 0xffffffffu) | x[w][i + 1] << 32);
        }
      }
    }
  }

  // Standard normals of call q: dims first_dim(q) + 0, 1, 8, 9.
  [[gnu::noinline]] void normals(uint32_t purpose, uint32_t q, Real<vectors> (&out)[4]) const {
    Block<uint32_t, vectors> x[4];
    words(purpose, q, x);
    // Both pairs at once: twice the vectors in lockstep.
    const auto both = normal_pair(joined(x[0], MMEBM_MUTANT(second_pair_copied, x[0], x[2])),
                                  joined(x[1], MMEBM_MUTANT(second_pair_copied, x[1], x[3])));
    for (int v = 0; v < vectors; ++v) {
      out[0].v[v] = both.a.v[v];
      out[1].v[v] = both.b.v[v];
      out[2].v[v] = both.a.v[vectors + v];
      out[3].v[v] = both.b.v[vectors + v];
    }
  }

 private:
  static constexpr int kHalves = 2 * vectors;

  MMEBM_HD static Block<uint32_t, 2 * vectors> joined(Block<uint32_t, vectors> a, Block<uint32_t, vectors> b) {
    return each<uint32_t, 2 * vectors>([&](int i) MMEBM_INLINE { return i < vectors ? a.v[i] : b.v[i - vectors]; });
  }

  uint32_t k0_, k1_;
  Longs first_[kHalves], second_[kHalves];  // the first two rounds' products that no call changes
  Longs step_[kHalves];                     // counter word 1, keyed
};

}  // namespace mmebm::cpu::MMEBM_ISA
