// Layers of a network of any size, in float32 on the ordinary pipes: a product a launch, whose ends apply what surrounds
// it. On the way forward that is bias and activation, on the way back the activation's derivative.
#include "cuda/hold.hpp"
#include "cuda/launch.hpp"

namespace mmebm::cuda {

namespace {

// C [m, n] = sum over k of A [m, k] B [k, n], 64 x 64 of it a block, 4 x 4 a thread. Problem gives
//   rows(), columns()                   of C
//   first(), last()                     of k for this block
//   left(m, k), right(k, n)             operands, asked for inside their range alone
//   kLeftAlongK, kRightAlongK           whether neighbours in k are neighbours in memory
//   store(m, n, sum)
template <class Problem>
struct Product {
  using Call = typename Problem::Call;
  static constexpr int kThreads = 256, kSide = 64, kDepth = 16, kStride = kSide + 4;
  static constexpr int kShared = 2 * kDepth * kStride * static_cast<int>(sizeof(float));
  static constexpr bool kMeets = true;

  MMEBM_BODY static void run(const Call& call, char* shared) {
    float* const left = reinterpret_cast<float*>(shared);  // [kDepth][kStride]
    float* const right = left + kDepth * kStride;
    const Problem problem(call);
    const int64_t across = blocks_for(problem.columns(), kSide), tile = problem.tile();
    const int64_t m0 = tile / across * kSide, n0 = tile % across * kSide;
    const int me = simt::thread(), m = me / 16 * 4, n = me % 16 * 4;
    float sum[4][4] = {};
    for (int64_t k0 = problem.first(); k0 < problem.last(); k0 += kDepth) {
      MMEBM_UNROLL
      for (int i = 0; i < kSide * kDepth / kThreads; ++i) {
        const int at = me + i * kThreads;
        {
          const int k = Problem::kLeftAlongK ? at % kDepth : at / kSide, r = Problem::kLeftAlongK ? at / kDepth : at % kSide;
          const bool inside = m0 + r < problem.rows() && k0 + k < problem.last();
          left[k * kStride + r] = inside ? problem.left(m0 + r, k0 + k) : 0.0f;
        }
        {
          const int k = Problem::kRightAlongK ? at % kDepth : at / kSide, c = Problem::kRightAlongK ? at / kDepth : at % kSide;
          const bool inside = n0 + c < problem.columns() && k0 + k < problem.last();
          right[k * kStride + c] = inside ? problem.right(k0 + k, n0 + c) : 0.0f;
        }
      }
      simt::barrier();
      for (int k = 0; k < kDepth; ++k) {
        MMEBM_UNROLL
        for (int i = 0; i < 4; ++i) {
          MMEBM_UNROLL
          for (int j = 0; j < 4; ++j) sum[i][j] = fma32(left[k * kStride + m + i], right[k * kStride + n + j], sum[i][j]);
        }
      }
      simt::barrier();
    }
    MMEBM_UNROLL
    for (int i = 0; i < 4; ++i) {
      MMEBM_UNROLL
      for (int j = 0; j < 4; ++j) {
        if (m0 + m + i < problem.rows() && n0 + n + j < problem.columns()) problem.store(m0 + m + i, n0 + n + j, sum[i][j]);
      }
    }
  }
};

template <class Problem>
int64_t tiles(int64_t rows, int64_t columns) {
  return blocks_for(rows, Product<Problem>::kSide) * blocks_for(columns, Product<Problem>::kSide);
}

template <class Problem>
void launch_product(const typename Problem::Call& call, int64_t blocks, Stream stream) {
  launch<Product<Problem>>(call, blocks, Product<Problem>::kShared, stream);
}

struct LayerForward {  // f(x W^T + b)
  using Call = LayerForwardCall;
  static constexpr bool kLeftAlongK = true, kRightAlongK = true;
  const Call& call;
  MMEBM_BODY explicit LayerForward(const Call& c) : call(c) {}
  MMEBM_BODY int64_t tile() const { return simt::block(); }
  MMEBM_BODY int64_t rows() const { return call.rows; }
  MMEBM_BODY int64_t columns() const { return call.width; }
  MMEBM_BODY int64_t first() const { return 0; }
  MMEBM_BODY int64_t last() const { return call.fan_in; }
  MMEBM_BODY float left(int64_t m, int64_t k) const { return call.x[m * call.fan_in + k]; }
  MMEBM_BODY float right(int64_t k, int64_t n) const { return call.weight[n * call.fan_in + k]; }
  MMEBM_BODY void store(int64_t m, int64_t n, float sum) const {
    const auto [value, first] = activate(call.activation, sum + call.bias[n], call.slope);
    if (call.value) call.value[m * call.width + n] = value;
    if (call.derivative) call.derivative[m * call.width + n] = first;
  }
};

struct LayerBackward {  // (delta W) f' factor
  using Call = LayerBackwardCall;
  static constexpr bool kLeftAlongK = true, kRightAlongK = false;
  const Call& call;
  MMEBM_BODY explicit LayerBackward(const Call& c) : call(c) {}
  MMEBM_BODY int64_t tile() const { return simt::block(); }
  MMEBM_BODY int64_t rows() const { return call.rows; }
  MMEBM_BODY int64_t columns() const { return call.fan_in; }
  MMEBM_BODY int64_t first() const { return 0; }
  MMEBM_BODY int64_t last() const { return call.width; }
  MMEBM_BODY float left(int64_t m, int64_t k) const {
    return call.delta[m * call.width + k] * (call.last ? call.last[k] : 1.0f);
  }
  MMEBM_BODY float right(int64_t k, int64_t n) const { return call.weight[k * call.fan_in + n]; }
  MMEBM_BODY void store(int64_t m, int64_t n, float sum) const {
    if (call.derivative) sum *= call.derivative[m * call.fan_in + n];
    if (call.factor) sum *= call.factor[m];
    call.out[m * call.fan_in + n] = sum;
  }
};

struct LayerOuter {  // delta^T x over a part of the rows
  using Call = LayerOuterCall;
  static constexpr bool kLeftAlongK = false, kRightAlongK = false;
  const Call& call;
  int64_t each, part;
  MMEBM_BODY explicit LayerOuter(const Call& c)
      : call(c), each(blocks_for(c.width, 64) * blocks_for(c.fan_in, 64)), part(simt::block() / each) {}
  MMEBM_BODY int64_t tile() const { return simt::block() % each; }
  MMEBM_BODY int64_t rows() const { return call.width; }
  MMEBM_BODY int64_t columns() const { return call.fan_in; }
  MMEBM_BODY int64_t first() const { return part * call.added; }
  MMEBM_BODY int64_t last() const {
    const int64_t end = (part + 1) * call.added;
    return end < call.rows ? end : call.rows;
  }
  MMEBM_BODY float left(int64_t m, int64_t k) const {
    return call.delta[k * call.width + m] * (call.factor ? call.factor[k] : 1.0f);
  }
  MMEBM_BODY float right(int64_t k, int64_t n) const { return call.x[k * call.fan_in + n]; }
  MMEBM_BODY void store(int64_t m, int64_t n, float sum) const {
    call.d_weight[(part * call.width + m) * call.fan_in + n] = sum * (call.last ? call.last[m] : 1.0f);
  }
};

struct LayerBias {  // the sum of delta over a part of the rows, a thread a unit
  using Call = LayerOuterCall;
  static constexpr int kThreads = 64;
  static constexpr bool kMeets = false;

