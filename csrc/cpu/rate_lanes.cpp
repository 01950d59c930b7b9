// What this machine can do at best, measured by the kernels' own register tile on operands that stay in L1.
#include <chrono>

#include "cpu/gemm.hpp"
#include "cpu/kernels.hpp"
#include "cpu/workers.hpp"

namespace mmebm::cpu::MMEBM_ISA {

double fma_rate(double seconds, int threads) {
  constexpr int64_t kTerms = 64;
  constexpr int64_t kChains = kMaxVectors * kLanes;
  const auto now = [] { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); };
  double total = 0.0;
  [[maybe_unused]] const int workers = team(threads, threads);
#pragma omp parallel num_threads(workers) if (workers > 1) reduction(+ : total)
  {
    float* w = scratch(Scratch::own, kTerms * kRows + (kTerms + kRows) * kChains);
    float* x = w + kTerms * kRows;
    float* y = x + kTerms * kChains;
    for (int64_t i = 0; i < kTerms * (kRows + kChains); ++i) w[i] = 0.001f * static_cast<float>(i % 7);
    int64_t done = 0;
    const double start = now();
    double spent = 0.0;
    do {
      for (int i = 0; i < 1000; ++i) panel<kMaxVectors>(w, kTerms, x, nullptr, nullptr, y);
      done += 1000;
      spent = now() - start;
    } while (spent < seconds);
    total += 2.0 * static_cast<double>(kRows * kTerms * kChains * done) / spent;
  }
  return total;
}

}  // namespace mmebm::cpu::MMEBM_ISA
