// Reference draws, momenta and reparameterisation noise over [steps, rows, dim]. The element (s, i, dim) depends on
// (seed, offset + s, first chain + i, purpose, dim) alone, never on threads or on how a batch is split.
#pragma once

#include <cstdint>

#include "cpu/isa.hpp"

namespace mmebm::cpu {

enum class Law : int { normal = 0, laplace = 1 };

struct DrawShape {
  int64_t steps, rows, dim;
};

struct DrawStream {
  uint64_t seed, offset, chain;
  uint32_t purpose;
};

// out [steps, rows, dim]; scale [dim] or null.
void draw(float* out, const float* scale, DrawShape shape, DrawStream stream, Law law, int threads, Isa isa);

// out [steps, rows, calls(dim), 4].
void draw_words(uint32_t* out, DrawShape shape, DrawStream stream);

// Calls [begin, end) of the steps * rows * calls(dim) in order; one definition per instruction set.
#define MMEBM_DECLARE_DRAW_LANES(isa)                                                                          \
  namespace isa {                                                                                             \
  void draw_lanes(float* out, const float* scale, DrawShape shape, DrawStream stream, Law law, int64_t begin, \
                  int64_t end);                                                                               \
  }
MMEBM_DECLARE_DRAW_LANES(base)
MMEBM_DECLARE_DRAW_LANES(avx2)
MMEBM_DECLARE_DRAW_LANES(avx512)
#undef MMEBM_DECLARE_DRAW_LANES

}  // namespace mmebm::cpu
