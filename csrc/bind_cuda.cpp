// A flat list of exports. Pointers and the stream travel as integers; kernels/cuda hands them over, kernels/ops
// validates. The module imports on a machine with no driver: what needs one raises.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/kernels.hpp"

namespace py = pybind11;
using namespace mmebm;

namespace {

using Address = uintptr_t;  // 0 for an output that is not asked for

template <class T = float>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

using HoldArgs = std::tuple<int, Address, float, float, float>;                             // reference, scale, clip, lower, upper
using ExpertsArgs = std::tuple<Address, Address, Address, int64_t, int64_t, int64_t, int>;  // mu, logvar, present, M, B, d, prior
// z, loc, scale, present, lead, rows, dim, experts, law
using MixtureArgs = std::tuple<Address, Address, Address, Address, int64_t, int64_t, int64_t, int64_t, int>;

using LayerArgs = std::tuple<Address, Address, int, int>;               // weight, bias, out, in
using NetArgs = std::tuple<std::vector<LayerArgs>, int, float, float>;  // layers, activation, slope, bound
using KeptArgs = std::tuple<int64_t, Address, Address>;                 // every, states, energies
using StatisticsArgs = std::array<Address, 5>;  // mean energy, |grad|, displacement, acceptance, work

cuda::Net network(const NetArgs& args) {
  const auto& [layers, activation, slope, bound] = args;
  if (layers.size() < 2 || layers.size() > cuda::kMaxLinear) {
    throw std::invalid_argument("weights: expected 2 to " + std::to_string(cuda::kMaxLinear) + " linear layers, got " +
                                std::to_string(layers.size()));
  }
  cuda::Net net{};
  for (const auto& [weight, bias, out, in] : layers) {
    net.weight[net.linear] = pointer<const float>(weight);
    net.bias[net.linear] = pointer<const float>(bias);
    net.out[net.linear] = out;
    net.in[net.linear++] = in;
  }
  net.activation = static_cast<Activation>(activation);
  net.slope = slope;
  net.bound = bound;
  return net;
}

cuda::Hold hold(const HoldArgs& args) {
  const auto& [reference, scale, clip, lower, upper] = args;
  return {static_cast<Reference>(reference), pointer<const float>(scale), clip, lower, upper};
}

Experts experts(const ExpertsArgs& args) {
  const auto& [mu, logvar, present, count, rows, dim, prior] = args;
  return {pointer<const float>(mu), pointer<const float>(logvar), pointer<const int64_t>(present), count, rows, dim,
          static_cast<Prior>(prior)};
}

MixtureCall mixture_call(const MixtureArgs& args, Address out) {
  const auto& [z, loc, scale, present, lead, rows, dim, count, law] = args;
  return {pointer<const float>(z), pointer<const float>(loc), pointer<const float>(scale), pointer<const int64_t>(present),
          lead, rows, dim, count, static_cast<Law>(law), pointer(out)};
}

void bind_draw(Address out, Address scale, int64_t steps, int64_t rows, int64_t dim, Address rng, int law, uint32_t purpose,
               cuda::Stream stream) {
  cuda::draw({pointer(out), pointer<const float>(scale), steps, rows, dim, pointer<const int64_t>(rng), purpose,
              static_cast<Law>(law)},
             stream);
}

void bind_langevin_update(Address z, Address grad, int64_t rows, int64_t dim, Address coefficients, Address rng, int64_t step,
                          const HoldArgs& holding, Address out, cuda::Stream stream) {
  cuda::langevin_update({pointer<const float>(z), pointer<const float>(grad), rows, dim, pointer<const float>(coefficients),
                         pointer<const int64_t>(rng), step, hold(holding), pointer(out)},
                        stream);
}

// act<terms>() for one of the numbers that kernels are compiled for.
template <class Act>
auto with_terms(int terms, Act act) {
  switch (terms) {
    case 1: return act.template operator()<1>();
    case 2: return act.template operator()<2>();
    case 3: return act.template operator()<3>();
    case 6: return act.template operator()<6>();
    default: throw std::invalid_argument("terms: expected 1, 2, 3 or 6, got " + std::to_string(terms));
  }
}

// variant: "block", "streamed", which wants a workspace, "warp" or "wgmma".
void bind_chain(const std::string& variant, bool adjusted, Address z, int64_t rows, int64_t steps, const NetArgs& net,
                Address coefficients, Address rng, const HoldArgs& holding, Address out, const KeptArgs& kept,
                const StatisticsArgs& statistics, int terms, Address workspace, cuda::Stream stream) {
  const auto& [every, states, energies] = kept;
  const auto& [mean_energy, grad_norm, displacement, acceptance, work] = statistics;
  const cuda::ChainCall call{pointer<const float>(z), rows, steps, network(net), pointer<const float>(coefficients),
                             pointer<const int64_t>(rng), hold(holding), every, pointer(out), pointer(states),
                             pointer(energies), pointer(mean_energy), pointer(grad_norm), pointer(displacement),
                             pointer(acceptance), pointer(work)};
  if (variant == "wgmma") return cuda::wgmma_chain(call, stream);
  with_terms(terms, [&]<int n>() {
    if (variant == "warp") {
      cuda::warp_chain<n>(call, stream);
    } else if (variant == "streamed") {
      cuda::streamed_chain<n>(call, adjusted, pointer<void>(workspace), stream);
    } else {
      cuda::block_chain<n>(call, adjusted, stream);
    }
  });
}

// Without parameters.
cuda::Net network_of(const std::vector<int>& widths) {
  std::vector<LayerArgs> layers;
  for (size_t l = 0; l < widths.size(); ++l) layers.emplace_back(0, 0, l + 1 < widths.size() ? widths[l + 1] : 1, widths[l]);
  return network({layers, 0, 0.0f, 0.0f});
}

int64_t bind_workspace_bytes(const std::vector<int>& widths, int terms) {
  return with_terms(terms, [&]<int n>() { return cuda::workspace_bytes<n>(network_of(widths)); });
}

// Shared memory of a variant's block for a network of these widths, its input's first; 0 where it has no kernel.
int bind_chain_bytes(const std::string& variant, bool adjusted, const std::vector<int>& widths, int terms) {
  const cuda::Net net = network_of(widths);
  if (variant == "streamed") return with_terms(terms, [&]<int n>() { return cuda::streamed_chain_bytes<n>(net, adjusted); });
  if (variant == "block") return with_terms(terms, [&]<int n>() { return cuda::block_chain_bytes<n>(net, adjusted); });
  if (adjusted) return 0;
  if (variant == "warp") return with_terms(terms, [&]<int n>() { return cuda::warp_chain_bytes<n>(net); });
  return terms == 1 ? cuda::wgmma_chain_bytes(net) : 0;
}

void bind_layer_forward(Address x, Address weight, Address bias, Address value, Address derivative, int64_t rows,
                        int64_t width, int64_t fan_in, int activation, float slope, cuda::Stream stream) {
  cuda::layer_forward({pointer<const float>(x), pointer<const float>(weight), pointer<const float>(bias), pointer(value),
                       pointer(derivative), rows, width, fan_in, static_cast<Activation>(activation), slope},
                      stream);
}

void bind_layer_backward(Address delta, Address last, Address weight, Address derivative, Address factor, Address out,
                         int64_t rows, int64_t width, int64_t fan_in, cuda::Stream stream) {
  cuda::layer_backward({pointer<const float>(delta), pointer<const float>(last), pointer<const float>(weight),
                        pointer<const float>(derivative), pointer<const float>(factor), pointer(out), rows, width, fan_in},
                       stream);
}

void bind_layer_head(Address h, Address weight, Address bias, Address g, Address energy, Address factor, int64_t rows,
                     int64_t width, float bound, cuda::Stream stream) {
  cuda::layer_head({pointer<const float>(h), pointer<const float>(weight), pointer<const float>(bias),
                    pointer<const float>(g), pointer(energy), pointer(factor), rows, width, bound},
                   stream);
}

void bind_layer_outer(Address delta, Address last, Address factor, Address x, Address d_weight, Address d_bias, int64_t rows,
                      int64_t added, int64_t parts, int64_t width, int64_t fan_in, cuda::Stream stream) {
  cuda::layer_outer({pointer<const float>(delta), pointer<const float>(last), pointer<const float>(factor),
                     pointer<const float>(x), pointer(d_weight), pointer(d_bias), rows, added, parts, width, fan_in},
                    stream);
}

void bind_product(const ExpertsArgs& in, Address mu, Address logvar, cuda::Stream stream) {
  cuda::product({experts(in), pointer(mu), pointer(logvar)}, stream);
}

void bind_product_backward(const ExpertsArgs& in, Address g_mu, Address g_logvar, Address d_mu, Address d_logvar,
                           cuda::Stream stream) {
  cuda::product_backward(
      {experts(in), pointer<const float>(g_mu), pointer<const float>(g_logvar), pointer(d_mu), pointer(d_logvar)}, stream);
}

void bind_subsets(const ExpertsArgs& in, Address mu, Address logvar, Address kl, cuda::Stream stream) {
  cuda::subsets({experts(in), pointer(mu), pointer(logvar), pointer(kl)}, stream);
}

void bind_subsets_backward(const ExpertsArgs& in, Address g_mu, Address g_logvar, Address g_kl, Address d_mu,
                           Address d_logvar, cuda::Stream stream) {
  cuda::subsets_backward({experts(in), pointer<const float>(g_mu), pointer<const float>(g_logvar),
                          pointer<const float>(g_kl), pointer(d_mu), pointer(d_logvar)},
                         stream);
}

void bind_mixture(const MixtureArgs& in, Address out, cuda::Stream stream) { cuda::mixture(mixture_call(in, out), stream); }

void bind_mixture_backward(const MixtureArgs& in, Address g, Address dz, Address d_loc, Address d_scale,
                           cuda::Stream stream) {
  cuda::mixture_backward(
      {mixture_call(in, 0), pointer<const float>(g), pointer(dz), pointer(d_loc), pointer(d_scale)}, stream);
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = MMEBM_CUDA_COMPILER;
  info["architectures"] = MMEBM_CUDA_ARCHITECTURES;
#if defined(MMEBM_EMULATED)
  info["emulated"] = true;
#else
  info["emulated"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(MMEBM_MODULE, m) {
  m.def("draw", &bind_draw, py::arg("out"), py::arg("scale"), py::arg("steps"), py::arg("rows"), py::arg("dim"), py::arg("rng"), py::arg("law"), py::arg("purpose"), py::arg("stream"));
  m.def("langevin_update", &bind_langevin_update, py::arg("z"), py::arg("grad"), py::arg("rows"), py::arg("dim"), py::arg("coefficients"), py::arg("rng"), py::arg("step"), py::arg("hold"), py::arg("out"), py::arg("stream"));
  m.def("chain", &bind_chain, py::arg("variant"), py::arg("adjusted"), py::arg("z"), py::arg("rows"), py::arg("steps"), py::arg("net"), py::arg("coefficients"), py::arg("rng"), py::arg("hold"), py::arg("out"), py::arg("kept"), py::arg("statistics"), py::arg("terms"), py::arg("workspace"), py::arg("stream"));
  m.def("workspace_bytes", &bind_workspace_bytes, py::arg("widths"), py::arg("terms"));
  m.def("chain_bytes", &bind_chain_bytes, py::arg("variant"), py::arg("adjusted"), py::arg("widths"), py::arg("terms"));
  m.def("layer_forward", &bind_layer_forward, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("value"), py::arg("derivative"), py::arg("rows"), py::arg("width"), py::arg("fan_in"), py::arg("activation"), py::arg("slope"), py::arg("stream"));
  m.def("layer_backward", &bind_layer_backward, py::arg("delta"), py::arg("last"), py::arg("weight"), py::arg("derivative"), py::arg("factor"), py::arg("out"), py::arg("rows"), py::arg("width"), py::arg("fan_in"), py::arg("stream"));
  m.def("layer_head", &bind_layer_head, py::arg("h"), py::arg("weight"), py::arg("bias"), py::arg("g"), py::arg("energy"), py::arg("factor"), py::arg("rows"), py::arg("width"), py::arg("bound"), py::arg("stream"));
  m.def("layer_outer", &bind_layer_outer, py::arg("delta"), py::arg("last"), py::arg("factor"), py::arg("x"), py::arg("d_weight"), py::arg("d_bias"), py::arg("rows"), py::arg("added"), py::arg("parts"), py::arg("width"), py::arg("fan_in"), py::arg("stream"));
  m.def("product", &bind_product, py::arg("experts"), py::arg("mu"), py::arg("logvar"), py::arg("stream"));
  m.def("product_backward", &bind_product_backward, py::arg("experts"), py::arg("g_mu"), py::arg("g_logvar"), py::arg("d_mu"), py::arg("d_logvar"), py::arg("stream"));
  m.def("subsets", &bind_subsets, py::arg("experts"), py::arg("mu"), py::arg("logvar"), py::arg("kl"), py::arg("stream"));
  m.def("subsets_backward", &bind_subsets_backward, py::arg("experts"), py::arg("g_mu"), py::arg("g_logvar"), py::arg("g_kl"), py::arg("d_mu"), py::arg("d_logvar"), py::arg("stream"));
  m.def("mixture", &bind_mixture, py::arg("mixture"), py::arg("out"), py::arg("stream"));
  m.def("mixture_backward", &bind_mixture_backward, py::arg("mixture"), py::arg("g"), py::arg("dz"), py::arg("d_loc"), py::arg("d_scale"), py::arg("stream"));
  m.def("build_info", &build_info);
}
