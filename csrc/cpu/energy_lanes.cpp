#include "cpu/batch.hpp"

namespace mmebm::cpu::MMEBM_ISA {

void energy(const EnergyCall& call, int threads) {
  const int64_t dim = call.net.layers[0].in;
  with_vectors(call.rows, threads, [&](auto v) {
    constexpr int kChains = v * kLanes;
    const int64_t own = 2 * whole_rows(dim) * kChains;
    over_tiles<v>(call.net, call.rows, threads, own, [&](const Packed& net, float* memory, int64_t row) {
      const int64_t rows = call.rows - row;
      float* z = memory;
      float* grad = z + whole_rows(dim) * kChains;
      Tile<v> tile(net, grad + whole_rows(dim) * kChains);
      gather(call.z + row * dim, dim, rows, kChains, z);
      if (!call.grad) {
        store_lanes(call.energy + row, bounded(tile.energy(z), net.bound).value, rows);
        return;
      }
      const auto [value, first] = bounded(tile.energy_and_gradient(z, grad), net.bound);
      store_lanes(call.energy + row, value, rows);
      if (net.bound != 0.0f) {
        for (int64_t i = 0; i < dim; ++i) {
          store_block(grad + i * kChains, load_block<v>(grad + i * kChains) * first);
        }
      }
      scatter(grad, dim, rows, kChains, call.grad + row * dim);
    });
  });
}

}  // namespace mmebm::cpu::MMEBM_ISA
