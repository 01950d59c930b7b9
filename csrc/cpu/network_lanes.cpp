#include "common/mutant.hpp"
#include "cpu/network.hpp"

namespace mmebm::cpu::MMEBM_ISA {

namespace {

enum class Wanted { value, first, both };

template <Activation kind, Wanted wanted>
void pass(float* a, float* d, int64_t n, float slope) {
  for (int64_t i = 0; i < n; i += kPassBlock * kLanes) {
    const auto result = activate<kind>(load_block<kPassBlock>(a + i), slope);
    if constexpr (wanted != Wanted::first) store_block(a + i, result.value);
    if constexpr (wanted != Wanted::value) store_block(d + i, result.first);
  }
}

template <Activation kind>
constexpr ActivationPasses kPasses{&pass<kind, Wanted::value>, &pass<kind, Wanted::first>, &pass<kind, Wanted::both>};

// For the planted bug of that name: weight (row, column), or of the transpose where the layer is square.
[[maybe_unused]] MMEBM_HD float transposed(const Layer& layer, int64_t row, int64_t column) {
  return layer.weight[layer.in == layer.out ? column * layer.in + row : row * layer.in + column];
}

// Panels of one linear layer, forward first.
int64_t panels(const Layer& layer) { return (whole_rows(layer.out) + whole_rows(layer.in)) / kRows; }

}  // namespace

ActivationPasses passes(Activation kind) {
  switch (kind) {
    case Activation::silu:
      return kPasses<Activation::silu>;
    case Activation::gelu:
      return kPasses<Activation::gelu>;
    case Activation::gelu_tanh:
      return kPasses<Activation::gelu_tanh>;
    case Activation::leaky_relu:
      return kPasses<Activation::leaky_relu>;
    case Activation::relu:
      return kPasses<Activation::relu>;
    case Activation::softplus:
      return kPasses<Activation::softplus>;
    case Activation::tanh:
      return kPasses<Activation::tanh>;
    default:
      return kPasses<Activation::elu>;
  }
}

int64_t packed_size(const Net& net) {
  int64_t floats = 0;
  for (int l = 0; l < net.count - 1; ++l) {
    const Layer& layer = net.layers[l];
    floats += whole_rows(layer.out) * (layer.in + 1) + whole_rows(layer.in) * layer.out + 48;
  }
  return floats;
}

Packed lay_out(const Net& net, float* memory) {
  Packed packed{};
  packed.hidden = net.count - 1;
  packed.width[0] = net.layers[0].in;
  const auto take = [&](int64_t floats) {
    float* at = memory;
    memory += (floats + 15) / 16 * 16;  // a cache line
    return at;
  };
  for (int l = 0; l < packed.hidden; ++l) {
    const Layer& layer = net.layers[l];
    packed.width[l + 1] = layer.out;
    packed.forward[l] = take(whole_rows(layer.out) * layer.in);
    packed.backward[l] = take(whole_rows(layer.in) * layer.out);
    packed.bias[l] = take(whole_rows(layer.out));
  }
  packed.last = net.layers[packed.hidden].weight;
  packed.last_bias = net.layers[packed.hidden].bias[0];
  packed.pass = passes(net.activation);
  packed.slope = MMEBM_MUTANT(leaky_slope, 0.01f, net.slope);
  packed.bound = net.bound;
  return packed;
}

int64_t panels(const Net& net) {
  int64_t n = 0;
  for (int l = 0; l < net.count - 1; ++l) n += panels(net.layers[l]);
  return n;
}

void fill(const Net& net, const Packed& packed, int64_t panel) {
  int l = 0;
  while (panel >= panels(net.layers[l])) panel -= panels(net.layers[l++]);
  const Layer& layer = net.layers[l];
  const int64_t forward_panels = whole_rows(layer.out) / kRows;
  if (panel < forward_panels) {
    const int64_t row = panel * kRows;
    float* to = packed.forward[l] + row * layer.in;
    float* bias = packed.bias[l] + row;
    const int64_t rows = layer.out - row < kRows ? layer.out - row : kRows;
    for (int64_t r = 0; r < kRows; ++r) {
      bias[r] = MMEBM_MUTANT(no_hidden_bias, false, r < rows) ? layer.bias[row + r] : 0.0f;
    }
    if (rows == kRows) {
      const float* from = layer.weight + row * layer.in;
      for (int64_t k = 0; k < layer.in; ++k) {
        for (int r = 0; r < kRows; ++r) {
          to[k * kRows + r] = MMEBM_MUTANT(transposed_weights, transposed(layer, row + r, k), from[r * layer.in + k]);
        }
      }
    } else {
      for (int64_t k = 0; k < layer.in; ++k) {
        for (int r = 0; r < kRows; ++r) {
          to[k * kRows + r] = r < rows ? MMEBM_MUTANT(transposed_weights, transposed(layer, row + r, k),
                                                      layer.weight[(row + r) * layer.in + k])
                                       : 0.0f;
        }
      }
    }
    return;
  }
  const int64_t column = (panel - forward_panels) * kRows;
  float* to = packed.backward[l] + column * layer.out;
  const int64_t columns = layer.in - column < kRows ? layer.in - column : kRows;
  const bool folded = l == packed.hidden - 1;
  for (int64_t k = 0; k < layer.out; ++k) {
    const float* from = layer.weight + k * layer.in + column;
    const float by = folded ? packed.last[k] : 1.0f;
    for (int r = 0; r < kRows; ++r) {
      to[k * kRows + r] =
          r < columns ? MMEBM_MUTANT(transposed_weights, transposed(layer, k, column + r), from[r]) * by : 0.0f;
    }
  }
}

}  // namespace mmebm::cpu::MMEBM_ISA
