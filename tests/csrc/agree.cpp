// The kernels of instruction set `base` on fixed inputs, every number a line. Given a file of such lines, as another
// machine printed them, says instead whether they agree: words to numbers to the bit, networks to rounding.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "common/philox.hpp"
#include "cpu/kernels.hpp"

using namespace mmebm;
using namespace mmebm::cpu;

namespace {

using Floats = std::vector<float>;

constexpr int64_t kRows = 37, kDim = 19, kHidden[2] = {21, 9}, kSteps = 3;

Floats filled(uint32_t which, int64_t n, float scale) {
  Floats out(static_cast<size_t>(n));
  for (size_t i = 0; i < out.size(); ++i) {
    const Words x = words(1, i, which, 0, 0);
    out[i] = scale * (static_cast<float>(x.x0 >> 8) * 0x1p-23f - 1.0f);
  }
  return out;
}

struct Output {
  const char* name;
  bool exact;
  Floats values;
};

std::vector<Output> compute() {
  const Kernels& base = kernels(Isa::base);
  std::vector<Output> all;
  const auto output = [&](const char* name, bool exact, int64_t n) -> float* {
    all.push_back({name, exact, Floats(static_cast<size_t>(n), NAN)});
    return all.back().values.data();
  };
  const Stream stream{12345678901234567ull, (uint64_t{1} << 32) - 2, (uint64_t{1} << 40) - 7};
  for (const Law law : {Law::normal, Law::laplace}) {
    float* out = output(law == Law::normal ? "normal" : "laplace", true, kSteps * kRows * kDim);
    base.draw({out, nullptr, kSteps, kRows, kDim, stream, 1, law}, 2);
  }

  const Floats z = filled(0, kRows * kDim, 2.0f), g = filled(1, kRows, 1.0f), scale(kDim, 0.7f);
  const Floats w0 = filled(2, kHidden[0] * kDim, 0.5f), b0 = filled(3, kHidden[0], 0.5f);
  const Floats w1 = filled(4, kHidden[1] * kHidden[0], 0.5f), b1 = filled(5, kHidden[1], 0.5f);
  const Floats w2 = filled(6, kHidden[1], 1.0f), b2 = filled(7, 1, 1.0f);
  Floats table;
  for (int64_t k = 0; k < kSteps; ++k) table.insert(table.end(), {0.02f, 0.2f, 1.0f + static_cast<float>(k)});
  for (int kind = 0; kind <= static_cast<int>(Activation::elu); ++kind) {
    Net net{};
    net.layers[0] = {w0.data(), b0.data(), kDim, kHidden[0]};
    net.layers[1] = {w1.data(), b1.data(), kHidden[0], kHidden[1]};
    net.layers[2] = {w2.data(), b2.data(), kHidden[1], 1};
    net.count = 3;
    net.activation = static_cast<Activation>(kind);
    net.slope = 0.2f;
    net.bound = kind % 2 ? 1.5f : 0.0f;
    float* energies = output("energy", false, kRows);
    base.energy({z.data(), kRows, net, energies, output("gradient", false, kRows * kDim)}, 2);
    EnergyBackwardCall backward{g.data(), z.data(), kRows, net, output("dz", false, kRows * kDim), {}, {}};
    for (int l = 0; l < net.count; ++l) {
      backward.d_weight[l] = output("weight", false, net.layers[l].in * net.layers[l].out);
      backward.d_bias[l] = output("bias", false, net.layers[l].out);
    }
    base.energy_backward(backward, 2);
    const Hold hold{kind % 2 ? Reference::laplace : Reference::normal, scale.data(), 0.8f, -2.5f, INFINITY};
    for (const bool adjusted : {false, true}) {
      ChainCall chain{};
      chain.z = z.data();
      chain.rows = kRows;
      chain.steps = kSteps;
      chain.net = net;
      chain.coefficients = table.data();
      chain.stream = stream;
      chain.hold = hold;
      chain.out = output(adjusted ? "mala" : "langevin", false, kRows * kDim);
      (adjusted ? base.mala : base.langevin)(chain, 2);
    }
  }
  return all;
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<Output> all = compute();
  if (count < 2) {
    for (const Output& output : all) {
      for (const float x : output.values) std::printf("%s %a\n", output.name, static_cast<double>(x));
    }
    return 0;
  }
  std::FILE* file = std::fopen(arguments[1], "r");
  int64_t compared = 0, wrong = 0;
  for (const Output& output : all) {
    for (const float x : output.values) {
      char name[16];
      double expected;
      if (!file || std::fscanf(file, "%15s %la", name, &expected) != 2) {
        std::fprintf(stderr, "%s: expected %s\n", arguments[1], output.name);
        return 2;
      }
      const double error = std::fabs(static_cast<double>(x) - expected);
      ++compared;
      if (output.exact ? error == 0.0 : error <= 2e-5 * (1.0 + std::fabs(expected))) continue;
      if (wrong++ < 10) std::fprintf(stderr, "%s: expected %.9g, got %.9g\n", output.name, expected, static_cast<double>(x));
    }
  }
  std::printf("%lld numbers compared, %lld differ\n", static_cast<long long>(compared), static_cast<long long>(wrong));
  return wrong == 0 ? 0 : 1;
}
