// The CPU kernels' arguments, and the table of what is compiled once per instruction set. All arrays are contiguous
// float32 in row-major order unless said otherwise; a null pointer is an output that was not asked for.
#pragma once

#include <cstdint>

#include "common/activation.hpp"
#include "cpu/isa.hpp"

namespace mmebm::cpu {

// Noise: element (step, chain, dim) depends on (seed, offset + step, first chain + row, purpose, dim) alone.
struct Stream {
  uint64_t seed, offset, chain;
};

enum class Law : int { normal = 0, laplace = 1 };

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

enum class Reference : int { none = 0, normal = 1, laplace = 2 };

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

inline constexpr int kMaxExperts = 31;

// M diagonal normal experts: mu and logvar [experts, rows, dim], present a bitmask a row.
enum class Prior : int { never = 0, always = 1, full = 2 };

struct Experts {
  const float* mu;
  const float* logvar;
  const int64_t* present;
  int64_t experts, rows, dim;
  Prior prior;
};

struct ProductCall {
  Experts in;
  float* mu;  // [rows, dim]
  float* logvar;
};

struct ProductBackwardCall {
  Experts in;
  const float* g_mu;  // [rows, dim]
  const float* g_logvar;
  float* d_mu;  // [experts, rows, dim]
  float* d_logvar;
};

// Of every subset s = 1 .. 2^experts - 1: its product [s - 1, rows, dim], or its KL to the standard normal [s - 1, rows].
struct SubsetsCall {
  Experts in;
  float* mu;
  float* logvar;
  float* kl;
};

struct SubsetsBackwardCall {
  Experts in;
  const float* g_mu;
  const float* g_logvar;
  const float* g_kl;
  float* d_mu;  // [experts, rows, dim]
  float* d_logvar;
};

// log of a row's uniform mixture: z [lead, rows, dim], loc and scale [experts, rows, dim] -> [lead, rows].
struct MixtureCall {
  const float* z;
  const float* loc;
  const float* scale;
  const int64_t* present;
  int64_t lead, rows, dim, experts;
  Law law;
  float* out;
};

struct MixtureBackwardCall {
  MixtureCall in;  // but its `out`
  const float* g;  // [lead, rows]
  float* dz;
  float* d_loc;  // null leaves loc and scale out
  float* d_scale;
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
