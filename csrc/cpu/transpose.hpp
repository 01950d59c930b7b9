// Between a batch's rows [chain][dim] and a tile's [dim][chain].
#pragma once

#include <cstring>

#include "cpu/lanes.hpp"

namespace mmebm::cpu::MMEBM_ISA {

namespace detail {
template <int step, size_t... i>
MMEBM_HD Floats interleaved(Floats a, Floats b, bool low, std::index_sequence<i...>) {
  // low: elements of a and b whose index lacks the bit `step`, side by side; else those that have it.
  if (low) return __builtin_shufflevector(a, b, static_cast<int>(i & step ? kLanes + i - step : i)...);
  return __builtin_shufflevector(a, b, static_cast<int>(i & step ? kLanes + i : i + step)...);
}

template <int step>
MMEBM_HD void exchange(Floats (&x)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & step) continue;
    const Floats a = x[i], b = x[i + step];
    x[i] = interleaved<step>(a, b, true, std::make_index_sequence<kLanes>{});
    x[i + step] = interleaved<step>(a, b, false, std::make_index_sequence<kLanes>{});
  }
}
}  // namespace detail

MMEBM_HD void transpose(Floats (&x)[kLanes]) {
  detail::exchange<1>(x);
  detail::exchange<2>(x);
  if constexpr (kLanes > 4) detail::exchange<4>(x);
  if constexpr (kLanes > 8) detail::exchange<8>(x);
}

// tile[dim][chains] = rows of z; lanes past `rows` repeat the last row, so that they compute something harmless.
inline void gather(const float* z, int64_t dim, int64_t rows, int chains, float* tile) {
  for (int c = 0; c < chains; c += kLanes) {
    for (int64_t i = 0; i < dim; i += kLanes) {
      const int64_t wide = dim - i < kLanes ? dim - i : kLanes;
      Floats x[kLanes] = {};
      for (int l = 0; l < kLanes; ++l) {
        const int64_t row = c + l < rows ? c + l : rows - 1;
        if (wide == kLanes) {
          x[l] = load(z + row * dim + i);
        } else {
          std::memcpy(&x[l], z + row * dim + i, static_cast<size_t>(wide) * sizeof(float));
        }
      }
      transpose(x);
      for (int64_t l = 0; l < wide; ++l) store(tile + (i + l) * chains + c, x[l]);
    }
  }
}

// out[chain][stride], its first `dim` elements, = tile for the first `rows` chains.
inline void scatter(const float* tile, int64_t dim, int64_t rows, int chains, float* out, int64_t stride) {
  for (int c = 0; c < chains && c < rows; c += kLanes) {
    for (int64_t i = 0; i < dim; i += kLanes) {
      const int64_t wide = dim - i < kLanes ? dim - i : kLanes;
      Floats x[kLanes] = {};
      for (int64_t l = 0; l < wide; ++l) x[l] = load(tile + (i + l) * chains + c);
      transpose(x);
      for (int l = 0; l < kLanes && c + l < rows; ++l) {
        if (wide == kLanes) {
          store(out + (c + l) * stride + i, x[l]);
        } else {
          std::memcpy(out + (c + l) * stride + i, &x[l], static_cast<size_t>(wide) * sizeof(float));
        }
      }
    }
  }
}

inline void scatter(const float* tile, int64_t dim, int64_t rows, int chains, float* out) {
  scatter(tile, dim, rows, chains, out, dim);
}

}  // namespace mmebm::cpu::MMEBM_ISA
