// A flat list of exports. Pointers travel as integers; kernels/native.py hands them over, kernels/ops validates.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "common/mutant.hpp"
#include "common/normal.hpp"
#include "common/philox.hpp"
#include "cpu/kernels.hpp"

namespace py = pybind11;
using namespace mmebm;

namespace {

using Address = uintptr_t;  // 0 for an output that is not asked for

template <class T = float>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

using LayerArgs = std::tuple<Address, Address, int64_t, int64_t>;                     // weight, bias, out, in
using NetArgs = std::tuple<std::vector<LayerArgs>, int, float, float>;                // layers, activation, slope, bound
using StreamArgs = std::tuple<int64_t, int64_t, int64_t>;                             // seed, offset, first chain
using HoldArgs = std::tuple<int, Address, float, float, float>;                       // reference, scale, clip, lower, upper
using KeptArgs = std::tuple<int64_t, Address, Address>;                               // every, states, energies
using StatisticsArgs = std::array<Address, 5>;  // mean energy, |grad|, displacement, acceptance, work

cpu::Net network(const NetArgs& args) {
  const auto& [layers, activation, slope, bound] = args;
  if (layers.size() > cpu::kMaxLayers) {
    throw std::invalid_argument("weights: expected at most " + std::to_string(cpu::kMaxLayers) + " linear layers, got " +
                                std::to_string(layers.size()));
  }
  cpu::Net net{};
  for (const auto& [weight, bias, out, in] : layers) {
    net.layers[net.count++] = {pointer<const float>(weight), pointer<const float>(bias), in, out};
  }
  net.activation = static_cast<Activation>(activation);
  net.slope = slope;
  net.bound = bound;
  return net;
}

cpu::Stream stream(const StreamArgs& args) {
  const auto& [seed, offset, chain] = args;
  return {static_cast<uint64_t>(seed), static_cast<uint64_t>(offset), static_cast<uint64_t>(chain)};
}

cpu::Hold hold(const HoldArgs& args) {
  const auto& [reference, scale, clip, lower, upper] = args;
  return {static_cast<Reference>(reference), pointer<const float>(scale), clip, lower, upper};
}

auto bind_philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  const Words x = philox4x32({c0, c1, c2, c3}, k0, k1);
  return std::tuple{x.x0, x.x1, x.x2, x.x3};
}

// out uint32 [steps, rows, calls(dim), 4], one counter at a time: what the lanes are tested against.
void bind_words(Address out, int64_t steps, int64_t rows, int64_t dim, int64_t seed, int64_t offset, int64_t chain,
                uint32_t purpose) {
  uint32_t* to = pointer<uint32_t>(out);
  for (int64_t s = 0; s < steps; ++s) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t q = 0; q < calls(dim); ++q, to += 4) {
        const Words x = words(static_cast<uint64_t>(seed), (static_cast<uint64_t>(chain) + static_cast<uint64_t>(i)) & kMask48,
                              (static_cast<uint64_t>(offset) + static_cast<uint64_t>(s)) & kMask48, purpose, static_cast<uint32_t>(q));
        to[0] = x.x0;
        to[1] = x.x1;
        to[2] = x.x2;
        to[3] = x.x3;
      }
    }
  }
}

auto bind_normal_pair(uint32_t x0, uint32_t x1) {
  const auto z = normal_pair(x0, x1);
  return std::tuple{z.a, z.b};
}

float bind_laplace_unit(uint32_t x) { return laplace_unit(x); }

void bind_draw(Address out, Address scale, int64_t steps, int64_t rows, int64_t dim, int64_t seed, int64_t offset,
               int64_t chain, int law, uint32_t purpose, int threads, const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  py::gil_scoped_release release;
  lanes.draw({pointer(out), pointer<const float>(scale), steps, rows, dim, stream({seed, offset, chain}), purpose,
              static_cast<Law>(law)},
             threads);
}

void bind_energy(Address z, int64_t rows, const NetArgs& net, Address energy, Address grad, int threads,
                 const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  const cpu::EnergyCall call{pointer<const float>(z), rows, network(net), pointer(energy), pointer(grad)};
  py::gil_scoped_release release;
  lanes.energy(call, threads);
}

