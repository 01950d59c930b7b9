"""The public MALA call: Langevin proposals that are accepted or rejected, so that the target is exact."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmebm.kernels import ops, reference
from mmebm.kernels.reference import MalaChain

from .adaptation import check_warm_up, warm_up
from .conventions import Size, StepSize, short_run, table
from .info import MalaInfo, refuse_lost, shaped, wants_check
from .streams import advanced, rng_state
from .target import Clamp, Energy, Target


def mala(
    energy: Energy,
    z0: Tensor,
    *,
    steps: int,
    step_size: Size | None = None,
    convention: StepSize | None = None,
    coefficients: Tensor | None = None,
    reference: str | None = None,
    reference_scale: float | Tensor = 1.0,
    bound: float | None = None,
    grad_clip: float | None = None,
    clamp: Clamp | None = None,
    negate: bool = False,
    seed: int | Tensor | None = None,
    offset: int = 0,
    generator: torch.Generator | None = None,
    chain_offset: int = 0,
    record_every: int | None = None,
    precision: str | None = None,
    backend: str = "auto",
    check: str = "auto",
    return_info: bool = False,
    event_dims: int = 1,
    warmup: int = 0,
    target_acceptance: float = 0.574,
) -> Tensor | tuple[Tensor, MalaInfo]:
    """Metropolis-adjusted Langevin steps, which leave exp(-U), U = E - log p_0, as it is; as `langevin` otherwise.

    `warmup` steps come before the `steps` and use the noise of offset..offset+warmup-1: in them the step size, one for
    all chains, moves until the mean acceptance is `target_acceptance` (0.574, Roberts and Rosenthal 1998), and then
    stays. Nothing of them is recorded; `MalaInfo.step_size` has the outcome. With warm-up the step size, and so the
    chains, depend on the whole batch. `clamp` restricts the target to a box: proposals outside it are rejected.
    `MalaInfo` adds `acceptance` and `work` to what `LangevinInfo` has.
    Source: Besag (1994); Roberts and Tweedie (1996).
    """
    checked = wants_check(check, return_info, z0) if isinstance(z0, Tensor) else False
    if record_every is not None and (record_every < 1 or not return_info):
        raise ValueError(f"record_every: expected an integer >= 1 together with return_info=True, got {record_every}")
    target = Target(
        energy, z0, reference=reference, reference_scale=reference_scale, bound=bound, negate=negate,
        event_dims=event_dims, precision=precision, backend=backend, grad_clip=grad_clip, clamp=clamp,
    )  # fmt: skip
    coefficients = table(steps, step_size, convention, coefficients, z0.device)
    size = short_run(step_size) if step_size is not None else convention
    check_warm_up(warmup, target_acceptance, size)
    rng = rng_state(seed, offset, chain_offset, device=z0.device, generator=generator)
    z = target.rows
    if warmup and size is not None:

        def round_of(z: Tensor, size: StepSize, first: int, count: int) -> tuple[Tensor, Tensor]:
            chain = run_mala(target, z, size.coefficients(count, z.device), advanced(rng, first), 0, True)
            return chain.z, chain.acceptance

        z, size = warm_up(z, size, warmup, target_acceptance, round_of)
        coefficients, rng = size.coefficients(steps, z0.device), advanced(rng, warmup)
    chain = run_mala(target, z, coefficients, rng, record_every or 0, return_info)
    if checked:
        refuse_lost(chain.z, coefficients, chain.grad_norm if return_info else None)
    z = target.restored(chain.z)
    if not return_info:
        return z
    return z, MalaInfo(
        **shaped(target, chain), non_finite=0 if checked else None, coefficients=coefficients.clone(), rng=rng,
        backend=target.served_by("mala"), step_size=size,
    )  # fmt: skip


def run_mala(
    target: Target, z: Tensor, coefficients: Tensor, rng: Tensor, record_every: int = 0, statistics: bool = False
) -> MalaChain:
    """K = len(coefficients) steps of the target's chains from z [N, d]."""
    net = target.network
    if net is not None:
        with torch.no_grad():
            return ops.mala(
                z, net.weights, net.biases, coefficients, rng, record_every=record_every, statistics=statistics,
                **target.arguments(), **target.hold,
            )  # fmt: skip
    checked = target.constraints()
    ops.check_loop(z, coefficients, rng, checked)
    draw = partial(ops.draw, backend=target.served_by("mala"))
    with torch.inference_mode(False):
        return reference.adjusted(
            z.clone(), target.energy_and_grad, coefficients, rng, checked, record_every, statistics, draw
        )
