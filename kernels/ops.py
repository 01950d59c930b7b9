"""The operators: schemas, shapes, errors and autograd. Backends implement what stands here and nothing more.

Shapes: z [B, d]; weights [out, in] and biases [out] of every linear layer of the energy, the last with out = 1;
coefficients float32 [K, 3] = (a, b, t) per step; rng int64 [3] = (seed, offset, first chain) on z's device, never
mutated: the caller advances the offset (by K for a chain, by `steps` for a draw). Outputs that were not asked for have
zero size. ValueError and TypeError name the argument, what it takes and what came.

Autograd: `energy` is differentiable in z, weights and biases as often as wanted; `mixture_log_prob` once, in z, loc and
scale; what samplers return is marked non-differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks, dispatch
from .reference import MLP, Chain, Constraints, energy_double_backward

_library = torch.library.Library("mmebm", "DEF")

_NET = "Tensor[] weights, Tensor[] biases, str activation, float slope, float? bound"
_HOLD = "str reference, Tensor reference_scale, float? grad_clip, float? lower, float? upper"
_WHERE = "str precision, str backend"

_SCHEMAS = {
    "draw": "(Tensor rng, int steps, int rows, int dim, str law, int purpose, Tensor? scale, str backend) -> Tensor",
    "energy": f"(Tensor z, {_NET}, {_WHERE}) -> Tensor",
    "energy_backward": f"(Tensor g, Tensor z, {_NET}, bool parameters, {_WHERE}) -> (Tensor, Tensor[], Tensor[])",
    "energy_and_grad": f"(Tensor z, {_NET}, {_WHERE}) -> (Tensor, Tensor)",
    "langevin": (
        f"(Tensor z, {_NET}, Tensor coefficients, Tensor rng, {_HOLD}, int record_every, bool statistics, {_WHERE})"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "langevin_update": (
        f"(Tensor z, Tensor grad, Tensor coefficients, Tensor rng, int step, {_HOLD}, str backend) -> Tensor"
    ),
    "mixture_log_prob": "(Tensor z, Tensor loc, Tensor scale, Tensor present, str law, str backend) -> Tensor",
    "mixture_log_prob_backward": (
        "(Tensor g, Tensor z, Tensor loc, Tensor scale, Tensor present, str law, bool parameters, str backend)"
        " -> (Tensor, Tensor, Tensor)"
    ),
}
OPERATORS = tuple(name for name in _SCHEMAS if not name.endswith("_backward"))

for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))


def _implement(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _library.impl(name, function, "CompositeExplicitAutograd")
        return function

    return register


def _fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return torch.library.register_fake(f"mmebm::{name}", lib=_library)


def _sampler(name: str) -> None:
    """Mark what `name` returns non-differentiable: a chain is a draw, not a function to train through."""

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*((output,) if isinstance(output, Tensor) else output))

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"mmebm::{name} is not differentiable: its result is a sample")

    torch.library.register_autograd(f"mmebm::{name}", refuse, setup_context=setup, lib=_library)


# draw ----------------------------------------------------------------------------------------------------------------


def _check_draw(rng: Tensor, steps: int, rows: int, dim: int, law: str, purpose: int, scale: Tensor | None) -> None:
    checks.rng(rng)
    checks.at_least("steps", steps, 0)
    checks.at_least("rows", rows, 0)
    checks.at_least("dim", dim, 1)
    if dim > checks.MAX_DIM:
        raise ValueError(f"dim: expected at most {checks.MAX_DIM}, what 24 bits of call numbers address, got {dim}")
    checks.one_of("law", law, checks.LAWS)
    if purpose not in checks.PURPOSES:
        raise ValueError(f"purpose: expected 0 to {checks.PURPOSES[-1]}, got {purpose}")
    if scale is not None:
        checks.tensor("scale", scale, (dim,), torch.empty(0, device=rng.device))


@_implement("draw")
def _draw(
    rng: Tensor, steps: int, rows: int, dim: int, law: str, purpose: int, scale: Tensor | None, backend: str
) -> Tensor:
    _check_draw(rng, steps, rows, dim, law, purpose, scale)
    return dispatch.select(backend, "draw", rng.device).draw(rng, steps, rows, dim, law, purpose, scale)


@_fake("draw")
def _(
    rng: Tensor, steps: int, rows: int, dim: int, law: str, purpose: int, scale: Tensor | None, backend: str
) -> Tensor:
    _check_draw(rng, steps, rows, dim, law, purpose, scale)
    return torch.empty(steps, rows, dim, device=rng.device)


_sampler("draw")


def draw(
    rng: Tensor,
    steps: int,
    rows: int,
    dim: int,
    *,
    law: str,
    purpose: int,
    scale: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Draws float32 [steps, rows, dim] of the standard `law` ("normal" or "laplace"), times `scale` float32 [dim].

    Element (s, i) belongs to step offset + s of chain first + i; `purpose` (0 chain noise, 1 reference draws, 2
    accept/reject, 3 choice, 4 reparameterisation, 5 momenta) keeps streams apart.
    """
    return torch.ops.mmebm.draw(rng, steps, rows, dim, law, purpose, scale, backend)


