// Whole chains on tensor cores: a warp runs all steps of 16 chains, a block's warps share the weights in its memory.
//
// States, activations and gradients live in registers in the accumulators' layout: what one product gives is packed into
// the next one's A without a shuffle, and a lane owns whole Philox calls. One copy of a weight serves both ways. The same
// body runs on the host under simt.hpp's emulator.
#pragma once

#include "common/activation.hpp"
#include "common/philox.hpp"
#include "cuda/fragments.hpp"
#include "cuda/simt.hpp"

namespace mmebm::cuda {

inline constexpr int kMaxLinear = 4;  // up to three hidden layers and the last
inline constexpr int kSkew = 8;       // elements behind a row of weights, so that rows start in different banks

enum class Reference : int { none, normal, laplace };

struct Chain {
  const float* z;  // [rows, dim]
  int64_t rows, steps;
  const float* weight[kMaxLinear];  // [out, in]
  const float* bias[kMaxLinear];    // [out]
  int in[kMaxLinear], out[kMaxLinear];
  int linear;  // layers, the last included
  Activation activation;
  float slope, bound;  // bound 0: none
  const float* coefficients;  // [steps, 3]: a, b, t
  const int64_t* rng;         // seed, offset, first chain
  Reference reference;
  const float* scale;       // [dim]
  float clip, lower, upper;  // clip 0: none
  float* end;                // [rows, dim]
  int64_t record_every;      // 0: nothing is kept
  float *states, *energies;  // [steps / record_every, rows(, dim)]
  float *mean_energy, *grad_norm, *displacement;  // [rows]; asked for together, or null
};

// Bytes of shared memory; D and H are padded widths, terms as below.
template <int D, int H, int terms>
constexpr int shared_bytes(int linear, int threads) {
  const int hidden = linear - 1;
  const int weights = H * (D + kSkew) + (hidden - 1) * H * (H + kSkew);
  return weights * 2 * (terms > 1 ? 2 : 1) + 4 * (hidden * H + H + D) + 4 * (hidden - 1) * (H / 2) * threads;
}

namespace detail {

MMEBM_BODY float low_part(float x, uint32_t packed, bool high) {
  return x - bits_float(static_cast<int32_t>(high ? packed & 0xffff0000u : packed << 16));
}

// A fragments of two neighbouring accumulators, and of what rounding them lost.
template <int terms>
MMEBM_BODY void pack(const float (&left)[4], const float (&right)[4], uint32_t (&a)[4], uint32_t (&low)[4]) {
  const float x[8] = {left[0], left[1], left[2], left[3], right[0], right[1], right[2], right[3]};
  MMEBM_UNROLL
  for (int r = 0; r < 4; ++r) {
    a[r] = simt::pack_bf16(x[2 * r], x[2 * r + 1]);
    if constexpr (terms == 3) {
      low[r] = simt::pack_bf16(low_part(x[2 * r], a[r], false), low_part(x[2 * r + 1], a[r], true));
    }
  }
}

MMEBM_BODY float row_sum(float x) {
  x += simt::shuffle_xor(x, 1);
  return x + simt::shuffle_xor(x, 2);
}

}  // namespace detail

// terms: products of bf16 matrices for one: 1 (bf16), 2 (weights in two parts), 3 (both operands in two parts).
template <int D, int H, int terms>
class ChainTile {
  static constexpr int kD = D / 8, kH = H / 8;  // accumulators of a row of 16 chains
  static_assert(D % 16 == 0 && H % 16 == 0 && D <= H && terms >= 1 && terms <= 3);

