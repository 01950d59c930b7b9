// Whole chains, 16 of them a block: its warps share the columns of every layer, what a layer gives goes through the
// block's memory. Sizes are run-time numbers. For few chains, and for networks whose activations fill no registers.
#pragma once

#include "cuda/chain.hpp"
#include "cuda/pack.hpp"

namespace mmebm::cuda {

inline constexpr int kSkew = 8;  // elements behind a row of a matrix in memory, so that rows start in different banks

// Where things are in a block's memory: elements of bf16, then floats. Handed over with a call: what is indexed by layer
// is read from the constants.
struct BlockLayout {
  int dim, widest;                                // padded
  int inner[kMaxLinear - 1], at[kMaxLinear - 1];  // of a hidden layer's weight: padded fan-in, first element
  int weights, values;                            // elements of a part of all weights, of a buffer of a layer's input
  int stride;                                     // of such a buffer
  int slopes;                                     // floats of the hidden layers' derivatives but the last's
  int states;                                     // floats of a matrix of states
  const Pair32* packed;                           // weights that do not fit, in the device's memory (pack.hpp)

  BlockLayout(const Net& net, const Pair32* streamed) : packed(streamed) {
    dim = widest = padded(net.in[0]);
    weights = 0;
    for (int l = 0; l + 1 < net.linear; ++l) {
      inner[l] = padded(net.in[l]);
      at[l] = weights;
      weights += padded(net.out[l]) * (inner[l] + kSkew);
      if (padded(net.out[l]) > widest) widest = padded(net.out[l]);
    }
    stride = widest + kSkew;
    values = 16 * stride;
    slopes = (net.linear - 2) * 16 * widest;
    states = 16 * (dim + kSkew);
  }
};

// streamed: weights come from the device's memory in every step, in the order that lanes want them; else they are in the
// block's.
template <int terms, bool streamed>
class BlockChain {
  using S = Split<terms>;

 public:
  struct Call {
    ChainCall of;
    BlockLayout at;
    bool adjusted;
  };
  static constexpr int kThreads = 256, kRows = 16;
  static constexpr bool kMeets = true;

  static int shared_bytes(const Net& net, bool adjusted) {
    const BlockLayout at(net, nullptr);
    const int floats = net.linear * at.widest + at.dim + (adjusted ? 4 : 2) * at.states + kWarps * kRows + at.slopes;
    return 2 * ((streamed ? 0 : S::kWeights * at.weights) + 2 * S::kValues * at.values) + 4 * floats;
  }

  MMEBM_BODY static void run(const Call& call, char* shared) {
    BlockChain chain(call.of, call.at, shared);
    for (int64_t tile = simt::block(); kRows * tile < call.of.rows; tile += simt::blocks()) {
      if (call.adjusted) {
        chain.mala(tile);
      } else {
        chain.langevin(tile);
      }
    }
  }

 private:
  static constexpr int kAhead = streamed ? 4 : 1;  // pairs of fragments that are on their way at once
  static constexpr int kWarps = kThreads / 32, kLanes = kThreads / kRows;  // threads of a row, outside products
  // States [16, dim] in the block's memory, each element of one thread: present ones, dE/dz as `evaluate` leaves it, and of
  // the adjusted chain proposals and the gradient at the present ones.
  enum : int { kState, kGrad, kProposal, kHeld };

