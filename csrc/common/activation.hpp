// Activations of an energy network with their first derivatives; kernels/reference/activations.py is their oracle.
#pragma once

#include "common/functions.hpp"

namespace mmebm {

// The order of kernels/native.py.
enum class Activation : int { silu, gelu, gelu_tanh, leaky_relu, relu, softplus, tanh, elu };

template <class R>
struct ValueAndFirst {
  R value, first;
};

template <Activation kind, class R>
MMEBM_HD ValueAndFirst<R> activate(R x, [[maybe_unused]] float slope) {
  if constexpr (kind == Activation::silu) {
    const Logistic<R> l = logistic(x);
    const R value = x * l.s;
    return {value, fma32(value, l.rest, l.s)};
  } else if constexpr (kind == Activation::gelu) {
    // Upper tail of the normal law: e^(-x^2/2) t p(t), t = 1 / (1 + 0.3 |x|); p fitted on |x| <= 10, within 3e-8.
    // Past |x| = 12 it is 0 or 1, and its products would be denormal, which are slow.
    const R near = at_least(at_most(x, 12.0f), -12.0f);
    const R t = reciprocal(fma32(absolute(near), 0.3f, 1.0f));
    R p = fma32(t, 0.0381150736f, -0.167595915f);
    p = fma32(p, t, 0.224740298f);
    p = fma32(p, t, -0.0711532167f);
    p = fma32(p, t, 0.138162505f);
    p = fma32(p, t, 0.0968690771f);
    p = fma32(p, t, 0.121268655f);
    p = fma32(p, t, 0.119593553f);
    const R density = exp32(near * near * -0.5f);
    const R tail = density * (t * p);
    const R cumulative = select(x > 0.0f, 1.0f - tail, tail);
    return {x * cumulative, fma32(near * 0.398942280f, density, cumulative)};
  } else if constexpr (kind == Activation::gelu_tanh) {
    // x logistic(w), w = 2 sqrt(2 / pi) (x + 0.044715 x^3). Past |x| = 12 the logistic is 0 or 1.
    const R near = at_least(at_most(x, 12.0f), -12.0f);
    const R square = near * near;
    const Logistic<R> l = logistic(near * fma32(square, 0.0713548163f, 1.59576912f));
    const R value = x * l.s;
    return {value, fma32(value * l.rest, fma32(square, 0.214064449f, 1.59576912f), l.s)};
  } else if constexpr (kind == Activation::leaky_relu) {
    return {select(x > 0.0f, x, x * slope), select(x > 0.0f, R(1.0f), R(slope))};
  } else if constexpr (kind == Activation::relu) {
    return {select(x < 0.0f, R(0.0f), x), select(x > 0.0f, R(1.0f), R(0.0f))};
  } else if constexpr (kind == Activation::softplus) {
    // max(x, 0) + ln(1 + e^-|x|); what rounding 1 + e loses is put back by its first order.
    const R e = exp32(at_least(-absolute(x), -69.0f));
    const R sum = e + 1.0f;
    const R s = reciprocal(sum);
    const R rest = e - (sum - 1.0f);
    return {select(x > 0.0f, x, R(0.0f)) + fma32(rest, s, log32(sum)), select(x > 0.0f, s, e * s)};
  } else if constexpr (kind == Activation::tanh) {
    const Logistic<R> l = logistic(x * 2.0f);
    return {tanh32(x), l.s * l.rest * 4.0f};
  } else {
    const R less_one = expm1_32(at_most(x, 0.0f));
    return {select(x > 0.0f, x, less_one), select(x > 0.0f, R(1.0f), less_one + 1.0f)};
  }
}

// The kind known at run time.
template <class R>
MMEBM_HD ValueAndFirst<R> activate(Activation kind, R x, float slope) {
  switch (kind) {
    case Activation::silu: return activate<Activation::silu>(x, slope);
    case Activation::gelu: return activate<Activation::gelu>(x, slope);
    case Activation::gelu_tanh: return activate<Activation::gelu_tanh>(x, slope);
    case Activation::leaky_relu: return activate<Activation::leaky_relu>(x, slope);
    case Activation::relu: return activate<Activation::relu>(x, slope);
    case Activation::softplus: return activate<Activation::softplus>(x, slope);
    case Activation::tanh: return activate<Activation::tanh>(x, slope);
    default: return activate<Activation::elu>(x, slope);
  }
}

}  // namespace mmebm
