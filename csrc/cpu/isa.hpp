// Which of the instruction sets compiled in this machine has.
#pragma once

#include <string>
#include <vector>

namespace mmebm::cpu {

enum class Isa { base, avx2, avx512 };

std::vector<std::string> isas();  // usable here, best last

// One of isas(), or "auto": what the environment's MMEBM_ISA forces, else the best. Throws std::invalid_argument.
Isa choose_isa(const std::string& name);

}  // namespace mmebm::cpu
