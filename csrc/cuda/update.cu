// `langevin_update`: as many threads as a row has Philox calls, up to a warp, take it; only the cap needs its norm.
#include "common/normal.hpp"
#include "cuda/hold.hpp"
#include "cuda/launch.hpp"

namespace mmebm::cuda {

namespace {

struct Update {
  struct Call {
    UpdateCall of;
    int group;  // threads of a row, a power of two up to 32
  };
  static constexpr int kThreads = 256;
  static constexpr bool kMeets = true;

  MMEBM_BODY static void run(const Call& launched, char*) {
    const UpdateCall& call = launched.of;
    const int group = launched.group, lane = simt::thread() % group;
    const int64_t row = simt::block() * (kThreads / group) + simt::thread() / group;
    const float* const table = call.coefficients + 3 * call.step;
    const float a = table[0], b = table[1];
    float factor = table[2];
    if (call.hold.grad_clip != 0.0f) {
      float squares = 0.0f;
      for (int64_t i = lane; row < call.rows && i < call.dim; i += group) {
        const float g = call.grad[row * call.dim + i];
        squares = fma32(g, g, squares);
      }
      for (int mask = 1; mask < group; mask *= 2) squares += simt::shuffle_xor(squares, mask);
      factor *= clipped(sqrt32(squares), call.hold.grad_clip);
    }
    if (row >= call.rows) return;
    const uint64_t step = (static_cast<uint64_t>(call.rng[1]) + static_cast<uint64_t>(call.step)) & kMask48;
    const uint64_t chain = (static_cast<uint64_t>(call.rng[2]) + static_cast<uint64_t>(row)) & kMask48;
    for (int64_t q = lane; q < calls(call.dim); q += group) {
      const Words x = words(static_cast<uint64_t>(call.rng[0]), chain, step, static_cast<uint32_t>(Purpose::chain),
                            static_cast<uint32_t>(q));
      const auto one = normal_pair(x.x0, x.x1), two = normal_pair(x.x2, x.x3);
      const float eps[4] = {one.a, one.b, two.a, two.b};
      MMEBM_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int64_t dim = first_dim(q) + 8 * (c / 2) + c % 2;  // kDimsOfCall
        if (dim >= call.dim) continue;
        const int64_t i = row * call.dim + dim;
        const float z = call.z[i];
        const float by = fma32(call.grad[i], factor, pull(call.hold.reference, z, 1.0f / call.hold.scale[dim]));
        call.out[i] = boxed(call.hold, fma32(eps[c], b, fma32(by, -a, z)));
      }
    }
  }
};

}  // namespace

void langevin_update(const UpdateCall& call, Stream stream) {
  int group = 1;
  while (group < 32 && group < calls(call.dim)) group *= 2;
  launch<Update>({call, group}, blocks_for(call.rows, Update::kThreads / group), 0, stream);
}

}  // namespace mmebm::cuda
