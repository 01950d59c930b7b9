// Whole chains, 16 of them a warp: states, gradients and what one product hands to the next stay in its registers, in the
// accumulators' layout; a lane owns whole Philox calls. A block's warps share the weights, and wait for nobody else. For
// many chains and for networks of padded sizes; block_chain.hpp has the others.
#pragma once

#include "cuda/activate.hpp"
#include "cuda/chain.hpp"

namespace mmebm::cuda {

// A build for counting instructions decides what calls choose: two hidden layers, SiLU, a Laplace reference, and nothing
// asked for but the end; its step is one run of code.
#if defined(MMEBM_COUNTED)
inline constexpr bool kCounted = true;
#else
inline constexpr bool kCounted = false;
#endif

// Engine: weights in memory, products of rows in registers with them (mma_engine.hpp, wgmma_engine.hpp). D, H: padded
// widths of the input and of every hidden layer.
template <template <int, int, int> class Engine, int D, int H, int terms>
class WarpChain {
  using S = Split<terms>;
  using Products = Engine<D, H, terms>;
  using Operand = typename Products::Operand;
  static constexpr int kChunk = Products::kChunk, kLast = Products::kChunk < D ? Products::kChunk : D;
  // Whether a layer's output waits in registers until its input is done with; else in the thread's own memory, where the
  // code for a chunk of columns is there once.
  static constexpr bool kHeld = Products::kHeld;
  static constexpr int kUnroll = kHeld || kCounted ? H / kChunk : 1;
  static constexpr int kLayers = kCounted ? 2 : 1;  // whose code is there apart
  // Derivatives wait as bf16 where memory is short.
  static constexpr bool kHalf = kHeld;

 public:
  using Call = ChainCall;
  static constexpr int kThreads = terms == 6 && H > 64 ? 128 : 256;  // what memory has room for
  static constexpr int kRows = 64;                                   // chains of four warps
  static constexpr bool kMeets = true;

  static int shared_bytes(const Net& net) {
    const int hidden = net.linear - 1;
    return Products::bytes(hidden) + 4 * (hidden * H + H + (kHeld ? 0 : D)) + 4 * kWords * kThreads +
           (hidden - 1) * (H / 8) * (kHalf ? 8 : 16) * kThreads;
  }

  MMEBM_BODY static void run(const Call& call, char* shared) {
    constexpr int kGroups = kThreads / 128;
    WarpChain chain(call, shared);
    // Tiles go to blocks first: a batch that has fewer than twice as many leaves no multiprocessor idle.
    const int64_t first = simt::thread() / 128 * simt::blocks() + simt::block();
    for (int64_t tile = first; kRows * tile < call.rows; tile += simt::blocks() * kGroups) {
      chain.langevin(kRows * tile + 16 * (simt::thread() / 32 % 4));
    }
  }

 private:
  static constexpr int kD = D / 8;  // accumulators of 16 rows
  // Words that a thread has in memory beside slopes: a layer's output, or else the states while they are not moved.
  static constexpr int kWords = kHeld ? 4 * kD : H / 16 * S::kValues * 4;
  using State = float[kD][4];
  using Sums = float[kChunk / 8][4];

  MMEBM_BODY WarpChain(const ChainCall& call, char* shared) : call_(call), products_(call.net, size(), shared, kThreads) {
    const Net& net = call.net;
    const int hidden = net.linear - 1, me = simt::thread();
    bias_ = reinterpret_cast<float*>(shared + Products::bytes(hidden));
    last_ = bias_ + hidden * H;
    inverse_ = last_ + H;
    own_ = reinterpret_cast<uint32_t*>(inverse_ + (kHeld ? 0 : D));
    slope_ = own_ + kWords * kThreads;
    for (int l = 0; l < hidden; ++l) {
      for (int i = me; i < H; i += kThreads) bias_[l * H + i] = i < net.out[l] ? net.bias[l][i] * size() : 0.0f;
    }
    for (int i = me; i < H; i += kThreads) last_[i] = i < net.in[hidden] ? net.weight[hidden][i] : 0.0f;
    for (int i = me; i < D && !kHeld; i += kThreads) inverse_[i] = i < net.in[0] ? 1.0f / call.hold.scale[i] : 0.0f;
    row_ = me % 32 / 4;
    pair_ = 2 * (me % 4);
    simt::barrier();
  }