  MMEBM_BODY static void run(const Call& call, char*) {
    const int64_t each = blocks_for(call.width, kThreads), part = simt::block() / each;
    const int64_t unit = simt::block() % each * kThreads + simt::thread();
    if (unit >= call.width) return;
    float sum = 0.0f;
    for (int64_t row = part * call.added; row < (part + 1) * call.added && row < call.rows; ++row) {
      sum += call.delta[row * call.width + unit] * (call.factor ? call.factor[row] : 1.0f);
    }
    call.d_bias[part * call.width + unit] = sum * (call.last ? call.last[unit] : 1.0f);
  }
};

struct LayerHead {  // E, bounded, and g dE/de: a warp a row
  using Call = LayerHeadCall;
  static constexpr int kThreads = 256;
  static constexpr bool kMeets = true;

  MMEBM_BODY static void run(const Call& call, char*) {
    const int lane = simt::thread() % 32;
    const int64_t row = simt::block() * (kThreads / 32) + simt::thread() / 32;
    float sum = 0.0f;
    for (int64_t i = lane; row < call.rows && i < call.width; i += 32) {
      sum = fma32(call.h[row * call.width + i], call.weight[i], sum);
    }
    for (int mask = 1; mask < 32; mask *= 2) sum += simt::shuffle_xor(sum, mask);
    if (lane != 0 || row >= call.rows) return;
    const auto [value, first] = bounded(sum + call.bias[0], call.bound);
    call.energy[row] = value;
    call.factor[row] = first * (call.g ? call.g[row] : 1.0f);
  }
};

}  // namespace

void layer_forward(const LayerForwardCall& call, Stream stream) {
  launch_product<LayerForward>(call, tiles<LayerForward>(call.rows, call.width), stream);
}

void layer_backward(const LayerBackwardCall& call, Stream stream) {
  launch_product<LayerBackward>(call, tiles<LayerBackward>(call.rows, call.fan_in), stream);
}

void layer_outer(const LayerOuterCall& call, Stream stream) {
  launch_product<LayerOuter>(call, call.parts * tiles<LayerOuter>(call.width, call.fan_in), stream);
  launch<LayerBias>(call, call.parts * blocks_for(call.width, LayerBias::kThreads), 0, stream);
}

void layer_head(const LayerHeadCall& call, Stream stream) {
  launch<LayerHead>(call, blocks_for(call.rows, LayerHead::kThreads / 32), 0, stream);
}

}  // namespace mmebm::cuda
