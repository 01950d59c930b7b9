#include "cpu/isa.hpp"

#include <cstdlib>
#include <stdexcept>

namespace mmebm::cpu {

std::vector<std::string> isas() {
  std::vector<std::string> names{"base"};
#if defined(MMEBM_HAS_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) names.push_back("avx2");
#endif
#if defined(MMEBM_HAS_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    names.push_back("avx512");
#endif
  return names;
}

Isa choose_isa(const std::string& name) {
  static const std::vector<std::string> usable = isas();
  const char* const forced = name == "auto" ? std::getenv("MMEBM_ISA") : nullptr;
  std::string wanted = forced ? forced : name;
  if (wanted == "auto") wanted = usable.back();
  for (const std::string& have : usable) {
    if (have == wanted) return wanted == "base" ? Isa::base : wanted == "avx2" ? Isa::avx2 : Isa::avx512;
  }
  std::string list;
  for (const std::string& have : usable) list += " " + have;
  throw std::invalid_argument("isa: expected auto or one of" + list + ", got " + wanted);
}

}  // namespace mmebm::cpu