  // What hidden layers' weights and biases are held times: half for silu at bf16, as `silu_of_half` wants them, whose
  // derivative is twice as large and meets the half on its way back.
  MMEBM_BODY float size() const { return terms == 1 && activation() == Activation::silu ? 0.5f : 1.0f; }
  MMEBM_BODY Activation activation() const { return kCounted ? Activation::silu : call_.net.activation; }
  MMEBM_BODY int hidden() const { return kCounted ? 2 : call_.net.linear - 1; }
  MMEBM_BODY float bound() const { return kCounted ? 0.0f : call_.net.bound; }
  MMEBM_BODY float clip() const { return kCounted ? 0.0f : call_.hold.grad_clip; }
  MMEBM_BODY Reference reference() const { return kCounted ? Reference::laplace : call_.hold.reference; }

  // Accumulators' element i of tile n: row row_ + 8 (i / 2), column 8 n + pair_ + i % 2.
  template <class Do>
  MMEBM_BODY void each(State& x, int64_t first_row, Do act) const {
    MMEBM_UNROLL
    for (int n = 0; n < kD; ++n) {
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int64_t row = first_row + row_ + 8 * (i / 2);
        const int column = 8 * n + pair_ + i % 2;
        if (row < call_.rows && column < call_.net.in[0]) act(x[n][i], row * call_.net.in[0] + column);
      }
    }
  }

  MMEBM_BODY static float row_sum(float x) {
    x += simt::shuffle_xor(x, 1);
    return x + simt::shuffle_xor(x, 2);
  }

  // Two neighbouring accumulators are an operand of the next product: element i of it is i % 4 of accumulator i / 4.
  MMEBM_BODY static void pack(const float (&left)[4], const float (&right)[4], uint32_t (&to)[S::kValues][4]) {
    const float x[8] = {left[0], left[1], left[2], left[3], right[0], right[1], right[2], right[3]};
    MMEBM_UNROLL
    for (int r = 0; r < 4; ++r) {
      split_pair<S::kValues>(x[2 * r], x[2 * r + 1], [&](int part, uint32_t word) { to[part][r] = word; });
    }
  }

  // Four words of the thread's own.
  MMEBM_BODY uint32_t* own(int i) const { return own_ + (i * kThreads + simt::thread()) * 4; }

  MMEBM_BODY float inverse(int column) const {
    if constexpr (kHeld) return column < call_.net.in[0] ? reciprocal(call_.hold.scale[column]) : 0.0f;
    return inverse_[column];
  }

