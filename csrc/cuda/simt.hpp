// What a kernel's body asks of the machine: on a GPU its instructions, on the host an emulator that runs one block,
// each thread as a fiber. Emulation cannot see memory ordering, asynchronous proxies and their fences, bank conflicts or
// true races: a fiber runs alone until its next meeting point. Sums inside an mma are in fp32, in the order of k.
#pragma once

#include <cstdint>

#include "common/real.hpp"

#if !defined(__CUDACC__)
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>
#endif

namespace mmebm::simt {

// Two floats rounded to nearest even, `low` in the low half; NaN stays NaN.
MMEBM_HD uint32_t pack_bf16(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
#else
  const auto rounded = [](float x) -> uint32_t {
    const uint32_t bits = static_cast<uint32_t>(float_bits(x));
    return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  };
  return rounded(high) << 16 | rounded(low);
#endif
}

// Where the byte at `plain` of a matrix goes whose rows of `span` bytes, 64 or 128, are swizzled; it starts at 1024 bytes.
MMEBM_HD int swizzled(int plain, int span) { return plain ^ (plain >> 7 & (span / 16 - 1)) << 4; }

#if defined(__CUDACC__)

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int64_t block() { return blockIdx.x; }
__device__ __forceinline__ int64_t blocks() { return gridDim.x; }
__device__ __forceinline__ void barrier() { __syncthreads(); }
__device__ __forceinline__ float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Operands of mma_bf16 from a block's memory, rows of `stride` elements, all rows starting at 16 bytes. A [16, 16]; B
// [16, 8] whose columns are the rows in memory; and one whose rows are.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void load_a(const uint16_t* from, int stride, uint32_t (&a)[4]) {
  const int lane = thread() % 32;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(from + lane % 16 * stride + lane / 16 * 8))
               : "memory");
}

__device__ __forceinline__ void load_b(const uint16_t* from, int stride, uint32_t (&b)[2]) {
  const int lane = thread() % 16;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(b[0]), "=r"(b[1])
               : "r"(shared_address(from + lane % 8 * stride + lane / 8 * 8))
               : "memory");
}

__device__ __forceinline__ void load_b_rows(const uint16_t* from, int stride, uint32_t (&b)[2]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(b[0]), "=r"(b[1])
               : "r"(shared_address(from + thread() % 16 * stride))
               : "memory");
}

// Two B at once, whose columns are 16 rows in memory; or whose rows are 16 elements long.
__device__ __forceinline__ void load_b_pair(const uint16_t* from, int stride, uint32_t (&one)[2], uint32_t (&two)[2]) {
  const int lane = thread() % 32;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(one[0]), "=r"(one[1]), "=r"(two[0]), "=r"(two[1])
               : "r"(shared_address(from + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8))
               : "memory");
}

__device__ __forceinline__ void load_b_rows_pair(const uint16_t* from, int stride, uint32_t (&one)[2], uint32_t (&two)[2]) {
  const int lane = thread() % 32;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(one[0]), "=r"(one[1]), "=r"(two[0]), "=r"(two[1])
               : "r"(shared_address(from + lane % 16 * stride + lane / 16 * 8))
               : "memory");
}

// 16 or 8 bytes of a block's memory at once.
__device__ __forceinline__ void store4(uint32_t* to, const uint32_t (&x)[4]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(x[0], x[1], x[2], x[3]);
}
__device__ __forceinline__ void load4(const uint32_t* from, uint32_t (&x)[4]) {
  const uint4 v = *reinterpret_cast<const uint4*>(from);
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
__device__ __forceinline__ void store2(uint32_t* to, uint32_t x, uint32_t y) { *reinterpret_cast<uint2*>(to) = make_uint2(x, y); }
__device__ __forceinline__ void load2(const uint32_t* from, uint32_t& x, uint32_t& y) {
  const uint2 v = *reinterpret_cast<const uint2*>(from);
  x = v.x, y = v.y;
}

// c = A B, or c += A B, for four warps together, each with its own 16 rows of A in registers; B [16, 8 n] is in the block's memory,
// where `descriptor` says, its rows being there as rows or, else, its columns. Between begin and end c and A rest.
using Place = uint32_t;  // of 16 bytes in a block's memory
__device__ __forceinline__ Place place(const char* start) { return (shared_address(start) & 0x3ffffu) >> 4; }

__device__ __forceinline__ uint64_t descriptor(Place start, int leading, int stride, int swizzle) {
  const uint32_t high = (swizzle == 128 ? 1u : 2u) << 30 | static_cast<uint32_t>(stride / 16);
  const uint32_t low = start + (static_cast<uint32_t>(leading / 16) << 16);  // an addition carries the place along
  return static_cast<uint64_t>(high) << 32 | low;
}

// What was written is seen by wgmma, after a barrier.
__device__ __forceinline__ void publish() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// The compiler does not know that products end at wgmma_end: accumulators are pinned before and after, operands before.
__device__ __forceinline__ void pin(float& x) { asm volatile("" : "+f"(x)::"memory"); }
__device__ __forceinline__ void pin(uint32_t x) { asm volatile("" ::"r"(x) : "memory"); }

__device__ __forceinline__ void wgmma_begin() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void wgmma_end() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}

