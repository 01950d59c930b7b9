// The CUDA kernels' arguments and launchers. Pointers are the device's, and so are the numbers behind `rng` and
// `coefficients`: a captured call reads them anew. All arrays are contiguous float32 in row-major order unless said
// otherwise; a null pointer is an output that was not asked for.
#pragma once

#include "common/activation.hpp"
#include "common/calls.hpp"

namespace mmebm::cuda {

using Stream = uintptr_t;  // a cudaStream_t as it travels through Python

// Noise: element (step, chain, dim) depends on (seed, offset + step, first chain + row, purpose, dim) alone.
using Rng = const int64_t*;  // seed, offset, first chain

struct DrawCall {
  float* out;          // [steps, rows, dim]
  const float* scale;  // [dim] or null
  int64_t steps, rows, dim;
  Rng rng;
  uint32_t purpose;
  Law law;
};

struct Hold {
  Reference reference;
  const float* scale;  // [dim]
  float grad_clip;     // 0: none
  float lower, upper;  // infinite: none
};

struct UpdateCall {
  const float* z;  // [rows, dim]
  const float* grad;
  int64_t rows, dim;
  const float* coefficients;  // [steps, 3]: a, b, t
  Rng rng;
  int64_t step;
  Hold hold;
  float* out;
};

// f(x W^T + b) and f' there: x [rows, fan_in] -> [rows, width].
struct LayerForwardCall {
  const float *x, *weight, *bias;
  float *value, *derivative;
  int64_t rows, width, fan_in;
  Activation activation;
  float slope;
};

// ((delta last) W) derivative factor: delta [rows, width], last [width] or null -> [rows, fan_in], to which derivative
// [rows, fan_in] and factor [rows] belong, or null.
struct LayerBackwardCall {
  const float *delta, *last, *weight, *derivative, *factor;
  float* out;
  int64_t rows, width, fan_in;
};

// E [rows] from the last hidden layer, bounded, and g dE/de; g null is 1.
struct LayerHeadCall {
  const float *h, *weight, *bias, *g;
  float *energy, *factor;
  int64_t rows, width;
  float bound;
};

// Over each of `parts` runs of `added` rows: (factor delta last)^T x [width, fan_in] and its sums [width].
struct LayerOuterCall {
  const float *delta, *last, *factor, *x;
  float *d_weight, *d_bias;
  int64_t rows, added, parts, width, fan_in;
};

inline constexpr int kMaxLinear = 4;  // up to three hidden layers and the last

struct Net {
  const float* weight[kMaxLinear];  // [out, in]
  const float* bias[kMaxLinear];    // [out]
  int in[kMaxLinear], out[kMaxLinear];
  int linear;  // layers, the last included: at least two
  Activation activation;
  float slope, bound;  // bound 0: none
};

struct ChainCall {
  const float* z;  // [rows, dim]
  int64_t rows, steps;
  Net net;
  const float* coefficients;  // [steps, 3]: a, b, t
  Rng rng;
  Hold hold;
  int64_t record_every;  // 0: nothing is kept
  float* out;            // [rows, dim]
  float *states, *energies;  // [steps / record_every, rows(, dim)]
  // [rows], asked for together, or null; the last two are of the adjusted chain alone.
  float *mean_energy, *grad_norm, *displacement, *acceptance, *work;
};

void draw(const DrawCall& call, Stream stream);
void langevin_update(const UpdateCall& call, Stream stream);
void layer_forward(const LayerForwardCall& call, Stream stream);
void layer_backward(const LayerBackwardCall& call, Stream stream);
void layer_head(const LayerHeadCall& call, Stream stream);
void layer_outer(const LayerOuterCall& call, Stream stream);
void product(const ProductCall& call, Stream stream);
void product_backward(const ProductBackwardCall& call, Stream stream);
void subsets(const SubsetsCall& call, Stream stream);
void subsets_backward(const SubsetsBackwardCall& call, Stream stream);
void mixture(const MixtureCall& call, Stream stream);
void mixture_backward(const MixtureBackwardCall& call, Stream stream);


// Whole chains, and their bytes of shared memory, 0 where no kernel holds the network. `terms` as in split.hpp.
// 16 a block:
template <int terms>
void block_chain(const ChainCall& call, bool adjusted, Stream stream);
template <int terms>
int block_chain_bytes(const Net& net, bool adjusted);
// the same with weights that are read from a workspace in every step:
template <int terms>
void streamed_chain(const ChainCall& call, bool adjusted, void* workspace, Stream stream);
template <int terms>
int streamed_chain_bytes(const Net& net, bool adjusted);
template <int terms>
int64_t workspace_bytes(const Net& net);
// 16 a warp, never adjusted, by mma.sync:
template <int terms>
void warp_chain(const ChainCall& call, Stream stream);
template <int terms>
int warp_chain_bytes(const Net& net);
// and by wgmma, which is sm_90a's and knows one term:
void wgmma_chain(const ChainCall& call, Stream stream);
int wgmma_chain_bytes(const Net& net);

}  // namespace mmebm::cuda