  MMEBM_BODY void put_by(const State& z) const {
    MMEBM_UNROLL
    for (int n = 0; n < kD; ++n) {
      uint32_t bits[4];
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) bits[i] = static_cast<uint32_t>(float_bits(z[n][i]));
      simt::store4(own(n), bits);
    }
  }

  MMEBM_BODY void fetch(State& z) const {
    MMEBM_UNROLL
    for (int n = 0; n < kD; ++n) {
      uint32_t bits[4];
      simt::load4(own(n), bits);
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) z[n][i] = bits_float(static_cast<int32_t>(bits[i]));
    }
  }

  MMEBM_BODY void keep(int chunk, const Sums& c, Operand& next) const {
    MMEBM_UNROLL
    for (int j = 0; j < kChunk / 16; ++j) {
      if constexpr (kHeld) {
        pack(c[2 * j], c[2 * j + 1], next[chunk * (kChunk / 16) + j]);
      } else {
        uint32_t packed[S::kValues][4];
        pack(c[2 * j], c[2 * j + 1], packed);
        MMEBM_UNROLL
        for (int part = 0; part < S::kValues; ++part) simt::store4(own((chunk * (kChunk / 16) + j) * S::kValues + part), packed[part]);
      }
    }
  }

  MMEBM_BODY void take(Operand& x, const Operand& next) const {
    MMEBM_UNROLL
    for (int j = 0; j < H / 16; ++j) {
      MMEBM_UNROLL
      for (int part = 0; part < S::kValues; ++part) {
        if constexpr (kHeld) {
          MMEBM_UNROLL
          for (int r = 0; r < 4; ++r) x[j][part][r] = next[j][part][r];
        } else {
          simt::load4(own(j * S::kValues + part), x[j][part]);
        }
      }
    }
  }

  MMEBM_BODY void keep_slopes(int layer, int tile, const float (&slope)[4]) const {
    uint32_t* const to = slope_ + ((layer * (H / 8) + tile) * kThreads + simt::thread()) * (kHalf ? 2 : 4);
    if constexpr (kHalf) {
      simt::store2(to, simt::pack_bf16(slope[0], slope[1]), simt::pack_bf16(slope[2], slope[3]));
    } else {
      uint32_t bits[4];
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) bits[i] = static_cast<uint32_t>(float_bits(slope[i]));
      simt::store4(to, bits);
    }
  }

  MMEBM_BODY void times_slopes(int layer, int tile, float (&c)[4]) const {
    const uint32_t* const from = slope_ + ((layer * (H / 8) + tile) * kThreads + simt::thread()) * (kHalf ? 2 : 4);
    uint32_t bits[4];
    if constexpr (kHalf) {
      simt::load2(from, bits[0], bits[1]);
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) c[i] *= bf16_of(bits[i / 2], i % 2 != 0);
    } else {
      simt::load4(from, bits);
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) c[i] *= bits_float(static_cast<int32_t>(bits[i]));
    }
  }

  // A chunk of a hidden layer from what products gave: c turns into values, or in the final one into dE/da.
  template <Activation kind>
  MMEBM_BODY void activate_as(int layer, int chunk, bool final, Sums& c, float (&energy)[2]) const {
    MMEBM_UNROLL
    for (int n = 0; n < kChunk / 8; ++n) {
      const int tile = chunk * (kChunk / 8) + n;
      float slope[4];
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const auto [value, first] = cuda::activate<kind, terms == 1>(c[n][i], call_.net.slope);
        c[n][i] = value;
        slope[i] = first;
      }
      if (final) {
        MMEBM_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float w = last_[8 * tile + pair_ + i % 2];
          energy[i / 2] = fma32(c[n][i], w, energy[i / 2]);
          c[n][i] = slope[i] * w;
        }
      } else {
        keep_slopes(layer, tile, slope);
      }
    }
  }

  // The kind is the same for all: one branch a chunk.
  MMEBM_BODY void activate_chunk(int layer, int chunk, bool final, Sums& c, float (&energy)[2]) const {
    switch (activation()) {
      case Activation::silu: return activate_as<Activation::silu>(layer, chunk, final, c, energy);
      case Activation::gelu: return activate_as<Activation::gelu>(layer, chunk, final, c, energy);
      case Activation::gelu_tanh: return activate_as<Activation::gelu_tanh>(layer, chunk, final, c, energy);
      case Activation::leaky_relu: return activate_as<Activation::leaky_relu>(layer, chunk, final, c, energy);
      case Activation::relu: return activate_as<Activation::relu>(layer, chunk, final, c, energy);
      case Activation::softplus: return activate_as<Activation::softplus>(layer, chunk, final, c, energy);
      case Activation::tanh: return activate_as<Activation::tanh>(layer, chunk, final, c, energy);
      default: return activate_as<Activation::elu>(layer, chunk, final, c, energy);
    }
  }

  // E, not bounded, of two rows, and dE/dz of it.
  MMEBM_BODY void evaluate(State& z, State& grad, float (&energy)[2]) const {
    constexpr int kChunks = H / kChunk;
    Operand x, next;
    MMEBM_UNROLL
    for (int j = 0; j < D / 16; ++j) pack(z[2 * j], z[2 * j + 1], x[j]);
    if constexpr (kHeld) put_by(z);
    energy[0] = energy[1] = 0.0f;
#pragma unroll kLayers
    for (int l = 0; l < hidden(); ++l) {
#pragma unroll kUnroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        Sums c;
        MMEBM_UNROLL
        for (int n = 0; n < kChunk / 8; ++n) {
          MMEBM_UNROLL
          for (int i = 0; i < 4; ++i) c[n][i] = bias_[l * H + chunk * kChunk + 8 * n + pair_ + i % 2];
        }
        if (l == 0) {
          products_.template up<D>(0, chunk * kChunk, x, c);
        } else {
          products_.template up<H>(l, chunk * kChunk, x, c);
        }
        activate_chunk(l, chunk, l + 1 == hidden(), c, energy);
        keep(chunk, c, next);
      }
      take(x, next);
    }
    MMEBM_UNROLL
    for (int h = 0; h < 2; ++h) energy[h] = row_sum(energy[h]) + call_.net.bias[hidden()][0];