 public:
  // All threads of a block of `threads` call this with the block's memory.
  MMEBM_BODY ChainTile(const Chain& call, char* shared, int threads) : call_(call), threads_(threads) {
    const int hidden = call.linear - 1;
    const int words = H * (D + kSkew) + (hidden - 1) * H * (H + kSkew);
    high_ = reinterpret_cast<uint16_t*>(shared);
    low_ = high_ + (terms > 1 ? words : 0);
    bias_ = reinterpret_cast<float*>(high_ + words * (terms > 1 ? 2 : 1));
    last_ = bias_ + hidden * H;
    inverse_ = last_ + H;
    first_ = inverse_ + D;
    const int me = simt::thread();
    for (int l = 0; l < hidden; ++l) {
      const int columns = l == 0 ? D : H, stride = columns + kSkew;
      for (int i = me; i < H * columns; i += threads) {
        const int row = i / columns, column = i % columns;
        const bool real = row < call.out[l] && column < call.in[l];
        const float w = real ? call.weight[l][row * call.in[l] + column] : 0.0f;
        const uint32_t packed = simt::pack_bf16(w, 0.0f);
        high_[at(l) + row * stride + column] = static_cast<uint16_t>(packed);
        if constexpr (terms > 1) {
          const float rest = detail::low_part(w, packed, false);
          low_[at(l) + row * stride + column] = static_cast<uint16_t>(simt::pack_bf16(rest, 0.0f));
        }
      }
      for (int i = me; i < H; i += threads) bias_[l * H + i] = i < call.out[l] ? call.bias[l][i] : 0.0f;
    }
    for (int i = me; i < H; i += threads) last_[i] = i < call.in[hidden] ? call.weight[hidden][i] : 0.0f;
    for (int i = me; i < D; i += threads) inverse_[i] = i < call.in[0] ? 1.0f / call.scale[i] : 0.0f;
    simt::barrier();
  }

  // All steps of the 16 chains of this warp; every lane of it comes here.
  MMEBM_BODY void run(int64_t first_row) {
    const int lane = simt::thread() % 32;
    row_ = lane / 4;
    pair_ = 2 * (lane % 4);
    first_row_ = first_row;
    const int dim = call_.in[0];
    const uint64_t seed = static_cast<uint64_t>(call_.rng[0]), offset = static_cast<uint64_t>(call_.rng[1]);
    float z[kD][4], grad[kD][4], energy[2];
    each(z, [&](float& x, int64_t row, int column) {
      x = row < call_.rows && column < dim ? call_.z[row * dim + column] : 0.0f;
    });
    const bool statistics = call_.mean_energy != nullptr;
    float energies[2] = {}, norms[2] = {}, lengths[2] = {};
    for (int64_t k = 0; k < call_.steps; ++k) {
      const float a = call_.coefficients[3 * k], b = call_.coefficients[3 * k + 1], t = call_.coefficients[3 * k + 2];
      evaluate(z, grad, energy);
      if (call_.record_every > 0 && k > 0 && k % call_.record_every == 0) record(z, energy, k / call_.record_every - 1);
      float factor[2], length[2] = {};
      MMEBM_UNROLL
      for (int h = 0; h < 2; ++h) {
        factor[h] = bounded(energy[h]).first;
        if (statistics || call_.clip != 0.0f) {
          float squares = 0.0f;
          MMEBM_UNROLL
          for (int n = 0; n < kD; ++n) {
            MMEBM_UNROLL
            for (int i = 2 * h; i < 2 * h + 2; ++i) squares = fma32(grad[n][i], grad[n][i], squares);
          }
          const float norm = sqrt32(detail::row_sum(squares)) * absolute(factor[h]);
          norms[h] += norm;
          energies[h] += bounded(energy[h]).value;
          if (call_.clip != 0.0f && norm > call_.clip) factor[h] *= call_.clip / norm;
        }
        factor[h] *= t;
      }
      const uint64_t step = (offset + static_cast<uint64_t>(k)) & kMask48;
      MMEBM_UNROLL
      for (int j = 0; j < kD / 2; ++j) {
        MMEBM_UNROLL
        for (int h = 0; h < 2; ++h) {
          const uint64_t chain = static_cast<uint64_t>(call_.rng[2] + first_row + row_ + 8 * h) & kMask48;
          const Words x = words(seed, chain, step, static_cast<uint32_t>(Purpose::chain), 4 * j + pair_ / 2);
          const auto one = normal_pair(x.x0, x.x1), two = normal_pair(x.x2, x.x3);
          const float eps[4] = {one.a, one.b, two.a, two.b};
          MMEBM_UNROLL
          for (int c = 0; c < 4; ++c) {
            const int column = 16 * j + 8 * (c / 2) + pair_ + c % 2;
            float& x0 = z[2 * j + c / 2][2 * h + c % 2];
            const float by = fma32(grad[2 * j + c / 2][2 * h + c % 2], factor[h], pull(x0, inverse_[column]));
            float next = fma32(eps[c], b, fma32(by, -a, x0));
            next = at_least(at_most(next, call_.upper), call_.lower);
            if (column >= dim) next = 0.0f;
            length[h] = fma32(next - x0, next - x0, length[h]);
            x0 = next;
          }
        }
      }
      if (statistics) {
        MMEBM_UNROLL
        for (int h = 0; h < 2; ++h) lengths[h] += sqrt32(detail::row_sum(length[h]));
      }
    }
    each(z, [&](float& x, int64_t row, int column) {
      if (row < call_.rows && column < dim) call_.end[row * dim + column] = x;
    });
    if (call_.record_every > 0 && call_.steps > 0 && call_.steps % call_.record_every == 0) {
      evaluate(z, grad, energy);
      record(z, energy, call_.steps / call_.record_every - 1);
    }
    if (statistics && pair_ == 0) {
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
  }

 private:
  MMEBM_BODY static int at(int layer) { return layer == 0 ? 0 : H * (D + kSkew) + (layer - 1) * H * (H + kSkew); }

  template <class Do>
  MMEBM_BODY void each(float (&x)[kD][4], Do act) const {
    MMEBM_UNROLL
    for (int n = 0; n < kD; ++n) {
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) act(x[n][i], first_row_ + row_ + 8 * (i / 2), 8 * n + pair_ + i % 2);
    }
  }

