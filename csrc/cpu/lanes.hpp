// SIMD vectors of the instruction set this file is compiled with, and blocks of them with the vocabulary of
// common/real.hpp. An operation on a block goes over its vectors in lockstep: that many independent chains of
// instructions are in flight, where one vector at a time would wait for latencies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "common/real.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define MMEBM_INLINE __attribute__((always_inline))

namespace mmebm::cpu::MMEBM_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
inline constexpr bool kManyRegisters = true;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
inline constexpr bool kManyRegisters = false;
#else
inline constexpr int kVectorBytes = 16;
#if defined(__aarch64__)
inline constexpr bool kManyRegisters = true;
#else
inline constexpr bool kManyRegisters = false;
#endif
#endif

inline constexpr int kLanes = kVectorBytes / 4;
// Of chains in a tile: what the register tile of gemm.hpp can hold.
inline constexpr int kMaxVectors = kManyRegisters ? 3 : 2;

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
using Floats = Vector<float>;

typedef float Unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
MMEBM_HD Floats load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
MMEBM_HD void store(float* to, Floats x) { *reinterpret_cast<Unaligned*>(to) = x; }

// `Floats{} + x` would add: 0 + x is not x for x = -0.
MMEBM_HD Floats broadcast(float x) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(x);
#elif defined(__AVX2__)
  return _mm256_set1_ps(x);
#elif defined(__x86_64__)
  return _mm_set1_ps(x);
#elif defined(__aarch64__)
  return vdupq_n_f32(x);
#else
  return Floats{x, x, x, x};
#endif
}

// a b + c, rounded once where the machine can, else as fast as it can: for sums whose rounding no contract fixes.
MMEBM_HD Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

MMEBM_HD Floats fused(Floats a, Floats b, Floats c) {
#if (defined(__AVX2__) && defined(__FMA__)) || defined(__aarch64__)
  return multiply_add(a, b, c);
#else
  // The product is exact in double; only the sum's second rounding can differ, once in 2^29.
  typedef double Doubles __attribute__((vector_size(2 * kVectorBytes)));
  return __builtin_convertvector(__builtin_convertvector(a, Doubles) * __builtin_convertvector(b, Doubles) +
                                     __builtin_convertvector(c, Doubles),
                                 Floats);
#endif
}

