// Memory and team sizes of the kernels' parallel regions. Compiled once, for any machine: code of the standard library
// must not be instantiated where wider instructions are allowed, or the linker may keep that copy for all.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mmebm::cpu {

enum class Scratch : int { shared = 0, own = 1, partial = 2 };

// 64-byte aligned floats of the calling thread, kept and grown from call to call: fresh pages cost more than small nets.
float* scratch(Scratch which, int64_t floats);

// How many threads to use for so many independent pieces: 1 in a forked child, whose OpenMP pool did not survive.
int team(int threads, int64_t pieces);

}  // namespace mmebm::cpu
