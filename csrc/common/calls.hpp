// Arguments that mean the same on every device. All arrays are contiguous float32 in row-major order unless said
// otherwise; a null pointer is an output that was not asked for.
#pragma once

#include <cstdint>

namespace mmebm {

enum class Law : int { normal = 0, laplace = 1 };

enum class Reference : int { none = 0, normal = 1, laplace = 2 };

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

}  // namespace mmebm
