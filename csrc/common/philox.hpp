// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the layout of its counter.
#pragma once

#include <cstdint>

#include "common/real.hpp"

namespace mmebm {

struct Words {
  uint32_t x0, x1, x2, x3;
};

enum class Purpose : uint32_t { chain = 0, reference = 1, accept = 2, choice = 3, reparameterise = 4, momenta = 5 };

inline constexpr uint64_t kMask48 = (uint64_t{1} << 48) - 1;

MMEBM_HD Words philox4x32(Words c, uint32_t k0, uint32_t k1) {
  constexpr int kRounds = 10;
  for (int i = 0; i < kRounds; ++i) {
    const uint64_t a = uint64_t{0xD2511F53u} * c.x0;
    const uint64_t b = uint64_t{0xCD9E8D57u} * c.x2;
    c = {static_cast<uint32_t>(b >> 32) ^ c.x1 ^ k0, static_cast<uint32_t>(b), static_cast<uint32_t>(a >> 32) ^ c.x3 ^ k1,
         static_cast<uint32_t>(a)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// The key is a 64-bit seed; step and chain are taken mod 2^48 by the caller; q < 2^24.
MMEBM_HD Words counter(uint64_t chain, uint64_t step, uint32_t purpose, uint32_t q) {
  return {static_cast<uint32_t>(chain), static_cast<uint32_t>(step), purpose << 24 | q,
          static_cast<uint32_t>(step >> 32) << 16 | static_cast<uint32_t>(chain >> 32)};
}

MMEBM_HD Words words(uint64_t seed, uint64_t chain, uint64_t step, uint32_t purpose, uint32_t q) {
  return philox4x32(counter(chain, step, purpose, q), static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// Call q gives dims first, first + 1, first + 8, first + 9: a thread of an MMA accumulator consumes whole calls.
MMEBM_HD int64_t first_dim(int64_t q) { return 16 * (q >> 2) + 2 * (q & 3); }

inline constexpr int64_t kDimsOfCall[4] = {0, 1, 8, 9};  // from its first

// first_dim(q) < dim holds for exactly the q below this.
MMEBM_HD int64_t calls(int64_t dim) {
  const int64_t rest = (dim % 16 + 1) / 2;
  return 4 * (dim / 16) + (rest < 4 ? rest : 4);
}

}  // namespace mmebm