template <bool rows, bool add>
__device__ __forceinline__ void wgmma(float (&c)[4][4], const uint32_t (&a)[4], uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %22, 0; wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, {%16, %17, %18, %19}, %20, p, 1, 1, %21; }"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(rows), "n"(add));
#else
  __trap();
#endif
}

template <bool rows, bool add>
__device__ __forceinline__ void wgmma(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %38, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, %37; }"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(rows), "n"(add));
#else
  __trap();
#endif
}

#define MMEBM_BODY __device__ __forceinline__
#define MMEBM_UNROLL _Pragma("unroll")  // arrays are registers only where every index is a constant

#else

#define MMEBM_BODY inline
#define MMEBM_UNROLL

// The thread that runs now.
struct Here {
  int thread = 0;
  int64_t block = 0, blocks = 1;
  char* memory = nullptr;  // the block's
};
inline Here here;

class Block {
 public:
  Block(int threads, std::function<void()> body) : fibers_(threads), traffic_(threads), body_(std::move(body)) {
    if (threads < 32 || threads % 32 != 0) throw std::invalid_argument("threads: expected a multiple of 32");
  }

  void run() {
    current = this;
    for (Fiber& fiber : fibers_) {
      fiber.stack = std::make_unique<char[]>(kStack);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = &home_;
      makecontext(&fiber.context, &Block::enter, 0);
    }
    for (bool left = true; left;) {
      left = false;
      bool moved = false;
      for (here.thread = 0; here.thread < size(); ++here.thread) {
        Fiber& fiber = fibers_[here.thread];
        if (fiber.done) continue;
        left = true;
        if (!met(fiber)) continue;
        moved = true;
        swapcontext(&home_, &fiber.context);
      }
      if (left && !moved) {
        current = nullptr;
        throw std::logic_error("threads wait at a meeting point that others left out");
      }
    }
    current = nullptr;
  }

  // Waits until all of `group` consecutive threads (a warp or the block) have come as often.
  void meet(int group) {
    Fiber& fiber = fibers_[here.thread];
    fiber.group = group;
    ++(group == 32 ? fiber.in_warp : fiber.in_block);
    swapcontext(&fiber.context, &home_);
  }

  using Operands = std::array<uint32_t, 6>;
  // What each lane of the warp hands in; all lanes have read it before the next exchange.
  template <class Read>
  auto exchange(const Operands& mine, Read read) {
    traffic_[here.thread] = mine;
    meet(32);
    const auto out = read(&traffic_[here.thread / 32 * 32]);
    meet(32);
    return out;
  }

  int size() const { return static_cast<int>(fibers_.size()); }
  static inline Block* current = nullptr;

 private:
  static constexpr int kStack = 1 << 16;
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    int group = 1, in_warp = 0, in_block = 0;
    bool done = false;
  };

  bool met(const Fiber& fiber) const {
    if (fiber.group == 1) return true;
    const int first = fiber.group == 32 ? here.thread / 32 * 32 : 0;
    for (int i = first; i < first + fiber.group; ++i) {
      if (fiber.group == 32 ? fibers_[i].in_warp < fiber.in_warp : fibers_[i].in_block < fiber.in_block) return false;
    }
    return true;
  }

  static void enter() {
    Block& block = *current;
    block.body_();
    block.fibers_[here.thread].done = true;
  }

  std::vector<Fiber> fibers_;
  std::vector<Operands> traffic_;
  std::function<void()> body_;
  ucontext_t home_{};
};

inline int thread() { return here.thread; }
inline int64_t block() { return here.block; }
inline int64_t blocks() { return here.blocks; }
inline void barrier() { Block::current->meet(Block::current->size()); }

inline float shuffle_xor(float x, int mask) {
  const int other = thread() % 32 ^ mask;
  return Block::current->exchange({static_cast<uint32_t>(float_bits(x))}, [&](const Block::Operands* warp) {
    return bits_float(static_cast<int32_t>(warp[other][0]));
  });
}

// Written from the ISA's group and thread numbers, not from fragments.hpp, so that a test of one tests the other.
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const int lane = thread() % 32;
  const auto half = [](uint32_t word, int high) {
    return bits_float(static_cast<int32_t>(high ? word & 0xffff0000u : word << 16));
  };
  const auto out = Block::current->exchange({a[0], a[1], a[2], a[3], b[0], b[1]}, [&](const Block::Operands* warp) {
    std::array<float, 4> sum{c[0], c[1], c[2], c[3]};
    for (int i = 0; i < 4; ++i) {
      const int upper = i >= 2, n = lane % 4 * 2 + (i & 1);
      for (int k = 0; k < 16; ++k) {
        const int pair = k % 8 / 2, later = k >= 8;
        const float x = half(warp[lane / 4 * 4 + pair][2 * later + upper], k & 1);
        sum[i] += x * half(warp[n * 4 + pair][4 + later], k & 1);
      }
    }
    return sum;
  });
  for (int i = 0; i < 4; ++i) c[i] = out[i];
}