void bind_energy_backward(Address g, Address z, int64_t rows, const NetArgs& net, Address dz,
                          const std::vector<std::tuple<Address, Address>>& parameters, int threads, const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  cpu::EnergyBackwardCall call{pointer<const float>(g), pointer<const float>(z), rows, network(net), pointer(dz), {}, {}};
  for (size_t l = 0; l < parameters.size(); ++l) {
    call.d_weight[l] = pointer(std::get<0>(parameters[l]));
    call.d_bias[l] = pointer(std::get<1>(parameters[l]));
  }
  py::gil_scoped_release release;
  lanes.energy_backward(call, threads);
}

bool finite(const float* x, int64_t n) {
  constexpr uint32_t kExponent = 0x7f800000;
  bool lost = false;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    lost |= (bits & kExponent) == kExponent;
  }
  return !lost;
}

// Whether every state it ends in is finite.
bool bind_chain(bool adjusted, Address z, int64_t rows, int64_t steps, const NetArgs& net, Address coefficients,
                const StreamArgs& rng, const HoldArgs& holding, Address out, const KeptArgs& kept,
                const StatisticsArgs& statistics, int threads, const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  const auto& [every, states, energies] = kept;
  const auto& [mean_energy, grad_norm, displacement, acceptance, work] = statistics;
  const cpu::ChainCall call{pointer<const float>(z), rows, steps, network(net), pointer<const float>(coefficients),
                            stream(rng), hold(holding), every, pointer(out), pointer(states), pointer(energies),
                            pointer(mean_energy), pointer(grad_norm), pointer(displacement), pointer(acceptance), pointer(work)};
  py::gil_scoped_release release;
  (adjusted ? lanes.mala : lanes.langevin)(call, threads);
  return finite(call.out, rows * call.net.layers[0].in);
}

void bind_langevin_update(Address z, Address grad, int64_t rows, int64_t dim, float a, float b, float t,
                          const StreamArgs& rng, const HoldArgs& holding, Address out, int threads, const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  const cpu::UpdateCall call{pointer<const float>(z), pointer<const float>(grad), rows, dim, a, b, t, stream(rng),
                             hold(holding), pointer(out)};
  py::gil_scoped_release release;
  lanes.langevin_update(call, threads);
}

using ExpertsArgs = std::tuple<Address, Address, Address, int64_t, int64_t, int64_t, int>;  // mu, logvar, present, M, B, d, prior

Experts experts(const ExpertsArgs& args) {
  const auto& [mu, logvar, present, count, rows, dim, prior] = args;
  return {pointer<const float>(mu), pointer<const float>(logvar), pointer<const int64_t>(present), count, rows, dim,
          static_cast<Prior>(prior)};
}

void bind_product(const ExpertsArgs& in, Address mu, Address logvar, int threads, const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  py::gil_scoped_release release;
  lanes.product({experts(in), pointer(mu), pointer(logvar)}, threads);
}

void bind_product_backward(const ExpertsArgs& in, Address g_mu, Address g_logvar, Address d_mu, Address d_logvar, int threads,
                           const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  py::gil_scoped_release release;
  lanes.product_backward({experts(in), pointer<const float>(g_mu), pointer<const float>(g_logvar), pointer(d_mu),
                          pointer(d_logvar)},
                         threads);
}

void bind_subsets(const ExpertsArgs& in, Address mu, Address logvar, Address kl, int threads, const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  py::gil_scoped_release release;
  lanes.subsets({experts(in), pointer(mu), pointer(logvar), pointer(kl)}, threads);
}

void bind_subsets_backward(const ExpertsArgs& in, Address g_mu, Address g_logvar, Address g_kl, Address d_mu, Address d_logvar,
                           int threads, const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  py::gil_scoped_release release;
  lanes.subsets_backward({experts(in), pointer<const float>(g_mu), pointer<const float>(g_logvar), pointer<const float>(g_kl),
                          pointer(d_mu), pointer(d_logvar)},
                         threads);
}

// z, loc, scale, present, lead, rows, dim, experts, law
using MixtureArgs = std::tuple<Address, Address, Address, Address, int64_t, int64_t, int64_t, int64_t, int>;

MixtureCall mixture_call(const MixtureArgs& args, Address out) {
  const auto& [z, loc, scale, present, lead, rows, dim, count, law] = args;
  return {pointer<const float>(z), pointer<const float>(loc), pointer<const float>(scale), pointer<const int64_t>(present),
          lead, rows, dim, count, static_cast<Law>(law), pointer(out)};
}

void bind_mixture(const MixtureArgs& in, Address out, int threads, const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  py::gil_scoped_release release;
  lanes.mixture(mixture_call(in, out), threads);
}

