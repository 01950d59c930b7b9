"""`energy`, differentiable to any order, and `energy_and_grad`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks, dispatch, reference
from ..reference import MLP, energy_double_backward
from .register import NET, WHERE, fake, gradient, operator, sampler, transformed


@operator("energy", f"(Tensor z, {NET}, {WHERE}) -> Tensor")
def _energy(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    slope: float,
    bound: float | None,
    precision: str,
    backend: str,
) -> Tensor:
    checks.network(z, weights, biases, activation, bound)
    net = MLP(weights, biases, activation, slope, bound, dispatch.precision(precision))
    return dispatch.select(backend, "energy", z.device, z.dtype, net).energy(z, net)


@fake("energy")
def _(z: Tensor, weights: Any, biases: Any, activation: str, slope: float, bound: Any, *_: str) -> Tensor:
    checks.network(z, weights, biases, activation, bound)
    return z.new_empty(z.shape[0])


@operator("energy_backward", f"(Tensor g, Tensor z, {NET}, bool parameters, {WHERE}) -> (Tensor, Tensor[], Tensor[])")
def _energy_backward(
    g: Tensor,
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    slope: float,
    bound: float | None,
    parameters: bool,
    precision: str,
    backend: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    checks.network(z, weights, biases, activation, bound)
    checks.tensor("g", g, (z.shape[0],), z)
    net = MLP(weights, biases, activation, slope, bound, dispatch.precision(precision))
    return dispatch.select(backend, "energy_backward", z.device, z.dtype, net).energy_backward(g, z, net, parameters)


@fake("energy_backward")
def _(g: Tensor, z: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *rest: Any) -> Any:
    parameters = [*weights, *biases] if rest[3] else []
    grads = [w.new_empty(w.shape) for w in parameters]
    return z.new_empty(z.shape), grads[: len(weights)], grads[len(weights) :]


def _save_energy(ctx: Any, inputs: Any, output: Any) -> None:
    z, weights, biases, *ctx.net, ctx.precision, ctx.backend = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(z, *weights, *biases)


def _energy_gradient(ctx: Any, g: Tensor) -> Any:
    z, *parameters = ctx.saved_tensors
    weights, biases = parameters[: ctx.layers], parameters[ctx.layers :]
    parameters = any(ctx.needs_input_grad[1]) or any(ctx.needs_input_grad[2])
    dz, d_weights, d_biases = torch.ops.mmebm.energy_backward(
        g.contiguous(), z, weights, biases, *ctx.net, parameters, ctx.precision, ctx.backend
    )
    none = [None] * ctx.layers
    return dz, d_weights or none, d_biases or none, None, None, None, None, None


def _save_energy_backward(ctx: Any, inputs: Any, output: Any) -> None:
    g, z, weights, biases, *ctx.net, ctx.parameters, _, _ = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(g, z, *weights, *biases)


def _energy_second(ctx: Any, cz: Tensor, c_weights: Sequence[Tensor], c_biases: Sequence[Tensor]) -> Any:
    g, z, *parameters = ctx.saved_tensors
    weights, biases = parameters[: ctx.layers], parameters[ctx.layers :]
    net = MLP(weights, biases, *ctx.net)
    if not ctx.parameters:
        c_weights, c_biases = [torch.zeros_like(w) for w in weights], [torch.zeros_like(b) for b in biases]
    # Plain differentiable PyTorch on every backend: slower than a kernel, and right to any order.
    return *energy_double_backward(cz, c_weights, c_biases, g, z, net), None, None, None, None, None, None


gradient("energy", _energy_gradient, _save_energy)
gradient("energy_backward", _energy_second, _save_energy_backward)


def energy(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    activation: str = "silu",
    slope: float = 0.01,
    bound: float | None = None,
    precision: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """E(z) of an MLP: [B, d] -> [B], as c tanh(E / c) where `bound` c is given. Differentiable in z and parameters.

    Inside torch.func's transforms and forward-mode derivatives, which operators of a library do not take part in, it is
    the reference's plain PyTorch, on every backend.
    """
    if transformed():
        checks.network(z, weights, biases, activation, bound)
        return reference.energy(z, reference.MLP(weights, biases, activation, slope, bound))
    return torch.ops.mmebm.energy(z, list(weights), list(biases), activation, slope, bound, precision or "", backend)


@operator("energy_and_grad", f"(Tensor z, {NET}, {WHERE}) -> (Tensor, Tensor)")
def _energy_and_grad(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    slope: float,
    bound: float | None,
    precision: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    checks.network(z, weights, biases, activation, bound)
    net = MLP(weights, biases, activation, slope, bound, dispatch.precision(precision))
    return dispatch.select(backend, "energy_and_grad", z.device, z.dtype, net).energy_and_grad(z, net)


@fake("energy_and_grad")
def _(z: Tensor, weights: Any, biases: Any, activation: str, slope: float, bound: Any, *_: str) -> Any:
    checks.network(z, weights, biases, activation, bound)
    return z.new_empty(z.shape[0]), z.new_empty(z.shape)


sampler("energy_and_grad")


def energy_and_grad(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    activation: str = "silu",
    slope: float = 0.01,
    bound: float | None = None,
    precision: str | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """E(z) [B] and dE/dz [B, d] in one pass, both without history."""
    return torch.ops.mmebm.energy_and_grad(
        z, list(weights), list(biases), activation, slope, bound, precision or "", backend
    )