  // All threads of the block come here, and everywhere below.
  MMEBM_BODY BlockChain(const ChainCall& call, const BlockLayout& at, char* shared) : call_(call), at_(at) {
    const Net& net = call.net;
    const int hidden = net.linear - 1, me = simt::thread();
    weight_ = reinterpret_cast<uint16_t*>(shared);
    value_ = weight_ + (streamed ? 0 : S::kWeights * at_.weights);
    bias_ = reinterpret_cast<float*>(value_ + 2 * S::kValues * at_.values);
    last_ = bias_ + hidden * at_.widest;
    inverse_ = last_ + at_.widest;
    parts_ = inverse_ + at_.dim;
    slope_ = parts_ + kWarps * kRows;
    states_ = slope_ + at_.slopes;
    for (int l = 0; l < hidden; ++l) {
      const int columns = at_.inner[l], pairs = streamed ? 0 : padded(net.out[l]) * columns / 2;
      for (int i = me; i < pairs; i += kThreads) {
        const int row = 2 * i / columns, column = 2 * i % columns;
        const float* const w = net.weight[l] + row * net.in[l] + column;
        const bool real = row < net.out[l];
        split_pair<S::kWeights>(
            real && column < net.in[l] ? w[0] : 0.0f, real && column + 1 < net.in[l] ? w[1] : 0.0f,
            [&](int part, uint32_t word) {
              *reinterpret_cast<uint32_t*>(weight(l, part) + row * (columns + kSkew) + column) = word;
            });
      }
      for (int i = me; i < at_.widest; i += kThreads) bias_[l * at_.widest + i] = i < net.out[l] ? net.bias[l][i] : 0.0f;
    }
    for (int i = me; i < at_.widest; i += kThreads) last_[i] = i < net.in[hidden] ? net.weight[hidden][i] : 0.0f;
    for (int i = me; i < at_.dim; i += kThreads) inverse_[i] = i < net.in[0] ? 1.0f / call.hold.scale[i] : 0.0f;
    warp_ = me / 32;
    lane_ = me % 32;
    own_ = me / kLanes;
    simt::barrier();
  }

  MMEBM_BODY uint16_t* weight(int layer, int part) const { return weight_ + part * at_.weights + at_.at[layer]; }
  MMEBM_BODY int stride(int layer) const { return at_.inner[layer] + kSkew; }
  MMEBM_BODY uint16_t* values(int buffer, int part) const { return value_ + (buffer * S::kValues + part) * at_.values; }

  // Two fragments of a weight, side by side along its columns; and the sums of products with them.
  struct Fragments {
    uint32_t b[2][S::kWeights][2];
  };
  struct Sums {
    float c[2][4], small[2][4];
  };

  // Rows of the input in `buffer` times W^T, or W if `back`, when the block has come here: finish(n, c) takes 8 columns of
  // 16 rows, as an accumulator.
  template <bool back, class Finish>
  MMEBM_BODY void multiply_layer(int layer, int buffer, Finish finish) const {
    const int steps = (back ? padded(call_.net.out[layer]) : at_.inner[layer]) / 16;
    const int tiles = (back ? at_.inner[layer] : padded(call_.net.out[layer])) / 8;
    const Pair32* const lanes =
        streamed ? Packed<S::kWeights>(call_.net, at_.packed).lane(layer, back, lane_) : nullptr;
    const auto fetch = [&](int n, int k, Fragments& to) {
      MMEBM_UNROLL
      for (int j = 0; j < 2; ++j) {
        MMEBM_UNROLL
        for (int i = 0; i < S::kWeights; ++i) {
          if constexpr (streamed) {
            const Pair32 pair = lanes[(((n + j) * steps + k) * S::kWeights + i) * 32];
            to.b[j][i][0] = pair.x;
            to.b[j][i][1] = pair.y;
          } else if constexpr (back) {
            simt::load_b_rows(weight(layer, i) + 16 * k * stride(layer) + 8 * (n + j), stride(layer), to.b[j][i]);
          } else {
            simt::load_b(weight(layer, i) + 8 * (n + j) * stride(layer) + 16 * k, stride(layer), to.b[j][i]);
          }
        }
      }
    };
    // Those from the device's memory are on their way long before they meet values: a read takes as long as many products,
    // and none is moved past a read of the block's memory by the compiler.
    Fragments ahead[kAhead];
    const auto begin = [&](int n) {
      MMEBM_UNROLL
      for (int s = 0; s < kAhead; ++s) {
        if (streamed && n < tiles && s < steps) fetch(n, s, ahead[s]);
      }
    };
    begin(2 * warp_);
    simt::barrier();
    for (int n = 2 * warp_; n < tiles; n += 2 * kWarps) {
      Sums sums = {};
      for (int from = 0; from < steps; from += kAhead) {
        MMEBM_UNROLL
        for (int s = 0; s < kAhead; ++s) {
          const int k = from + s;
          if (k >= steps) break;
          if constexpr (!streamed) fetch(n, k, ahead[s]);
          multiply_fragments(buffer, k, ahead[s], sums);
          if (streamed && k + kAhead < steps) fetch(n, k + kAhead, ahead[s]);
        }
      }
      begin(n + 2 * kWarps);
      MMEBM_UNROLL
      for (int j = 0; j < 2; ++j) {
        MMEBM_UNROLL
        for (int i = 0; i < 4; ++i) sums.c[j][i] += sums.small[j][i];
        finish(n + j, sums.c[j]);
      }
    }
  }