inline void load_a(const uint16_t* from, int stride, uint32_t (&a)[4]) {
  const int lane = thread() % 32;
  for (int r = 0; r < 4; ++r) {
    const uint16_t* p = from + (lane / 4 + 8 * (r % 2)) * stride + 8 * (r / 2) + 2 * (lane % 4);
    a[r] = static_cast<uint32_t>(p[1]) << 16 | p[0];
  }
}

inline void load_b(const uint16_t* from, int stride, uint32_t (&b)[2]) {
  const int lane = thread() % 32;
  for (int r = 0; r < 2; ++r) {
    const uint16_t* p = from + lane / 4 * stride + 8 * r + 2 * (lane % 4);
    b[r] = static_cast<uint32_t>(p[1]) << 16 | p[0];
  }
}

inline void load_b_rows(const uint16_t* from, int stride, uint32_t (&b)[2]) {
  const int lane = thread() % 32;
  for (int r = 0; r < 2; ++r) {
    const uint16_t* p = from + (8 * r + 2 * (lane % 4)) * stride + lane / 4;
    b[r] = static_cast<uint32_t>(p[stride]) << 16 | p[0];
  }
}

inline void load_b_pair(const uint16_t* from, int stride, uint32_t (&one)[2], uint32_t (&two)[2]) {
  load_b(from, stride, one);
  load_b(from + 8 * stride, stride, two);
}

inline void load_b_rows_pair(const uint16_t* from, int stride, uint32_t (&one)[2], uint32_t (&two)[2]) {
  load_b_rows(from, stride, one);
  load_b_rows(from + 8, stride, two);
}

inline void store4(uint32_t* to, const uint32_t (&x)[4]) { std::copy(x, x + 4, to); }
inline void load4(const uint32_t* from, uint32_t (&x)[4]) { std::copy(from, from + 4, x); }
inline void store2(uint32_t* to, uint32_t x, uint32_t y) { to[0] = x, to[1] = y; }
inline void load2(const uint32_t* from, uint32_t& x, uint32_t& y) { x = from[0], y = from[1]; }

// Decodes the descriptor by the ISA's canonical layouts, whoever wrote the matrix.
using Place = uint32_t;
inline Place place(const char* start) { return static_cast<Place>(start - here.memory) >> 4; }
inline uint64_t descriptor(Place start, int leading, int stride, int swizzle) {
  const uint64_t layout = swizzle == 128 ? 1 : 2;
  return layout << 62 | static_cast<uint64_t>(stride / 16) << 32 | static_cast<uint64_t>(leading / 16) << 16 | start;
}

inline void publish() {}
inline void pin(float&) {}
inline void pin(uint32_t) {}
inline void wgmma_begin() {}
inline void wgmma_end() {}

template <bool rows, bool add, size_t tiles>
inline void wgmma(float (&c)[tiles][4], const uint32_t (&a)[4], uint64_t b) {
  const int lane = thread() % 32, span = b >> 62 == 1 ? 128 : 64;
  const int start = static_cast<int>(b & 0x3fff) << 4, leading = static_cast<int>(b >> 16 & 0x3fff) << 4;
  const int stride = static_cast<int>(b >> 32 & 0x3fff) << 4;
  const auto element = [&](int k, int n) {
    const int plain = rows ? start + k / 8 * stride + k % 8 * span + n / (span / 2) * leading + n % (span / 2) * 2
                           : start + n / 8 * stride + n % 8 * span + 2 * k;
    const char* const at = here.memory + (plain ^ (plain >> 7 & (span == 128 ? 7 : 3)) << 4);
    return bits_float(static_cast<int32_t>(*reinterpret_cast<const uint16_t*>(at)) << 16);
  };
  const auto sums = Block::current->exchange({a[0], a[1], a[2], a[3]}, [&](const Block::Operands* warp) {
    std::array<std::array<float, 4>, tiles> sum;
    for (size_t t = 0; t < tiles; ++t) {
      for (int i = 0; i < 4; ++i) {
        sum[t][i] = add ? c[t][i] : 0.0f;
        for (int k = 0; k < 16; ++k) {
          const uint32_t word = warp[lane / 4 * 4 + k % 8 / 2][2 * (k / 8) + i / 2];
          const float x = bits_float(static_cast<int32_t>(k & 1 ? word & 0xffff0000u : word << 16));
          sum[t][i] += x * element(k, static_cast<int>(8 * t) + lane % 4 * 2 + (i & 1));
        }
      }
    }
    return sum;
  });
  for (size_t t = 0; t < tiles; ++t) std::copy(sums[t].begin(), sums[t].end(), c[t]);
}

#endif

}  // namespace mmebm::simt