  MMEBM_BODY ValueAndFirst<float> bounded(float e) const {
    if (call_.bound == 0.0f) return {e, 1.0f};
    const auto [value, first] = activate<Activation::tanh>(e * (1.0f / call_.bound), 0.0f);
    return {value * call_.bound, first};
  }

  MMEBM_BODY float pull(float x, float inverse) const {
    if (call_.reference == Reference::none) return 0.0f;
    if (call_.reference == Reference::normal) return x * (inverse * inverse);
    return x > 0.0f ? inverse : x < 0.0f ? -inverse : x * 0.0f;  // NaN stays NaN
  }

  MMEBM_BODY void record(float (&z)[kD][4], const float (&energy)[2], int64_t kept) const {
    const int dim = call_.in[0];
    each(z, [&](float& x, int64_t row, int column) {
      if (row < call_.rows && column < dim) call_.states[(kept * call_.rows + row) * dim + column] = x;
    });
    MMEBM_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int64_t row = first_row_ + row_ + 8 * h;
      if (pair_ == 0 && row < call_.rows) call_.energies[kept * call_.rows + row] = bounded(energy[h]).value;
    }
  }

  // c += A B for one accumulator; B's words of the weight's high and low part.
  MMEBM_BODY void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&a_low)[4], const uint32_t (&b)[2],
                           const uint32_t (&b_low)[2]) const {
    if constexpr (terms > 1) simt::mma_bf16(c, a, b_low);
    if constexpr (terms == 3) simt::mma_bf16(c, a_low, b);
    simt::mma_bf16(c, a, b);
  }

  // x W^T: W's rows are the columns of B, and two neighbours in k lie side by side.
  template <int K>
  MMEBM_BODY void up(const uint32_t (&a)[K / 16][4], const uint32_t (&a_low)[K / 16][4], int layer, int n, float (&c)[4]) const {
    const int from = at(layer) + (8 * n + row_) * (K + kSkew) + pair_;
    MMEBM_UNROLL
    for (int j = 0; j < K / 16; ++j) {
      uint32_t b[2], b_low[2] = {};
      MMEBM_UNROLL
      for (int r = 0; r < 2; ++r) {
        b[r] = *reinterpret_cast<const uint32_t*>(high_ + from + 16 * j + 8 * r);
        if constexpr (terms > 1) b_low[r] = *reinterpret_cast<const uint32_t*>(low_ + from + 16 * j + 8 * r);
      }
      multiply(c, a[j], a_low[j], b, b_low);
    }
  }

  // x W: two neighbours in k are rows apart.
  template <int N>
  MMEBM_BODY void down(const uint32_t (&a)[H / 16][4], const uint32_t (&a_low)[H / 16][4], int layer, int n, float (&c)[4]) const {
    constexpr int stride = N + kSkew;
    const int from = at(layer) + pair_ * stride + 8 * n + row_;
    const auto two = [&](const uint16_t* w, int i) { return static_cast<uint32_t>(w[i + stride]) << 16 | w[i]; };
    MMEBM_UNROLL
    for (int j = 0; j < H / 16; ++j) {
      uint32_t b[2], b_low[2] = {};
      MMEBM_UNROLL
      for (int r = 0; r < 2; ++r) {
        b[r] = two(high_, from + (16 * j + 8 * r) * stride);
        if constexpr (terms > 1) b_low[r] = two(low_, from + (16 * j + 8 * r) * stride);
      }
      multiply(c, a[j], a_low[j], b, b_low);
    }
  }

  // The kind is the same for all: one branch a layer.
  MMEBM_BODY void activate_all(float (&h)[kH][4], float (&sums)[2], int layer, bool final) const {
    switch (call_.activation) {
      case Activation::silu: return activate_as<Activation::silu>(h, sums, layer, final);
      case Activation::gelu: return activate_as<Activation::gelu>(h, sums, layer, final);
      case Activation::gelu_tanh: return activate_as<Activation::gelu_tanh>(h, sums, layer, final);
      case Activation::leaky_relu: return activate_as<Activation::leaky_relu>(h, sums, layer, final);
      case Activation::relu: return activate_as<Activation::relu>(h, sums, layer, final);
      case Activation::softplus: return activate_as<Activation::softplus>(h, sums, layer, final);
      case Activation::tanh: return activate_as<Activation::tanh>(h, sums, layer, final);
      default: return activate_as<Activation::elu>(h, sums, layer, final);
    }
  }

  // h: what products gave, then values, their derivatives in the thread's slots; or, after the final hidden layer, the
  // gradient of E in what the products gave, the values having gone into the sums of E.
  template <Activation kind>
  MMEBM_BODY void activate_as(float (&h)[kH][4], float (&sums)[2], int layer, bool final) const {
    MMEBM_UNROLL
    for (int n = 0; n < kH; ++n) {
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const auto [value, first] = activate<kind>(h[n][i] + bias_[layer * H + 8 * n + pair_ + i % 2], call_.slope);
        if (final) {
          const float w = last_[8 * n + pair_ + i % 2];
          sums[i / 2] = fma32(value, w, sums[i / 2]);
          h[n][i] = first * w;
        } else {
          h[n][i] = value;
          first_[(layer * (H / 2) + 4 * n + i) * threads_ + simt::thread()] = first;
        }
      }
    }
  }

  // E, not bounded, and dE/dz of it.
  MMEBM_BODY void evaluate(float (&z)[kD][4], float (&grad)[kD][4], float (&energy)[2]) {
    const int hidden = call_.linear - 1;
    uint32_t x[D / 16][4], x_low[D / 16][4], a[H / 16][4], a_low[H / 16][4];
    float h[kH][4], sums[2] = {};
    MMEBM_UNROLL
    for (int j = 0; j < D / 16; ++j) detail::pack<terms>(z[2 * j], z[2 * j + 1], x[j], x_low[j]);
    for (int l = 0; l < hidden; ++l) {
      MMEBM_UNROLL
      for (int n = 0; n < kH; ++n) {
        MMEBM_UNROLL
        for (int i = 0; i < 4; ++i) h[n][i] = 0.0f;
        if (l == 0) {
          up<D>(x, x_low, 0, n, h[n]);
        } else {
          up<H>(a, a_low, l, n, h[n]);
        }
      }
      activate_all(h, sums, l, l + 1 == hidden);
      if (l + 1 == hidden) break;
      MMEBM_UNROLL
      for (int j = 0; j < H / 16; ++j) detail::pack<terms>(h[2 * j], h[2 * j + 1], a[j], a_low[j]);
    }
    MMEBM_UNROLL
    for (int s = 0; s < 2; ++s) energy[s] = detail::row_sum(sums[s]) + call_.bias[hidden][0];
    for (int l = hidden - 1; l > 0; --l) {
      MMEBM_UNROLL
      for (int j = 0; j < H / 16; ++j) detail::pack<terms>(h[2 * j], h[2 * j + 1], a[j], a_low[j]);
      MMEBM_UNROLL
      for (int n = 0; n < kH; ++n) {
        float c[4] = {};
        down<H>(a, a_low, l, n, c);
        MMEBM_UNROLL
        for (int i = 0; i < 4; ++i) {
          h[n][i] = c[i] * first_[((l - 1) * (H / 2) + 4 * n + i) * threads_ + simt::thread()];
        }
      }
    }
    MMEBM_UNROLL
    for (int j = 0; j < H / 16; ++j) detail::pack<terms>(h[2 * j], h[2 * j + 1], a[j], a_low[j]);
    MMEBM_UNROLL
    for (int n = 0; n < kD; ++n) {
      MMEBM_UNROLL
      for (int i = 0; i < 4; ++i) grad[n][i] = 0.0f;
      down<D>(a, a_low, 0, n, grad[n]);
    }
  }

  const Chain& call_;
  int threads_, row_ = 0, pair_ = 0;
  int64_t first_row_ = 0;
  uint16_t *high_, *low_;
  float *bias_, *last_, *inverse_, *first_;
};

}  // namespace mmebm::cuda