MMEBM_HD Floats square_root(Floats x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#elif defined(__x86_64__)
  return _mm_sqrt_ps(x);
#elif defined(__aarch64__)
  return vsqrtq_f32(x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// b where either is NaN.
MMEBM_HD Floats smaller(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}
MMEBM_HD Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// About an ulp for x whose reciprocal is normal: the division's latency and width cost more than the refinement.
MMEBM_HD Floats one_over(Floats x) {
#if defined(__AVX512F__)
  const Floats r = _mm512_rcp14_ps(x);
  const Floats error = _mm512_fnmadd_ps(x, r, _mm512_set1_ps(1.0f));
  return _mm512_fmadd_ps(r, error, r);
#elif defined(__AVX2__)
  const Floats r = _mm256_rcp_ps(x);
  const Floats error = _mm256_fnmadd_ps(x, r, _mm256_set1_ps(1.0f));
  return _mm256_fmadd_ps(r, _mm256_fmadd_ps(error, error, error), r);
#else
  return 1.0f / x;
#endif
}

template <class T, int N>
struct Block {
  Vector<T> v[N];
  Block() = default;
  MMEBM_HD Block(T x) {
    for (int i = 0; i < N; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        v[i] = broadcast(x);
      } else {
        v[i] = Vector<T>{} + x;
      }
    }
  }
};

template <int N>
using Real = Block<float, N>;

namespace detail {
template <class T, int N, class F, size_t... i>
MMEBM_HD Block<T, N> build(F f, std::index_sequence<i...>) {
  Block<T, N> out;
  ((out.v[i] = f(static_cast<int>(i))), ...);
  return out;
}
}  // namespace detail

// Block of f(0), .., f(N - 1), unrolled by the language rather than by the optimiser.
template <class T, int N, class F>
MMEBM_HD Block<T, N> each(F f) {
  return detail::build<T, N>(f, std::make_index_sequence<N>{});
}

#define MMEBM_BLOCK_OPERATOR(op)                                                     \
  template <class T, int N>                                                          \
  MMEBM_HD Block<T, N> operator op(Block<T, N> a, Block<T, N> b) {                   \
    return each<T, N>([&](int i) MMEBM_INLINE { return a.v[i] op b.v[i]; }); \
  }                                                                                  \
  template <class T, int N>                                                          \
  MMEBM_HD Block<T, N> operator op(Block<T, N> a, std::type_identity_t<T> b) {       \
    return each<T, N>([&](int i) MMEBM_INLINE { return a.v[i] op b; }); \
  }
MMEBM_BLOCK_OPERATOR(+)
MMEBM_BLOCK_OPERATOR(-)
MMEBM_BLOCK_OPERATOR(*)
MMEBM_BLOCK_OPERATOR(&)
MMEBM_BLOCK_OPERATOR(|)
MMEBM_BLOCK_OPERATOR(^)
#undef MMEBM_BLOCK_OPERATOR

#define MMEBM_BLOCK_COMPARISON(op)                                                   \
  template <class T, int N>                                                          \
  MMEBM_HD Block<int32_t, N> operator op(Block<T, N> a, std::type_identity_t<T> b) { \
    return each<int32_t, N>([&](int i) MMEBM_INLINE { return a.v[i] op b; }); \
  }                                                                                  \
  template <class T, int N>                                                          \
  MMEBM_HD Block<int32_t, N> operator op(Block<T, N> a, Block<T, N> b) {             \
    return each<int32_t, N>([&](int i) MMEBM_INLINE { return a.v[i] op b.v[i]; }); \
  }
MMEBM_BLOCK_COMPARISON(<)
MMEBM_BLOCK_COMPARISON(>)
MMEBM_BLOCK_COMPARISON(!=)
#undef MMEBM_BLOCK_COMPARISON

template <class T, int N>
MMEBM_HD Block<T, N> operator<<(Block<T, N> a, int by) {
  return each<T, N>([&](int i) MMEBM_INLINE { return a.v[i] << by; });
}
template <class T, int N>
MMEBM_HD Block<T, N> operator>>(Block<T, N> a, int by) {
  return each<T, N>([&](int i) MMEBM_INLINE { return a.v[i] >> by; });
}
template <int N>
MMEBM_HD Real<N> operator-(Real<N> a) {
  return each<float, N>([&](int i) MMEBM_INLINE { return -a.v[i]; });
}
template <int N>
MMEBM_HD Real<N> operator-(float a, Real<N> b) {
  return each<float, N>([&](int i) MMEBM_INLINE { return a - b.v[i]; });
}

template <int N>
MMEBM_HD Real<N> fma32(Real<N> a, Real<N> b, Real<N> c) {
  return each<float, N>([&](int i) MMEBM_INLINE { return fused(a.v[i], b.v[i], c.v[i]); });
}
template <int N>
MMEBM_HD Real<N> fma32(Real<N> a, Real<N> b, float c) {
  return fma32(a, b, Real<N>(c));
}
template <int N>
MMEBM_HD Real<N> fma32(Real<N> a, float b, Real<N> c) {
  return fma32(a, Real<N>(b), c);
}
template <int N>
MMEBM_HD Real<N> fma32(Real<N> a, float b, float c) {
  return fma32(a, Real<N>(b), Real<N>(c));
}
template <int N>
MMEBM_HD Real<N> sqrt32(Real<N> x) {
  return each<float, N>([&](int i) MMEBM_INLINE { return square_root(x.v[i]); });
}
template <int N>
MMEBM_HD Real<N> reciprocal(Real<N> x) {
  return each<float, N>([&](int i) MMEBM_INLINE { return one_over(x.v[i]); });
}
template <int N>
MMEBM_HD Block<int32_t, N> float_bits(Real<N> x) {
  return each<int32_t, N>([&](int i) MMEBM_INLINE { return reinterpret_cast<Vector<int32_t>>(x.v[i]); });
}
template <int N>
MMEBM_HD Real<N> bits_float(Block<int32_t, N> x) {
  return each<float, N>([&](int i) MMEBM_INLINE { return reinterpret_cast<Floats>(x.v[i]); });
}
template <int N>
MMEBM_HD Real<N> to_float(Block<int32_t, N> x) {
  return each<float, N>([&](int i) MMEBM_INLINE { return __builtin_convertvector(x.v[i], Floats); });
}
template <int N>
MMEBM_HD Block<int32_t, N> to_signed(Block<uint32_t, N> x) {
  return each<int32_t, N>([&](int i) MMEBM_INLINE { return reinterpret_cast<Vector<int32_t>>(x.v[i]); });
}
template <int N>
MMEBM_HD Real<N> select(Block<int32_t, N> condition, Real<N> yes, Real<N> no) {
  return each<float, N>([&](int i) MMEBM_INLINE { return condition.v[i] ? yes.v[i] : no.v[i]; });
}
template <int N>
MMEBM_HD Real<N> select(Block<int32_t, N> condition, Real<N> yes, float no) {
  return select(condition, yes, Real<N>(no));
}
template <int N>
MMEBM_HD Real<N> at_most(Real<N> x, float top) {
  return each<float, N>([&](int i) MMEBM_INLINE { return smaller(broadcast(top), x.v[i]); });
}
template <int N>
MMEBM_HD Real<N> at_least(Real<N> x, float low) {
  return each<float, N>([&](int i) MMEBM_INLINE { return larger(broadcast(low), x.v[i]); });
}
template <int N>
MMEBM_HD Real<N> scaled_by_power(Real<N> p, Real<N> whole) {
#if defined(__AVX512F__)
  return each<float, N>([&](int i) MMEBM_INLINE -> Floats { return _mm512_scalef_ps(p.v[i], whole.v[i] - 0x1.8p23f); });
#else
  return p * bits_float((float_bits(whole) << 23) + 0x3f800000);
#endif
}

// `magnitude` >= 0 with the sign of x.
template <int N>
MMEBM_HD Real<N> with_sign_of(Real<N> x, float magnitude) {
  return bits_float((float_bits(x) & INT32_MIN) | float_bits(Real<N>(magnitude)));
}

template <int N>
MMEBM_HD Real<N> load_block(const float* from) {
  return each<float, N>([&](int i) MMEBM_INLINE { return load(from + i * kLanes); });
}
template <int N>
MMEBM_HD void store_block(float* to, Real<N> x) {
  for (int i = 0; i < N; ++i) store(to + i * kLanes, x.v[i]);
}

}  // namespace mmebm::cpu::MMEBM_ISA