# energy --------------------------------------------------------------------------------------------------------------


@_implement("energy")
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
    dispatch.precision(precision)
    return dispatch.select(backend, "energy", z.device, z.dtype).energy(
        z, MLP(weights, biases, activation, slope, bound)
    )


@_fake("energy")
def _(z: Tensor, weights: Any, biases: Any, activation: str, slope: float, bound: Any, *_: str) -> Tensor:
    checks.network(z, weights, biases, activation, bound)
    return z.new_empty(z.shape[0])


@_implement("energy_backward")
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
    net = MLP(weights, biases, activation, slope, bound)
    return dispatch.select(backend, "energy_backward", z.device, z.dtype).energy_backward(g, z, net, parameters)


@_fake("energy_backward")
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


torch.library.register_autograd("mmebm::energy", _energy_gradient, setup_context=_save_energy, lib=_library)
torch.library.register_autograd(
    "mmebm::energy_backward", _energy_second, setup_context=_save_energy_backward, lib=_library
)


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
    """E(z) of an MLP: [B, d] -> [B], as c tanh(E / c) where `bound` c is given. Differentiable in z and parameters."""
    return torch.ops.mmebm.energy(z, list(weights), list(biases), activation, slope, bound, precision or "", backend)


@_implement("energy_and_grad")
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
    dispatch.precision(precision)
    net = MLP(weights, biases, activation, slope, bound)
    return dispatch.select(backend, "energy_and_grad", z.device, z.dtype).energy_and_grad(z, net)


@_fake("energy_and_grad")
def _(z: Tensor, weights: Any, biases: Any, activation: str, slope: float, bound: Any, *_: str) -> Any:
    checks.network(z, weights, biases, activation, bound)
    return z.new_empty(z.shape[0]), z.new_empty(z.shape)


_sampler("energy_and_grad")


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


# langevin ------------------------------------------------------------------------------------------------------------


@_implement("langevin")
def _langevin(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: str,
    slope: float,
    bound: float | None,
    coefficients: Tensor,
    rng: Tensor,
    reference: str,
    reference_scale: Tensor,
    grad_clip: float | None,
    lower: float | None,
    upper: float | None,
    record_every: int,
    statistics: bool,
    precision: str,
    backend: str,
) -> tuple[Tensor, ...]:
    checks.network(z, weights, biases, activation, bound)
    checks.coefficients(coefficients, z.device)
    checks.rng(rng, z.device)
    checks.constraints(z, reference, reference_scale, grad_clip, lower, upper)
    checks.at_least("record_every", record_every, 0)
    dispatch.precision(precision)
    net = MLP(weights, biases, activation, slope, bound)
    hold = Constraints(reference, reference_scale, grad_clip, lower, upper)
    implementation = dispatch.select(backend, "langevin", z.device, z.dtype)
    return tuple(implementation.langevin(z.contiguous(), net, coefficients, rng, hold, record_every, statistics))


@_fake("langevin")
def _(z: Tensor, weights: Any, biases: Any, activation: str, slope: float, bound: Any, *rest: Any) -> Any:
    coefficients, rng, reference, scale, clip, lower, upper, record_every, statistics, *_ = rest
    checks.network(z, weights, biases, activation, bound)
    checks.coefficients(coefficients, z.device)
    checks.rng(rng, z.device)
    checks.constraints(z, reference, scale, clip, lower, upper)
    rows = z.shape[0]
    kept = coefficients.shape[0] // record_every if record_every else 0
    measured = [z.new_empty(rows if statistics else 0) for _ in range(3)]
    return z.new_empty(z.shape), z.new_empty(kept, *z.shape), z.new_empty(kept, rows), *measured


_sampler("langevin")


def langevin(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    coefficients: Tensor,
    rng: Tensor,
    *,
    reference: str,
    reference_scale: Tensor,
    activation: str = "silu",
    slope: float = 0.01,
    bound: float | None = None,
    grad_clip: float | None = None,
    clamp: tuple[float | None, float | None] = (None, None),
    record_every: int = 0,
    statistics: bool = False,
    precision: str | None = None,
    backend: str = "auto",
) -> Chain:
    """K = len(coefficients) Langevin steps of every row of z [B, d]; row i is chain first + i of `rng`.

    z <- fma(b, eps, fma(-a, grad U, z)), U = t E - log p_0. `record_every` n keeps the states after steps n, 2n, ..
    and their energies; `statistics` the means over z_0..z_{K-1} of the energy, of |dE/dz| before the clip and of the
    step length |z_{k+1} - z_k|.
    """
    return Chain(
        *torch.ops.mmebm.langevin(
            z,
            list(weights),
            list(biases),
            activation,
            slope,
            bound,
            coefficients,
            rng,
            reference,
            reference_scale,
            grad_clip,
            *clamp,
            record_every,
            statistics,
            precision or "",
            backend,
        )
    )