  // 16 columns of the input in `buffer`, from 16 k on, times two fragments.
  MMEBM_BODY void multiply_fragments(int buffer, int k, const Fragments& weights, Sums& sums) const {
    uint32_t a[S::kValues][4];
    MMEBM_UNROLL
    for (int i = 0; i < S::kValues; ++i) simt::load_a(values(buffer, i) + 16 * k, at_.stride, a[i]);
    MMEBM_UNROLL
    for (int j = 0; j < 2; ++j) multiply<terms>(a, weights.b[j], sums.c[j], sums.small[j]);
  }

  MMEBM_BODY void keep(int buffer, int n, const float (&c)[4]) const {
    MMEBM_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int cell = (lane_ / 4 + 8 * h) * at_.stride + 8 * n + 2 * (lane_ % 4);
      split_pair<S::kValues>(c[2 * h], c[2 * h + 1], [&](int part, uint32_t word) {
        *reinterpret_cast<uint32_t*>(values(buffer, part) + cell) = word;
      });
    }
  }

  MMEBM_BODY float& slope_at(int layer, int n, int i) const {
    return slope_[(layer * (at_.widest / 8) + n) * 128 + 32 * i + lane_];
  }

  // dE/dz of the states in buffer 0 to kGrad, E not being bounded; and E of the thread's row.
  MMEBM_BODY float evaluate() const {
    const Net& net = call_.net;
    const int hidden = net.linear - 1;
    float sums[2] = {};
    for (int l = 0; l < hidden; ++l) {
      multiply_layer<false>(l, l % 2, [&](int n, float(&c)[4]) {
        MMEBM_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int unit = 8 * n + 2 * (lane_ % 4) + i % 2;
          const auto [value, first] = activate(net.activation, c[i] + bias_[l * at_.widest + unit], net.slope);
          if (l + 1 == hidden) {
            sums[i / 2] = fma32(value, last_[unit], sums[i / 2]);
            c[i] = first * last_[unit];
          } else {
            slope_at(l, n, i) = first;
            c[i] = value;
          }
        }
        keep((l + 1) % 2, n, c);
      });
      if (l + 1 == hidden) {
        MMEBM_UNROLL
        for (int h = 0; h < 2; ++h) {
          sums[h] += simt::shuffle_xor(sums[h], 1);
          sums[h] += simt::shuffle_xor(sums[h], 2);
          if (lane_ % 4 == 0) parts_[warp_ * kRows + lane_ / 4 + 8 * h] = sums[h];
        }
      }
    }
    int buffer = hidden % 2;
    for (int l = hidden - 1; l > 0; --l) {
      multiply_layer<true>(l, buffer, [&](int n, float(&c)[4]) {
        MMEBM_UNROLL
        for (int i = 0; i < 4; ++i) c[i] *= slope_at(l - 1, n, i);
        keep(1 - buffer, n, c);
      });
      buffer = 1 - buffer;
    }
    multiply_layer<true>(0, buffer, [&](int n, float(&c)[4]) {
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) {
        element(kGrad, lane_ / 4 + 8 * (i / 2), 8 * n + 2 * (lane_ % 4) + i % 2) = c[i];
      }
    });
    simt::barrier();
    float energy = net.bias[hidden][0];
    MMEBM_UNROLL
    for (int w = 0; w < kWarps; ++w) energy += parts_[w * kRows + own_];
    return energy;
  }

  MMEBM_BODY float& element(int which, int row, int dim) const {
    return states_[which * at_.states + row * (at_.dim + kSkew) + dim];
  }

  // Of a thread's row, act(call, from) for each Philox call of the thread, `from` being its first dimension.
  template <class Do>
  MMEBM_BODY void each_call(Do act) const {
    for (int q = simt::thread() % kLanes; static_cast<int>(first_dim(q)) < call_.net.in[0]; q += kLanes) {
      act(q, static_cast<int>(first_dim(q)));
    }
  }

  // act(dim) for each of its dimensions.
  template <class Do>
  MMEBM_BODY void each(Do act) const {
    each_call([&](int, int from) {
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int dim = from + 8 * (i / 2) + i % 2;
        if (dim < call_.net.in[0]) act(dim);
      }
    });
  }

  MMEBM_BODY float& own(int which, int dim) const { return element(which, own_, dim); }

  MMEBM_BODY bool first_of_row() const { return simt::thread() % kLanes == 0; }

  MMEBM_BODY float row_sum(float x) const {
    MMEBM_UNROLL
    for (int mask = 1; mask < kLanes; mask *= 2) x += simt::shuffle_xor(x, mask);
    return x;
  }

  // States into buffer 0, where `evaluate` reads them when the block has come there; padding as zeros.
  MMEBM_BODY void present(int which) const {
    for (int q = simt::thread() % kLanes; static_cast<int>(first_dim(q)) < at_.dim; q += kLanes) {
      MMEBM_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int dim = static_cast<int>(first_dim(q)) + 8 * h;
        const float low = dim < call_.net.in[0] ? own(which, dim) : 0.0f;
        const float high = dim + 1 < call_.net.in[0] ? own(which, dim + 1) : 0.0f;
        split_pair<S::kValues>(low, high, [&](int part, uint32_t word) {
          *reinterpret_cast<uint32_t*>(values(0, part) + own_ * at_.stride + dim) = word;
        });
      }
    }
  }

  MMEBM_BODY void load(int64_t row) const {
    each([&](int dim) { own(kState, dim) = row < call_.rows ? call_.z[row * call_.net.in[0] + dim] : 0.0f; });
    present(kState);
  }

  MMEBM_BODY void store(int64_t row, float* to) const {
    if (row >= call_.rows) return;
    each([&](int dim) { to[row * call_.net.in[0] + dim] = own(kState, dim); });
  }

  MMEBM_BODY void record(int64_t row, int64_t kept, float energy) const {
    store(row, call_.states + kept * call_.rows * call_.net.in[0]);
    if (row < call_.rows && first_of_row()) call_.energies[kept * call_.rows + row] = energy;
  }

  MMEBM_BODY void tell(int64_t row, float* to, float sum) const {
    if (row < call_.rows && first_of_row()) to[row] = sum / static_cast<float>(call_.steps > 0 ? call_.steps : 1);
  }

  MMEBM_BODY float norm(int which) const {
    float squares = 0.0f;
    each([&](int dim) { squares = fma32(own(which, dim), own(which, dim), squares); });
    return sqrt32(row_sum(squares));
  }

  // The cap's factor times t.
  MMEBM_BODY float factor(float norm, float t) const {
    return (call_.hold.grad_clip != 0.0f ? clipped(norm, call_.hold.grad_clip) : 1.0f) * t;
  }

  // grad U at x, a coordinate.
  MMEBM_BODY float drift(float x, float grad, float factor, int dim) const {
    return fma32(grad, factor, pull(call_.hold.reference, x, inverse_[dim]));
  }

  // act(dim, drift, next) for each dimension: where a step leads from the states, given the gradient.
  template <class Do>
  MMEBM_BODY void move(const Source& source, int64_t k, const Step& step, int grad, float factor, Do act) const {
    each_call([&](int q, int from) {
      float eps[4];
      source.noise(k, q, eps);
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int dim = from + 8 * (i / 2) + i % 2;
        if (dim >= call_.net.in[0]) continue;
        const float x = own(kState, dim), by = drift(x, own(grad, dim), factor, dim);
        act(dim, x, fma32(eps[i], step.b, fma32(by, -step.a, x)));
      }
    });
  }

  MMEBM_BODY void langevin(int64_t tile) const {
    const int64_t row = kRows * tile + own_, every = call_.record_every;
    const bool statistics = call_.mean_energy != nullptr;
    float energies = 0.0f, norms = 0.0f, lengths = 0.0f;
    const Source source(call_, row);
    load(row);
    for (int64_t k = 0; k < call_.steps; ++k) {
      const Step step = step_of(call_, k);
      const auto [energy, bound] = bounded(evaluate(), call_.net.bound);
      if (every > 0 && k > 0 && k % every == 0) record(row, k / every - 1, energy);
      float size = 0.0f;
      if (statistics || call_.hold.grad_clip != 0.0f) {
        size = norm(kGrad) * absolute(bound);
        norms += size;
        energies += energy;
      }
      float squares = 0.0f;
      move(source, k, step, kGrad, bound * factor(size, step.t), [&](int dim, float x, float next) {
        next = boxed(call_.hold, next);
        squares = fma32(next - x, next - x, squares);
        own(kState, dim) = next;
      });
      if (statistics) lengths += sqrt32(row_sum(squares));
      present(kState);
    }
    store(row, call_.out);
    if (every > 0 && call_.steps > 0 && call_.steps % every == 0) {
      record(row, call_.steps / every - 1, bounded(evaluate(), call_.net.bound).value);
    }
    if (statistics) {
      tell(row, call_.mean_energy, energies);
      tell(row, call_.grad_norm, norms);
      tell(row, call_.displacement, lengths);
    }
  }

  // E, bounded, at what was presented; the gradient in kGrad likewise.
  MMEBM_BODY float evaluate_bounded() const {
    const auto [energy, bound] = bounded(evaluate(), call_.net.bound);
    const float slope = bound;
    each([&](int dim) { own(kGrad, dim) *= slope; });
    return energy;
  }

  MMEBM_BODY void mala(int64_t tile) const {
    const int64_t row = kRows * tile + own_, every = call_.record_every;
    const Hold& hold = call_.hold;
    float energies = 0.0f, norms = 0.0f, lengths = 0.0f, accepted = 0.0f, work = 0.0f, before = 0.0f;
    const Source source(call_, row);
    load(row);
    float energy = evaluate_bounded(), size = norm(kGrad);
    each([&](int dim) { own(kHeld, dim) = own(kGrad, dim); });
    for (int64_t k = 0; k < call_.steps; ++k) {
      const Step step = step_of(call_, k);
      const float here = factor(size, step.t);
      float outside = 0.0f;
      move(source, k, step, kHeld, here, [&](int dim, float, float next) {
        own(kProposal, dim) = next;
        if (next < hold.lower || next > hold.upper) outside = 1.0f;
      });
      present(kProposal);
      const float new_energy = evaluate_bounded(), new_size = norm(kGrad);
      const float there = factor(new_size, step.t);
      float density = 0.0f, prior = 0.0f, squares = 0.0f;  // differences come before sums
      each([&](int dim) {
        const float x = own(kState, dim), y = own(kProposal, dim), moved = x - y;
        const float from = drift(x, own(kHeld, dim), here, dim), back = drift(y, own(kGrad, dim), there, dim);
        density = fma32(from + back, fma32(moved, 2.0f, step.a * (back - from)), density);
        prior += log_ratio(hold.reference, y, x, inverse_[dim]);
        squares = fma32(moved, moved, squares);
      });
      const float ratio = fma32(row_sum(density), -step.a / (2.0f * step.b * step.b), row_sum(prior));
      const float log_alpha = fma32(step.t, energy - new_energy, ratio);
      const float u = uniform(source.words(k, Purpose::accept, 0).x0);
      // A NaN compares false: it rejects. Without noise there is no density.
      const bool accept = row_sum(outside) == 0.0f && step.b != 0.0f && -minus_log(u) < log_alpha;
      work = k > 0 ? fma32(step.t - before, energy, work) : 0.0f;
      before = step.t;
      energies += energy;
      norms += size;
      squares = row_sum(squares);
      if (accept) {
        lengths += sqrt32(squares);
        accepted += 1.0f;
        each([&](int dim) {
          own(kState, dim) = own(kProposal, dim);
          own(kHeld, dim) = own(kGrad, dim);
        });
        energy = new_energy;
        size = new_size;
      }
      if (every > 0 && (k + 1) % every == 0) record(row, k / every, energy);
    }
    store(row, call_.out);
    if (call_.mean_energy) {
      tell(row, call_.mean_energy, energies);
      tell(row, call_.grad_norm, norms);
      tell(row, call_.displacement, lengths);
      tell(row, call_.acceptance, accepted);
      if (row < call_.rows && first_of_row()) call_.work[row] = work;
    }
  }

  const ChainCall& call_;
  const BlockLayout& at_;
  uint16_t *weight_, *value_;
  float *bias_, *last_, *inverse_, *parts_, *slope_, *states_;
  int warp_, lane_, own_;
};

}  // namespace mmebm::cuda
