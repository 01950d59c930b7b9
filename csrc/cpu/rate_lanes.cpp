// What this machine can do at best: the kernels' own stages on operands that stay in L1.
#include <cstring>

#include "cpu/network.hpp"
#include "cpu/noise.hpp"

namespace mmebm::cpu::MMEBM_ISA {

namespace {

// Calls of `work` per second, over at least `seconds`.
template <class Work>
double rate(double seconds, Work work) {
  const double start = seconds_now();
  double spent = 0.0;
  int64_t done = 0;
  do {
    for (int i = 0; i < 1000; ++i) work(i);
    done += 1000;
    spent = seconds_now() - start;
  } while (spent < seconds);
  return static_cast<double>(done) / spent;
}

}  // namespace

double fma_rate(double seconds, int threads) {
  constexpr int64_t kTerms = 64;
  constexpr int64_t kChains = kMaxVectors * kLanes;
  double total = 0.0;
  const int workers = team(threads, threads);
  const Workspace workspace(workers, kTerms * kRows + (kTerms + kRows) * kChains);
#pragma omp parallel num_threads(workers) if (workers > 1) reduction(+ : total)
  {
    float* w = workspace.own();
    float* x = w + kTerms * kRows;
    float* y = x + kTerms * kChains;
    for (int64_t i = 0; i < kTerms * (kRows + kChains); ++i) w[i] = 0.001f * static_cast<float>(i % 7);
    const double calls = rate(seconds, [&](int) { panel<kMaxVectors>(w, kTerms, x, nullptr, nullptr, y); });
    total += 2.0 * static_cast<double>(kRows * kTerms * kChains) * calls;
  }
  return total;
}

double activation_rate(Activation kind, double seconds) {
  constexpr int64_t kFloats = 8 * kPassBlock * kLanes;
  float* a = scratch(Scratch::own, 3 * kFloats);
  float* fresh = a + 2 * kFloats;
  for (int64_t i = 0; i < kFloats; ++i) fresh[i] = 0.03f * static_cast<float>(i % 200 - 100);
  const ActivationPass pass = passes(kind).both;
  return static_cast<double>(kFloats) * rate(seconds, [&](int i) {
           if (i % 8 == 0) std::memcpy(a, fresh, kFloats * sizeof(float));  // before its values shrink to nothing
           pass(a, a + kFloats, kFloats, 0.1f);
         });
}

double normal_rate(double seconds) {
  constexpr int kChains = kMaxVectors * kLanes;
  uint64_t chain[kChains], step[kChains] = {};
  for (int l = 0; l < kChains; ++l) chain[l] = static_cast<uint64_t>(l);
  Noise<kMaxVectors> noise;
  noise.start(1, chain, step);
  Real<kMaxVectors> x[4];
  return 4.0 * kChains * rate(seconds, [&](int i) {
           noise.normals(0, static_cast<uint32_t>(i), x);
           asm volatile("" : : "r"(x) : "memory");  // they are used
         });
}

}  // namespace mmebm::cpu::MMEBM_ISA
