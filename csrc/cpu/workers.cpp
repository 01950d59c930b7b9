#include "cpu/workers.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace mmebm::cpu {

namespace {

struct Arena {
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory;
  int64_t size = 0;
};

bool forked = false;

#if defined(__unix__) || defined(__APPLE__)
const int watching = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

float* scratch(Scratch which, int64_t floats) {
  thread_local Arena arenas[3];
  Arena& arena = arenas[static_cast<int>(which)];
  if (floats > arena.size) {
    constexpr int64_t kStep = 1024;
    const int64_t size = (floats + kStep - 1) / kStep * kStep;
    arena.memory.reset();
    arena.size = 0;
    arena.memory.reset(static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(size) * sizeof(float))));
    if (!arena.memory) throw std::bad_alloc();
    arena.size = size;
  }
  return arena.memory.get();
}

int team(int threads, int64_t pieces) {
  if (forked) return 1;
  return static_cast<int>(std::clamp<int64_t>(pieces, 1, std::max(threads, 1)));
}

int Workspace::thread() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace mmebm::cpu