#pragma unroll kLayers
    for (int l = hidden() - 1; l > 0; --l) {
#pragma unroll kUnroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        Sums c;
        products_.template down<H>(l, chunk * kChunk, x, c);
        MMEBM_UNROLL
        for (int n = 0; n < kChunk / 8; ++n) times_slopes(l - 1, chunk * (kChunk / 8) + n, c[n]);
        keep(chunk, c, next);
      }
      take(x, next);
    }
    MMEBM_UNROLL
    for (int first = 0; first < D; first += kLast) {
      typename Products::template Sums<kLast> c;
      products_.template down<D>(0, first, x, c);
      MMEBM_UNROLL
      for (int n = 0; n < kLast / 8; ++n) {
        MMEBM_UNROLL
        for (int i = 0; i < 4; ++i) grad[first / 8 + n][i] = c[n][i];
      }
    }
    if constexpr (kHeld) fetch(z);
  }

  MMEBM_BODY void record(State& z, int64_t first_row, int64_t kept, const float (&energy)[2]) const {
    float* const states = call_.states + kept * call_.rows * call_.net.in[0];
    each(z, first_row, [&](float x, int64_t cell) { states[cell] = x; });
    MMEBM_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int64_t row = first_row + row_ + 8 * h;
      if (pair_ == 0 && row < call_.rows) call_.energies[kept * call_.rows + row] = bounded(energy[h], bound()).value;
    }
  }

  // All steps of 16 chains; every lane of the warp comes here, and with wgmma all four warps.
  MMEBM_BODY void langevin(int64_t first_row) const {
    const Hold& hold = call_.hold;
    const int64_t every = kCounted ? 0 : call_.record_every;
    const bool statistics = !kCounted && call_.mean_energy != nullptr;
    const Source sources[2] = {{call_, first_row + row_}, {call_, first_row + row_ + 8}};
    State z = {}, grad;
    float energy[2], energies[2] = {}, norms[2] = {}, lengths[2] = {};
    each(z, first_row, [&](float& x, int64_t cell) { x = call_.z[cell]; });
    for (int64_t k = 0; k < call_.steps; ++k) {
      const Step step = step_of(call_, k);
      evaluate(z, grad, energy);
      if (every > 0 && k > 0 && k % every == 0) record(z, first_row, k / every - 1, energy);
      float factor[2], squares[2] = {};
      MMEBM_UNROLL
      for (int h = 0; h < 2; ++h) {
        const auto [value, slope] = bounded(energy[h], bound());
        factor[h] = slope;
        if (statistics || clip() != 0.0f) {
          float sum = 0.0f;
          MMEBM_UNROLL
          for (int n = 0; n < kD; ++n) sum = fma32(grad[n][2 * h], grad[n][2 * h], fma32(grad[n][2 * h + 1], grad[n][2 * h + 1], sum));
          const float norm = sqrt32(row_sum(sum)) * absolute(slope);
          norms[h] += norm;
          energies[h] += value;
          if (clip() != 0.0f) factor[h] *= clipped(norm, clip());
        }
        factor[h] *= step.t;
      }
      MMEBM_UNROLL
      for (int j = 0; j < kD / 2; ++j) {
        MMEBM_UNROLL
        for (int h = 0; h < 2; ++h) {
          float eps[4];
          sources[h].noise(k, 4 * j + pair_ / 2, eps);
          MMEBM_UNROLL
          for (int i = 0; i < 4; ++i) {
            const int column = 16 * j + 8 * (i / 2) + pair_ + i % 2;
            float& x = z[2 * j + i / 2][2 * h + i % 2];
            const float up = grad[2 * j + i / 2][2 * h + i % 2];
            const float by = fma32(up, factor[h], pull(reference(), x, inverse(column)));
            const float to = boxed(hold, fma32(eps[i], step.b, fma32(by, -step.a, x)));
            if (statistics && column < call_.net.in[0]) squares[h] = fma32(to - x, to - x, squares[h]);
            x = to;  // padding too, which meets zeros and is not stored
          }
        }
      }
      if (statistics) {
        MMEBM_UNROLL
        for (int h = 0; h < 2; ++h) lengths[h] += sqrt32(row_sum(squares[h]));
      }
    }
    each(z, first_row, [&](float x, int64_t cell) { call_.out[cell] = x; });
    if (every > 0 && call_.steps > 0 && call_.steps % every == 0) {
      evaluate(z, grad, energy);
      record(z, first_row, call_.steps / every - 1, energy);
    }
    if (!statistics || pair_ != 0) return;
    const float count = static_cast<float>(call_.steps > 0 ? call_.steps : 1);
    MMEBM_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int64_t row = first_row + row_ + 8 * h;
      if (row >= call_.rows) continue;
      call_.mean_energy[row] = energies[h] / count;
      call_.grad_norm[row] = norms[h] / count;
      call_.displacement[row] = lengths[h] / count;
    }
  }

  const ChainCall& call_;
  const Products products_;
  float *bias_, *last_, *inverse_;
  uint32_t *own_, *slope_;
  int row_, pair_;
};

}  // namespace mmebm::cuda
