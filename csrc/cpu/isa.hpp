// Which of the instruction sets compiled in this machine has.
#pragma once

#include <string>
#include <vector>

namespace mmebm::cpu {

enum class Isa { base, avx2, avx512 };

std::vector<std::string> isas();            // usable here, best last
Isa choose_isa(const std::string& name);    // "auto" or one of isas(); throws std::invalid_argument

}  // namespace mmebm::cpu
