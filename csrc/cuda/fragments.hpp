// Which element of a matrix each register of a lane holds in mma.sync (PTX ISA, "Matrix Fragments for mma").
#pragma once

#include "common/real.hpp"

namespace mmebm::fragments {

struct Place {
  int row, column;
};

// m16n8k16, bf16. A [16, 16]: 8 elements a lane. Elements 2 r and 2 r + 1 are the low and high half of register r.
MMEBM_HD constexpr Place a16(int lane, int i) {
  return {lane / 4 + 8 * (i / 2 % 2), 2 * (lane % 4) + i % 2 + 8 * (i / 4)};
}
// B [16, 8]: 4 elements a lane, row is k.
MMEBM_HD constexpr Place b16(int lane, int i) { return {2 * (lane % 4) + i % 2 + 8 * (i / 2), lane / 4}; }

// Accumulator [16, 8]: 4 elements a lane. Two of them side by side are an A of m16n8k16 without a shuffle:
// element i of that A is element i % 4 of accumulator i / 4.
MMEBM_HD constexpr Place accumulator(int lane, int i) { return {lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2}; }

}  // namespace mmebm::fragments