def _check_update(z: Tensor, grad: Tensor, coefficients: Tensor, rng: Tensor, step: int, hold: Constraints) -> None:
    checks.tensor("z", z, (None, None))
    checks.tensor("grad", grad, z.shape, z)
    checks.coefficients(coefficients, z.device)
    checks.rng(rng, z.device)
    checks.constraints(z, *hold)
    if not 0 <= step < coefficients.shape[0]:
        raise ValueError(f"step: expected 0 to {coefficients.shape[0] - 1}, a row of coefficients, got {step}")


@_implement("langevin_update")
def _langevin_update(
    z: Tensor,
    grad: Tensor,
    coefficients: Tensor,
    rng: Tensor,
    step: int,
    reference: str,
    reference_scale: Tensor,
    grad_clip: float | None,
    lower: float | None,
    upper: float | None,
    backend: str,
) -> Tensor:
    hold = Constraints(reference, reference_scale, grad_clip, lower, upper)
    _check_update(z, grad, coefficients, rng, step, hold)
    implementation = dispatch.select(backend, "langevin_update", z.device, z.dtype)
    return implementation.langevin_update(z.contiguous(), grad.contiguous(), coefficients, rng, step, hold)


@_fake("langevin_update")
def _(z: Tensor, grad: Tensor, coefficients: Tensor, rng: Tensor, step: int, *rest: Any) -> Tensor:
    _check_update(z, grad, coefficients, rng, step, Constraints(*rest[:5]))
    return z.new_empty(z.shape)


_sampler("langevin_update")


def langevin_update(
    z: Tensor,
    grad: Tensor,
    coefficients: Tensor,
    rng: Tensor,
    step: int,
    *,
    reference: str,
    reference_scale: Tensor,
    grad_clip: float | None = None,
    clamp: tuple[float | None, float | None] = (None, None),
    backend: str = "auto",
) -> Tensor:
    """Step `step` of `langevin` for an energy that is not an MLP: `grad` [B, d] is dE/dz at z."""
    return torch.ops.mmebm.langevin_update(
        z, grad, coefficients, rng, step, reference, reference_scale, grad_clip, *clamp, backend
    )


# mixture_log_prob ----------------------------------------------------------------------------------------------------


@_implement("mixture_log_prob")
def _mixture_log_prob(z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, backend: str) -> Tensor:
    checks.experts(z, loc, scale, present, law)
    implementation = dispatch.select(backend, "mixture_log_prob", z.device, z.dtype)
    return implementation.mixture_log_prob(z.contiguous(), loc.contiguous(), scale.contiguous(), present, law)


@_fake("mixture_log_prob")
def _(z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, backend: str) -> Tensor:
    checks.experts(z, loc, scale, present, law)
    return z.new_empty(z.shape[:-1])


@_implement("mixture_log_prob_backward")
def _mixture_log_prob_backward(
    g: Tensor, z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, parameters: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    checks.experts(z, loc, scale, present, law)
    checks.tensor("g", g, z.shape[:-1], z)
    implementation = dispatch.select(backend, "mixture_log_prob_backward", z.device, z.dtype)
    dense = (t.contiguous() for t in (g, z, loc, scale))
    return implementation.mixture_log_prob_backward(*dense, present, law, parameters)


@_fake("mixture_log_prob_backward")
def _(
    g: Tensor, z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, parameters: bool, backend: str
) -> Any:
    shape = loc.shape if parameters else (0,)
    return z.new_empty(z.shape), z.new_empty(shape), z.new_empty(shape)


def _save_mixture(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.law, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _mixture_gradient(ctx: Any, g: Tensor) -> Any:
    parameters = any(ctx.needs_input_grad[1:3])
    dz, d_loc, d_scale = torch.ops.mmebm.mixture_log_prob_backward(
        g.contiguous(), *ctx.saved_tensors, ctx.law, parameters, ctx.backend
    )
    return dz, d_loc if parameters else None, d_scale if parameters else None, None, None, None


def _save_nothing(ctx: Any, inputs: Any, output: Any) -> None:
    pass


def _refuse_second(ctx: Any, *grads: Tensor) -> Any:
    raise RuntimeError("mmebm::mixture_log_prob is differentiable once; its gradient has no gradient")


torch.library.register_autograd("mmebm::mixture_log_prob", _mixture_gradient, setup_context=_save_mixture, lib=_library)
torch.library.register_autograd(
    "mmebm::mixture_log_prob_backward", _refuse_second, setup_context=_save_nothing, lib=_library
)


def mixture_log_prob(
    z: Tensor, loc: Tensor, scale: Tensor, present: Tensor | None = None, *, law: str, backend: str = "auto"
) -> Tensor:
    """log (1/n) sum of q_m(z) over a row's n present experts: z [.., B, d], loc and scale [M, B, d] -> [.., B].

    `present` is an int64 bitmask [B] (bit m for expert m; default all); a row with none has the standard law.
    Differentiable once in z, loc and scale.
    """
    if present is None:
        present = torch.full(z.shape[-2:-1], (1 << len(loc)) - 1, dtype=torch.int64, device=z.device)
    return torch.ops.mmebm.mixture_log_prob(z, loc, scale, present, law, backend)
