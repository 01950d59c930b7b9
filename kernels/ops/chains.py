"""`langevin`, `mala`, and `langevin_update` with its form for loops, `updates`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .. import checks, dispatch
from ..reference import MLP, Chain, Constraints, MalaChain
from .register import HOLD, NET, WHERE, fake, operator, sample, sampler, watched


def _schema(outputs: int) -> str:
    return (
        f"(Tensor z, {NET}, Tensor coefficients, Tensor rng, {HOLD}, int record_every, bool statistics, {WHERE})"
        f" -> ({', '.join(['Tensor'] * outputs)})"
    )


def _run(
    name: str,
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
    """The body of `langevin` and `mala`."""
    checks.network(z, weights, biases, activation, bound)
    checks.coefficients(coefficients, z.device)
    checks.rng(rng, z.device)
    checks.constraints(z, reference, reference_scale, grad_clip, lower, upper)
    checks.at_least("record_every", record_every, 0)
    net = MLP(weights, biases, activation, slope, bound, dispatch.precision(precision))
    hold = Constraints(reference, reference_scale, grad_clip, lower, upper)
    chain = getattr(dispatch.select(backend, name, z.device, z.dtype, net), name)
    return tuple(chain(z.contiguous(), net, coefficients, rng, hold, record_every, statistics))


def _shapes(
    means: int, z: Tensor, weights: Any, biases: Any, activation: str, slope: float, bound: Any, *rest: Any
) -> tuple[Tensor, ...]:
    """Their fake; `means` counts the per-chain outputs."""
    coefficients, rng, reference, scale, clip, lower, upper, record_every, statistics, *_ = rest
    checks.network(z, weights, biases, activation, bound)
    checks.coefficients(coefficients, z.device)
    checks.rng(rng, z.device)
    checks.constraints(z, reference, scale, clip, lower, upper)
    rows = z.shape[0]
    kept = coefficients.shape[0] // record_every if record_every else 0
    measured = [z.new_empty(rows if statistics else 0) for _ in range(means)]
    return z.new_empty(z.shape), z.new_empty(kept, *z.shape), z.new_empty(kept, rows), *measured


@operator("langevin", _schema(6))
def _langevin(*args: Any) -> tuple[Tensor, ...]:
    return _run("langevin", *args)


@fake("langevin")
def _(*args: Any) -> tuple[Tensor, ...]:
    return _shapes(3, *args)


@operator("mala", _schema(8))
def _mala(*args: Any) -> tuple[Tensor, ...]:
    return _run("mala", *args)


@fake("mala")
def _(*args: Any) -> tuple[Tensor, ...]:
    return _shapes(5, *args)


sampler("langevin")
sampler("mala")


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
        *sample(
            "langevin",
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


def mala(
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
) -> MalaChain:
    """K = len(coefficients) Langevin steps with accept/reject: each leaves exp(-U_k), U_k = t E - log p_0, as it is.

    The step of `langevin`, drift and noise, is a proposal z'; it is taken where ln u < log alpha,

        log alpha = U_k(z) - U_k(z') - (|z - z' + a g(z')|^2 - |z' - z + a g(z)|^2) / (2 b^2),

    g being the drift that `langevin` uses (bounded, clipped, times t, plus the reference's). The clamp box restricts
    the target: a proposal outside it is rejected. So is one whose log alpha is NaN, and every one where b = 0. Outputs
    are those of `langevin`, and with `statistics` the fraction of proposals that each chain accepted and the work of
    annealing, the sum over k = 1..K-1 of (t_k - t_{k-1}) E(z_k): what annealed importance sampling weighs by. Means are
    over the current states z_0..z_{K-1}, kept or new; a rejection counts as a step of length 0.
    """
    return MalaChain(
        *sample(
            "mala",
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


def check_loop(z: Tensor, coefficients: Tensor, rng: Tensor, hold: Constraints) -> None:
    """What a loop over chains z [B, d] takes, as the operators check it."""
    checks.tensor("z", z, (None, None))
    checks.coefficients(coefficients, z.device)
    checks.rng(rng, z.device)
    checks.constraints(z, *hold)


def _check_update(z: Tensor, grad: Tensor, coefficients: Tensor, rng: Tensor, step: int, hold: Constraints) -> None:
    check_loop(z, coefficients, rng, hold)
    checks.tensor("grad", grad, z.shape, z)
    if not 0 <= step < coefficients.shape[0]:
        raise ValueError(f"step: expected 0 to {coefficients.shape[0] - 1}, a row of coefficients, got {step}")


@operator(
    "langevin_update",
    f"(Tensor z, Tensor grad, Tensor coefficients, Tensor rng, int step, {HOLD}, str backend) -> Tensor",
)
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


@fake("langevin_update")
def _(z: Tensor, grad: Tensor, coefficients: Tensor, rng: Tensor, step: int, *rest: Any) -> Tensor:
    _check_update(z, grad, coefficients, rng, step, Constraints(*rest[:5]))
    return z.new_empty(z.shape)


sampler("langevin_update")


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
    """Step `step` of `langevin` for an energy that is not an MLP: `grad` [B, d] is dE/dz at z; in a loop, `updates`."""
    return sample(
        "langevin_update", z, grad, coefficients, rng, step, reference, reference_scale, grad_clip, *clamp, backend
    )


def updates(
    z: Tensor,
    coefficients: Tensor,
    rng: Tensor,
    *,
    reference: str,
    reference_scale: Tensor,
    grad_clip: float | None = None,
    clamp: tuple[float | None, float | None] = (None, None),
    backend: str = "auto",
) -> Callable[[Tensor, Tensor, int], Tensor]:
    """`langevin_update` as a function of (z, grad, step), for a loop over chains like z [B, d].

    Arguments are checked now, and a step costs no dispatch unless a mode or a profiler watches; z and grad of a step
    are taken as given, of this z's shape, dtype and device.
    """
    hold = Constraints(reference, reference_scale, grad_clip, *clamp)
    check_loop(z, coefficients, rng, hold)
    if watched():
        held = {"reference": reference, "reference_scale": reference_scale, "grad_clip": grad_clip, "clamp": clamp}
        return lambda z, grad, step: langevin_update(z, grad, coefficients, rng, step, backend=backend, **held)  # type: ignore[arg-type]
    return dispatch.select(backend, "langevin_update", z.device, z.dtype).updates(coefficients, rng, hold)
