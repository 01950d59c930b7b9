// Memory and team sizes of the kernels' parallel regions. Compiled once, for any machine: code of the standard library
// must not be instantiated where wider instructions are allowed, or the linker may keep that copy for all.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mmebm::cpu {

enum class Scratch : int { shared = 0, own = 1, partial = 2 };

constexpr int64_t whole(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

// 64-byte aligned floats of the calling thread, kept and grown from call to call: fresh pages cost more than small nets.
float* scratch(Scratch which, int64_t floats);

// How many threads to use for so many independent pieces: 1 in a forked child, whose OpenMP pool did not survive.
int team(int threads, int64_t pieces);

// Floats for each thread of a team, taken before its region begins: nothing may be thrown inside.
class Workspace {
 public:
  Workspace(int workers, int64_t floats) : each_(whole(floats, 16)), all_(scratch(Scratch::own, workers * each_)) {}
  float* own() const { return all_ + thread() * each_; }

 private:
  static int thread();  // the caller's number in its team

  int64_t each_;
  float* all_;
};

// Of a clock that only goes forward.
double seconds_now();

}  // namespace mmebm::cpu
