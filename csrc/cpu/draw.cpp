#include "cpu/draw.hpp"

#include <algorithm>

#include "common/philox.hpp"

namespace mmebm::cpu {

namespace {

using DrawLanes = decltype(&base::draw_lanes);

DrawLanes lanes_for(Isa isa) {
  switch (isa) {
#if defined(MMEBM_HAS_AVX512)
    case Isa::avx512:
      return &avx512::draw_lanes;
#endif
#if defined(MMEBM_HAS_AVX2)
    case Isa::avx2:
      return &avx2::draw_lanes;
#endif
    default:
      return &base::draw_lanes;
  }
}

}  // namespace

void draw(float* out, const float* scale, DrawShape shape, DrawStream stream, Law law, int threads, Isa isa) {
  const DrawLanes lanes = lanes_for(isa);
  const int64_t total = shape.steps * shape.rows * calls(shape.dim);
  constexpr int64_t kChunk = 4096;  // calls: about 20 us of one core, so a small draw stays on the calling thread
  const int64_t chunks = (total + kChunk - 1) / kChunk;
  [[maybe_unused]] const int team = static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(chunks, 1)));
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    lanes(out, scale, shape, stream, law, chunk * kChunk, std::min(total, (chunk + 1) * kChunk));
  }
}

void draw_words(uint32_t* out, DrawShape shape, DrawStream stream) {
  const int64_t n = calls(shape.dim);
  for (int64_t s = 0; s < shape.steps; ++s) {
    for (int64_t i = 0; i < shape.rows; ++i) {
      for (int64_t q = 0; q < n; ++q, out += 4) {
        const Words x = words(stream.seed, (stream.chain + static_cast<uint64_t>(i)) & kMask48,
                              (stream.offset + static_cast<uint64_t>(s)) & kMask48, stream.purpose, static_cast<uint32_t>(q));
        out[0] = x.x0;
        out[1] = x.x1;
        out[2] = x.x2;
        out[3] = x.x3;
      }
    }
  }
}

}  // namespace mmebm::cpu
