// An energy network packed for the register tile, and its evaluation on one tile of chains.
#pragma once

#include "cpu/gemm.hpp"
#include "cpu/kernels.hpp"
#include "cpu/workers.hpp"

namespace mmebm::cpu::MMEBM_ISA {

// A pass over n floats in place: a holds pre-activations; then a becomes the value and d the derivative, or one of them.
using ActivationPass = void (*)(float* a, float* d, int64_t n, float slope);

struct ActivationPasses {
  ActivationPass value, first, both;
};

// Passes go over whole blocks and may touch this much past n.
inline constexpr int kPassBlock = kManyRegisters ? 8 : 4;
inline constexpr int64_t kPassSlack = kPassBlock * kLanes;

ActivationPasses passes(Activation kind);

// Every linear layer but the last, in panels of kRows outputs [outputs / kRows][in][kRows] (`forward`) and the same for
// its transpose (`backward`). The last layer's weights are folded into the transpose of the layer before it: a chain
// starts its way back from the derivatives alone.
struct Packed {
  int hidden;
  int64_t width[kMaxLayers];  // width[0] is the dim, width[l + 1] what hidden layer l gives
  float* forward[kMaxLayers];
  float* backward[kMaxLayers];
  float* bias[kMaxLayers];
  const float* last;
  float last_bias;
  ActivationPasses pass;
  float slope, bound;
};

// Floats that `lay_out` needs.
int64_t packed_size(const Net& net);

// Lays the packed form out in memory; the panels are filled by `fill`, in any order and by any thread.
Packed lay_out(const Net& net, float* memory);
int64_t panels(const Net& net);
void fill(const Net& net, const Packed& packed, int64_t panel);

template <int vectors>
class Tile {
 public:
  static constexpr int kChains = vectors * kLanes;

  // Floats that a tile of this net needs beside what its owner keeps.
  static int64_t size(const Packed& net) {
    int64_t floats = 0;
    for (int l = 0; l < net.hidden; ++l) floats += 2 * (whole_rows(net.width[l + 1]) * kChains + kPassSlack);
    return floats;
  }

  Tile(const Packed& net, float* memory) : net_(net) {
    const auto take = [&](int l) {
      float* at = memory;
      memory += whole_rows(net.width[l + 1]) * kChains + kPassSlack;
      return at;
    };
    for (int l = 0; l < net.hidden; ++l) first_[l] = take(l);
    for (int l = 0; l < net.hidden; ++l) value_[l] = take(l);
  }

  // E(z) before the bound; z [dim][chains].
  Real<vectors> energy(const float* z) {
    forward(z, net_.pass.value, net_.pass.value);
    return read_out(z);
  }

  // dE/dz before the bound into grad [whole_rows(dim)][chains].
  void gradient(const float* z, float* grad) {
    forward(z, net_.pass.both, net_.pass.first);
    backward(grad);
  }

  // Both. `value` and `delta` then hold every layer's, until the next call.
  Real<vectors> energy_and_gradient(const float* z, float* grad) {
    const Real<vectors> e = energy_and_derivatives(z);
    backward(grad);
    return e;
  }

  Real<vectors> energy_and_derivatives(const float* z) {
    forward(z, net_.pass.both, net_.pass.both);
    return read_out(z);
  }

  // dE/dz times what the last layer's delta was multiplied by.
  void backward(float* grad) {
    if (net_.hidden == 0) {
      for (int64_t i = 0; i < net_.width[0]; ++i) store_block(grad + i * kChains, Real<vectors>(net_.last[i]));
      return;
    }
    for (int l = net_.hidden - 1; l >= 0; --l) {
      float* out = l > 0 ? first_[l - 1] : grad;
      const int64_t rows = whole_rows(net_.width[l]), terms = net_.width[l + 1];
      for (int64_t r = 0; r < rows; r += kRows) {
        panel<vectors>(net_.backward[l] + r * terms, terms, first_[l], nullptr, l > 0 ? out + r * kChains : nullptr,
                       out + r * kChains);
      }
    }
  }

  // Of hidden layer l: its value, and the derivative of its activation, which `backward` turns into dE/d(pre-activation)
  // (short of the last layer's weights in the last one).
  const float* value(int l) const { return value_[l]; }
  float* delta(int l) const { return first_[l]; }

 private:
  // Each layer is computed a few panels at a time, its activation following while they lie in L1.
  void forward(const float* z, ActivationPass inner, ActivationPass last) {
    const float* in = z;
    for (int l = 0; l < net_.hidden; ++l) {
      const bool is_last = l == net_.hidden - 1;
      const ActivationPass pass = is_last ? last : inner;
      // The derivative alone is computed where it stays.
      float* out = pass == net_.pass.first ? first_[l] : value_[l];
      const int64_t rows = whole_rows(net_.width[l + 1]), terms = net_.width[l];
      for (int64_t from = 0; from < rows; from += kGroup) {
        const int64_t to = from + kGroup < rows ? from + kGroup : rows;
        for (int64_t r = from; r < to; r += kRows) {
          panel<vectors>(net_.forward[l] + r * terms, terms, in, net_.bias[l] + r, nullptr, out + r * kChains);
        }
        pass(out + from * kChains, first_[l] + from * kChains, (to - from) * kChains, net_.slope);
      }
      in = out;
    }
  }

  // w . h + b, in four partial sums.
  Real<vectors> read_out(const float* z) const {
    const float* in = net_.hidden > 0 ? value_[net_.hidden - 1] : z;
    const int64_t terms = net_.width[net_.hidden];
    Real<vectors> sum[4] = {net_.last_bias, 0.0f, 0.0f, 0.0f};
    const auto add = [&](Real<vectors>& part, int64_t k) MMEBM_INLINE {
      for (int v = 0; v < vectors; ++v) {
        part.v[v] = multiply_add(broadcast(net_.last[k]), load(in + k * kChains + v * kLanes), part.v[v]);
      }
    };
    int64_t k = 0;
    for (; k + 4 <= terms; k += 4) {
      for (int part = 0; part < 4; ++part) add(sum[part], k + part);
    }
    for (; k < terms; ++k) add(sum[0], k);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  static constexpr int64_t kGroup = 8 * kRows;

  const Packed& net_;
  float* first_[kMaxLayers];
  float* value_[kMaxLayers];
};

}  // namespace mmebm::cpu::MMEBM_ISA
