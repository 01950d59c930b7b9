// The CPU kernels' arguments, and the table of what is compiled once per instruction set. All arrays are contiguous
// float32 in row-major order unless said otherwise; a null pointer is an output that was not asked for.
#pragma once

#include <cstdint>

#include "common/activation.hpp"
#include "common/calls.hpp"
#include "cpu/isa.hpp"

namespace mmebm::cpu {

// Noise: element (step, chain, dim) depends on (seed, offset + step, first chain + row, purpose, dim) alone.
struct Stream {
  uint64_t seed, offset, chain;
};

struct DrawCall {
  float* out;          // [steps, rows, dim]
  const float* scale;  // [dim] or null
  int64_t steps, rows, dim;
  Stream stream;
  uint32_t purpose;
  Law law;
};

struct Layer {
  const float* weight;  // [out, in]
  const float* bias;    // [out]
  int64_t in, out;
};

inline constexpr int kMaxLayers = 33;  // linear layers, the last with one output

struct Net {
  Layer layers[kMaxLayers];
  int count;
  Activation activation;
  float slope;
  float bound;  // 0: none
};

struct EnergyCall {
  const float* z;  // [rows, dim]
  int64_t rows;
  Net net;
  float* energy;  // [rows]
  float* grad;    // [rows, dim]
};

// The gradient of sum_b g_b E(z_b). Weights' and biases' gradients are laid out as the layers are; null leaves them out.
struct EnergyBackwardCall {
  const float* g;  // [rows]
  const float* z;
  int64_t rows;
  Net net;
  float* dz;
  float* d_weight[kMaxLayers];
  float* d_bias[kMaxLayers];
};

struct Hold {
  Reference reference;
  const float* scale;  // [dim]
  float grad_clip;     // 0: none
  float lower, upper;  // infinite: none
};

struct ChainCall {
  const float* z;  // [rows, dim]
  int64_t rows, steps;
  Net net;
  const float* coefficients;  // [steps, 3]: a, b, t
  Stream stream;
  Hold hold;
  int64_t record_every;  // 0: nothing is kept
  float* out;            // [rows, dim]
  float* states;         // [steps / record_every, rows, dim]
  float* energies;       // [steps / record_every, rows]
  float* mean_energy;    // [rows]; the statistics are asked for together
  float* grad_norm;
  float* displacement;
  float* acceptance;  // of the adjusted chain alone, as is
  float* work;        // the sum over k >= 1 of (t_k - t_{k-1}) E(z_k), z_k being the state before step k
};

struct UpdateCall {
  const float* z;
  const float* grad;
  int64_t rows, dim;
  float a, b, t;
  Stream stream;  // at this step
  Hold hold;
  float* out;
};

// One definition per instruction set; results depend on it by rounding alone, and not at all on `threads`.
struct Kernels {
  void (*draw)(const DrawCall&, int threads);
  void (*energy)(const EnergyCall&, int threads);
  void (*energy_backward)(const EnergyBackwardCall&, int threads);
  void (*langevin)(const ChainCall&, int threads);
  void (*mala)(const ChainCall&, int threads);
  void (*langevin_update)(const UpdateCall&, int threads);
  void (*product)(const ProductCall&, int threads);
  void (*product_backward)(const ProductBackwardCall&, int threads);
  void (*subsets)(const SubsetsCall&, int threads);
  void (*subsets_backward)(const SubsetsBackwardCall&, int threads);
  void (*mixture)(const MixtureCall&, int threads);
  void (*mixture_backward)(const MixtureBackwardCall&, int threads);
  // Rates on operands in L1: flop/s of the register tile; values/s of one thread.
  double (*fma_rate)(double seconds, int threads);
  double (*activation_rate)(Activation kind, double seconds);
  double (*normal_rate)(double seconds);
};

const Kernels& kernels(Isa isa);

namespace base {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace mmebm::cpu
