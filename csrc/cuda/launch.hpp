// Launches a kernel's body: a type with
//   Call                a struct of pointers and numbers, handed over whole
//   kThreads            of a block
//   kMeets              whether its threads exchange anything
//   run(call, shared)   what each thread does; `shared` is the block's memory
// In a build with MMEBM_EMULATED the emulator of simt.hpp runs it, block after block: that build serves tests.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/kernels.hpp"
#include "cuda/simt.hpp"

namespace mmebm::cuda {

MMEBM_HD int64_t blocks_for(int64_t items, int64_t each) { return (items + each - 1) / each; }

#if defined(__CUDACC__)

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // or the next good launch would be told of it
  throw std::runtime_error(std::string(what) + ": CUDA error " + std::to_string(status) + ", " + cudaGetErrorString(status));
}

template <class Body>
__global__ void __launch_bounds__(Body::kThreads, 1) kernel(const __grid_constant__ typename Body::Call call) {
  extern __shared__ __align__(1024) char shared[];
  Body::run(call, shared);
}

template <class Body>
void allow(int shared) {
  constexpr int kFree = 48 << 10;  // bytes of shared memory that a kernel has without asking
  if (shared <= kFree) return;
  check(cudaFuncSetAttribute(kernel<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "shared memory");
}

template <class Body>
void launch(const typename Body::Call& call, int64_t blocks, int shared, Stream stream) {
  static_assert(!Body::kMeets || Body::kThreads % 32 == 0);
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw std::runtime_error("a launch of " + std::to_string(blocks) + " blocks is too large");
  allow<Body>(shared);
  kernel<Body><<<static_cast<unsigned>(blocks), Body::kThreads, static_cast<size_t>(shared),
                 reinterpret_cast<cudaStream_t>(stream)>>>(call);
  check(cudaGetLastError(), "launch");
}

// Blocks that run at once on the current device: as many as a kernel needs whose blocks take tile after tile.
template <class Body>
int64_t resident(int shared) {
  int device = 0, processors = 0, each = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device");
  allow<Body>(shared);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel<Body>, Body::kThreads, static_cast<size_t>(shared)),
        "occupancy");
  return int64_t{processors} * (each > 0 ? each : 1);
}

#else

template <class Body>
int64_t resident(int) {
  return 2;
}

template <class Body>
void launch(const typename Body::Call& call, int64_t blocks, int shared, Stream) {
  constexpr int64_t kAlign = 1024;
  std::vector<char> memory(static_cast<size_t>(shared + kAlign));
  char* const own = memory.data() + (kAlign - reinterpret_cast<intptr_t>(memory.data()) % kAlign) % kAlign;
  simt::here.blocks = blocks;
  simt::here.memory = own;
  for (int64_t b = 0; b < blocks; ++b) {
    simt::here.block = b;
    std::fill(memory.begin(), memory.end(), '\xff');  // NaN, until it is written
    if constexpr (Body::kMeets) {
      simt::Block(Body::kThreads, [&] { Body::run(call, own); }).run();
    } else {
      for (simt::here.thread = 0; simt::here.thread < Body::kThreads; ++simt::here.thread) Body::run(call, own);
    }
  }
}

#endif

}  // namespace mmebm::cuda
