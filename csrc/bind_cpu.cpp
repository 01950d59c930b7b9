// A flat list of exports. Pointers travel as integers; kernels/native.py hands them over, kernels/ops.py validates.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "common/normal.hpp"
#include "common/philox.hpp"
#include "cpu/draw.hpp"
#include "cpu/isa.hpp"

namespace py = pybind11;
using namespace mmebm;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

cpu::DrawStream stream(int64_t seed, int64_t offset, int64_t chain, uint32_t purpose) {
  return {static_cast<uint64_t>(seed), static_cast<uint64_t>(offset), static_cast<uint64_t>(chain), purpose};
}

auto bind_philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  const Words x = philox4x32({c0, c1, c2, c3}, k0, k1);
  return std::tuple{x.x0, x.x1, x.x2, x.x3};
}

void bind_words(uintptr_t out, int64_t steps, int64_t rows, int64_t dim, int64_t seed, int64_t offset, int64_t chain,
                uint32_t purpose) {
  cpu::draw_words(pointer<uint32_t>(out), {steps, rows, dim}, stream(seed, offset, chain, purpose));
}

auto bind_normal_pair(uint32_t x0, uint32_t x1) {
  const Pair z = normal_pair(x0, x1);
  return std::tuple{z.a, z.b};
}

void bind_draw(uintptr_t out, uintptr_t scale, int64_t steps, int64_t rows, int64_t dim, int64_t seed, int64_t offset,
               int64_t chain, int law, uint32_t purpose, int threads, const std::string& isa) {
  const cpu::Isa chosen = cpu::choose_isa(isa);
  py::gil_scoped_release release;
  cpu::draw(pointer<float>(out), pointer<const float>(scale), {steps, rows, dim}, stream(seed, offset, chain, purpose),
            static_cast<cpu::Law>(law), threads, chosen);
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = MMEBM_COMPILER;
  info["flags"] = MMEBM_CXX_FLAGS;
#if defined(_OPENMP)
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
  info["isas"] = cpu::isas();
  return info;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.def("philox4x32", &bind_philox4x32, py::arg("c0"), py::arg("c1"), py::arg("c2"), py::arg("c3"), py::arg("k0"), py::arg("k1"));
  m.def("words", &bind_words, py::arg("out"), py::arg("steps"), py::arg("rows"), py::arg("dim"), py::arg("seed"), py::arg("offset"), py::arg("chain"), py::arg("purpose"));
  m.def("normal_pair", &bind_normal_pair, py::arg("x0"), py::arg("x1"));
  m.def("laplace_unit", &laplace_unit, py::arg("x"));
  m.def("draw", &bind_draw, py::arg("out"), py::arg("scale"), py::arg("steps"), py::arg("rows"), py::arg("dim"), py::arg("seed"), py::arg("offset"), py::arg("chain"), py::arg("law"), py::arg("purpose"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("build_info", &build_info);
}
