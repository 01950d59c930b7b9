// `draw`: a thread has one Philox call and writes its four values, two neighbours at a time.
#include "common/normal.hpp"
#include "cuda/launch.hpp"

namespace mmebm::cuda {

namespace {

struct Draw {
  using Call = DrawCall;
  static constexpr int kThreads = 256;
  static constexpr bool kMeets = false;

  MMEBM_BODY static void run(const Call& call, char*) {
    const int64_t each = calls(call.dim), i = simt::block() * kThreads + simt::thread();
    if (i >= call.steps * call.rows * each) return;
    const int64_t cell = i / each, q = i % each;  // cell: step and row
    const uint64_t step = (static_cast<uint64_t>(call.rng[1]) + static_cast<uint64_t>(cell / call.rows)) & kMask48;
    const uint64_t chain = (static_cast<uint64_t>(call.rng[2]) + static_cast<uint64_t>(cell % call.rows)) & kMask48;
    const Words x = words(static_cast<uint64_t>(call.rng[0]), chain, step, call.purpose, static_cast<uint32_t>(q));
    float value[4];
    if (call.law == Law::normal) {
      const auto one = normal_pair(x.x0, x.x1), two = normal_pair(x.x2, x.x3);
      value[0] = one.a, value[1] = one.b, value[2] = two.a, value[3] = two.b;
    } else {
      value[0] = laplace_unit(x.x0), value[1] = laplace_unit(x.x1);
      value[2] = laplace_unit(x.x2), value[3] = laplace_unit(x.x3);
    }
    MMEBM_UNROLL
    for (int c = 0; c < 4; ++c) {
      const int64_t dim = first_dim(q) + 8 * (c / 2) + c % 2;  // kDimsOfCall
      if (dim < call.dim) call.out[cell * call.dim + dim] = value[c] * (call.scale ? call.scale[dim] : 1.0f);
    }
  }
};

}  // namespace

void draw(const DrawCall& call, Stream stream) {
  launch<Draw>(call, blocks_for(call.steps * call.rows * calls(call.dim), Draw::kThreads), 0, stream);
}

}  // namespace mmebm::cuda
