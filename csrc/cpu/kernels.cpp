#include "cpu/kernels.hpp"

namespace mmebm::cpu {

const Kernels& kernels(Isa isa) {
  switch (isa) {
#if defined(MMEBM_HAS_AVX512)
    case Isa::avx512:
      return avx512::kernels;
#endif
#if defined(MMEBM_HAS_AVX2)
    case Isa::avx2:
      return avx2::kernels;
#endif
    default:
      return base::kernels;
  }
}

}  // namespace mmebm::cpu
