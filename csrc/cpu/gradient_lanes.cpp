// The gradient of an energy's weighted sum in z, weights and biases. The batch is cut in slabs whose number depends on
// its size alone; each slab sums its tiles in order and the slabs are summed in order, whatever threads there are.
#include "cpu/batch.hpp"

namespace mmebm::cpu::MMEBM_ISA {

namespace {

// Where the parts of a slab's sums lie. A weight's gradient is kept in panels [out / kRows][in / wide][kRows][wide], a
// bias's and the last layer's by lane.
struct Sums {
  int64_t weight[kMaxLayers], bias[kMaxLayers];
  int vectors[kMaxLayers];  // wide = vectors * kLanes
  int64_t last, last_bias, size;
};

Sums lay_out_sums(const Packed& net) {
  Sums sums{};
  int64_t at = 0;
  const auto take = [&](int64_t floats) {
    const int64_t here = at;
    at += whole(floats, 16);
    return here;
  };
  for (int l = 0; l < net.hidden; ++l) {
    const int64_t needed = net.width[l] > kLanes ? (net.width[l] + kLanes - 1) / kLanes : 1;
    sums.vectors[l] = static_cast<int>(needed < kMaxVectors ? needed : kMaxVectors);
    sums.weight[l] = take(whole_rows(net.width[l + 1]) * whole(net.width[l], sums.vectors[l] * kLanes));
    sums.bias[l] = take(net.width[l + 1] * kLanes);
  }
  sums.last = take(net.width[net.hidden] * kLanes);
  sums.last_bias = take(kLanes);
  sums.size = at;
  return sums;
}

// rows [in][chains] -> [in / wide][chains][wide], what is past `in` zero.
template <int vectors, int chains>
void transpose_panels(const float* rows, int64_t in, float* out) {
  for (int64_t i = 0; i < whole(in, vectors * kLanes); i += kLanes) {
    float* to = out + i / (vectors * kLanes) * chains * vectors * kLanes + i % (vectors * kLanes);
    for (int c = 0; c < chains; c += kLanes) {
      Floats x[kLanes] = {};
      for (int l = 0; l < kLanes && i + l < in; ++l) x[l] = load(rows + (i + l) * chains + c);
      transpose(x);
      for (int l = 0; l < kLanes; ++l) store(to + (c + l) * vectors * kLanes, x[l]);
    }
  }
}

// d_weight += delta [out][chains] x rows [in][chains].
template <int vectors, int chains>
void add_outer(const float* delta, int64_t out, const float* rows, int64_t in, float* transposed, float* d_weight) {
  constexpr int kWide = vectors * kLanes;
  transpose_panels<vectors, chains>(rows, in, transposed);
  const int64_t columns = whole(in, kWide) / kWide;
  for (int64_t r = 0; r < whole_rows(out); r += kRows) {
    for (int64_t c = 0; c < columns; ++c) {
      outer_panel<vectors, chains>(delta + r * chains, transposed + c * chains * kWide,
                                   d_weight + (r * columns + c * kRows) * kWide);
    }
  }
}

template <int chains>
void add_outer(int vectors, const float* delta, int64_t out, const float* rows, int64_t in, float* transposed,
               float* d_weight) {
  if (vectors == 1) return add_outer<1, chains>(delta, out, rows, in, transposed, d_weight);
  if (vectors == 2) return add_outer<2, chains>(delta, out, rows, in, transposed, d_weight);
  add_outer<kMaxVectors, chains>(delta, out, rows, in, transposed, d_weight);
}

// sums[row] += the vectors of rows[row] times `by`.
template <int vectors>
void add_lanes(const float* rows, int64_t n, Real<vectors> by, float* sums) {
  for (int64_t i = 0; i < n; ++i) {
    const Real<vectors> x = load_block<vectors>(rows + i * vectors * kLanes) * by;
    Floats sum = load(sums + i * kLanes);
    for (int v = 0; v < vectors; ++v) sum += x.v[v];
    store(sums + i * kLanes, sum);
  }
}

float across(const float* lanes) {
  float sum = 0.0f;
  for (int l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}

template <int vectors>
struct Batch {
  static constexpr int kChains = vectors * kLanes;

  const EnergyBackwardCall& call;
  const Packed& net;
  const Sums& sums;

  int64_t own() const {
    int64_t widest = net.width[net.hidden];
    for (int l = 0; l < net.hidden; ++l) widest = net.width[l] > widest ? net.width[l] : widest;
    return (2 * whole_rows(net.width[0]) + whole(widest, kMaxVectors * kLanes)) * kChains;
  }

  // One tile: dz, and into `partial` (if any) what it adds to the parameters' gradients.
  void tile(int64_t row, float* memory, float* partial) const {
    const int64_t dim = net.width[0], rows = call.rows - row;
    float* z = memory;
    float* grad = z + whole_rows(dim) * kChains;
    float* transposed = grad + whole_rows(dim) * kChains;
    Tile<vectors> at(net, memory + own());
    gather(call.z + row * dim, dim, rows, kChains, z);

    float lanes[kChains] = {};  // rows past the end weigh nothing
    std::memcpy(lanes, call.g + row, static_cast<size_t>(rows < kChains ? rows : kChains) * sizeof(float));
    const Real<vectors> e = at.energy_and_derivatives(z);
    const Real<vectors> weight = load_block<vectors>(lanes) * bounded(e, net.bound).first;
    const int last = net.hidden - 1;
    if (net.hidden > 0) {
      for (int64_t i = 0; i < net.width[net.hidden]; ++i) {
        float* to = at.delta(last) + i * kChains;
        store_block(to, load_block<vectors>(to) * weight);
      }
    }
    at.backward(grad);
    if (net.hidden == 0) {
      for (int64_t i = 0; i < dim; ++i) store_block(grad + i * kChains, load_block<vectors>(grad + i * kChains) * weight);
    }
    scatter(grad, dim, rows, kChains, call.dz + row * dim);
    if (!partial) return;

    for (int l = 0; l < net.hidden; ++l) {
      add_outer<kChains>(sums.vectors[l], at.delta(l), net.width[l + 1], l > 0 ? at.value(l - 1) : z, net.width[l],
                         transposed, partial + sums.weight[l]);
      add_lanes<vectors>(at.delta(l), net.width[l + 1], Real<vectors>(1.0f), partial + sums.bias[l]);
    }
    add_lanes<vectors>(net.hidden > 0 ? at.value(last) : z, net.width[net.hidden], weight, partial + sums.last);
    float ones[kChains];
    store_block(ones, Real<vectors>(1.0f));
    add_lanes<vectors>(ones, 1, weight, partial + sums.last_bias);
  }

  // The sums of all slabs, row r of layer l, to their places.
  void finish(const float* partial, int64_t slabs, int l, int64_t r) const {
    const int64_t in = net.width[l], wide = sums.vectors[l] * kLanes, columns = whole(in, wide) / wide;
    const float fold = l == net.hidden - 1 ? net.last[r] : 1.0f;
    float* to = call.d_weight[l] + r * in;
    for (int64_t c = 0; c < columns; ++c) {
      const float* from = partial + sums.weight[l] + (r / kRows * kRows * columns + c * kRows + r % kRows) * wide;
      for (int64_t i = 0; i < wide && c * wide + i < in; i += kLanes) {
        Floats sum = {};
        for (int64_t s = 0; s < slabs; ++s) sum += load(from + s * sums.size + i);
        sum *= fold;
        const int64_t left = in - c * wide - i;
        std::memcpy(to + c * wide + i, &sum, static_cast<size_t>(left < kLanes ? left : kLanes) * sizeof(float));
      }
    }
    float sum = 0.0f;
    for (int64_t s = 0; s < slabs; ++s) sum += across(partial + s * sums.size + sums.bias[l] + r * kLanes);
    call.d_bias[l][r] = sum * fold;
  }

  void finish_last(const float* partial, int64_t slabs) const {
    for (int64_t i = 0; i <= net.width[net.hidden]; ++i) {
      const bool bias = i == net.width[net.hidden];
      float sum = 0.0f;
      for (int64_t s = 0; s < slabs; ++s) {
        sum += across(partial + s * sums.size + (bias ? sums.last_bias : sums.last + i * kLanes));
      }
      (bias ? call.d_bias : call.d_weight)[net.hidden][bias ? 0 : i] = sum;
    }
  }
};

template <int vectors>
void run(const EnergyBackwardCall& call, int threads) {
  constexpr int64_t kChains = vectors * kLanes;
  const Packed net = lay_out(call.net, scratch(Scratch::shared, packed_size(call.net)));
  const Sums sums = lay_out_sums(net);
  const Batch<vectors> batch{call, net, sums};
  const int64_t tiles = (call.rows + kChains - 1) / kChains, all_panels = panels(call.net);
  // A slab costs a copy of the parameters: few tiles to a slab are dear, few slabs leave threads idle.
  const int64_t wanted = tiles / 8 < 4 ? 4 : tiles / 8;
  const int64_t slabs = tiles < wanted ? tiles : wanted < 32 ? wanted : 32;
  const bool parameters = call.d_weight[0] != nullptr;
  float* partial = parameters ? scratch(Scratch::partial, slabs * sums.size) : nullptr;
  const int64_t floats = Tile<vectors>::size(net) + batch.own();
  const int workers = team(threads, slabs);
  const Workspace workspace(workers, floats);
#pragma omp parallel num_threads(workers) if (workers > 1)
  {
#pragma omp for schedule(static)
    for (int64_t p = 0; p < all_panels; ++p) fill(call.net, net, p);
    float* memory = workspace.own();
#pragma omp for schedule(dynamic, 1)
    for (int64_t s = 0; s < slabs; ++s) {
      float* own = parameters ? partial + s * sums.size : nullptr;
      if (own) std::memset(own, 0, static_cast<size_t>(sums.size) * sizeof(float));
      for (int64_t t = s * tiles / slabs; t < (s + 1) * tiles / slabs; ++t) batch.tile(t * kChains, memory, own);
    }
    if (parameters) {
      for (int l = 0; l < net.hidden; ++l) {
#pragma omp for schedule(static) nowait
        for (int64_t r = 0; r < net.width[l + 1]; ++r) batch.finish(partial, slabs, l, r);
      }
#pragma omp single
      batch.finish_last(partial, slabs);
    }
  }
}

}  // namespace

void energy_backward(const EnergyBackwardCall& call, int threads) {
  with_vectors(call.rows, 1, [&](auto v) { run<v>(call, threads); });
}

}  // namespace mmebm::cpu::MMEBM_ISA