void bind_mixture_backward(const MixtureArgs& in, Address g, Address dz, Address d_loc, Address d_scale, int threads,
                           const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  py::gil_scoped_release release;
  lanes.mixture_backward({mixture_call(in, 0), pointer<const float>(g), pointer(dz), pointer(d_loc), pointer(d_scale)}, threads);
}

double bind_fma_rate(double seconds, int threads, const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  py::gil_scoped_release release;
  return lanes.fma_rate(seconds, threads);
}

double bind_activation_rate(int activation, double seconds, const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  py::gil_scoped_release release;
  return lanes.activation_rate(static_cast<Activation>(activation), seconds);
}

double bind_normal_rate(double seconds, const std::string& isa) {
  const cpu::Kernels& lanes = cpu::kernels(cpu::choose_isa(isa));
  py::gil_scoped_release release;
  return lanes.normal_rate(seconds);
}

#if defined(MMEBM_MUTANTS)
using MutantEntry = std::tuple<int, std::string, std::string>;  // number, name, sentence

std::vector<MutantEntry> mutants() {
#define MMEBM_MUTANT_ENTRY(number, name, sentence) {number, #name, sentence},
  return {MMEBM_MUTANT_LIST(MMEBM_MUTANT_ENTRY)};
#undef MMEBM_MUTANT_ENTRY
}

// For every call from now on; 0 for none.
void choose_mutant(int number) {
  for (const MutantEntry& entry : mutants()) {
    if (number == 0 || number == std::get<0>(entry)) {
      chosen_mutant = static_cast<Mutant>(number);
      return;
    }
  }
  throw std::invalid_argument("number: expected 0 or that of a mutant, got " + std::to_string(number));
}
#endif

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
  m.def("laplace_unit", &bind_laplace_unit, py::arg("x"));
  m.def("draw", &bind_draw, py::arg("out"), py::arg("scale"), py::arg("steps"), py::arg("rows"), py::arg("dim"), py::arg("seed"), py::arg("offset"), py::arg("chain"), py::arg("law"), py::arg("purpose"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("energy", &bind_energy, py::arg("z"), py::arg("rows"), py::arg("net"), py::arg("energy"), py::arg("grad"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("energy_backward", &bind_energy_backward, py::arg("g"), py::arg("z"), py::arg("rows"), py::arg("net"), py::arg("dz"), py::arg("parameters"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("chain", &bind_chain, py::arg("adjusted"), py::arg("z"), py::arg("rows"), py::arg("steps"), py::arg("net"), py::arg("coefficients"), py::arg("rng"), py::arg("hold"), py::arg("out"), py::arg("kept"), py::arg("statistics"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("langevin_update", &bind_langevin_update, py::arg("z"), py::arg("grad"), py::arg("rows"), py::arg("dim"), py::arg("a"), py::arg("b"), py::arg("t"), py::arg("rng"), py::arg("hold"), py::arg("out"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("product", &bind_product, py::arg("experts"), py::arg("mu"), py::arg("logvar"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("product_backward", &bind_product_backward, py::arg("experts"), py::arg("g_mu"), py::arg("g_logvar"), py::arg("d_mu"), py::arg("d_logvar"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("subsets", &bind_subsets, py::arg("experts"), py::arg("mu"), py::arg("logvar"), py::arg("kl"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("subsets_backward", &bind_subsets_backward, py::arg("experts"), py::arg("g_mu"), py::arg("g_logvar"), py::arg("g_kl"), py::arg("d_mu"), py::arg("d_logvar"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("mixture", &bind_mixture, py::arg("mixture"), py::arg("out"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("mixture_backward", &bind_mixture_backward, py::arg("mixture"), py::arg("g"), py::arg("dz"), py::arg("d_loc"), py::arg("d_scale"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("fma_rate", &bind_fma_rate, py::arg("seconds"), py::arg("threads"), py::arg("isa") = "auto");
  m.def("activation_rate", &bind_activation_rate, py::arg("activation"), py::arg("seconds"), py::arg("isa") = "auto");
  m.def("normal_rate", &bind_normal_rate, py::arg("seconds"), py::arg("isa") = "auto");
#if defined(MMEBM_MUTANTS)
  m.def("mutants", &mutants);
  m.def("choose_mutant", &choose_mutant, py::arg("number"));
#endif
  m.def("build_info", &build_info);
}
