"""The public Langevin call: settings made explicit, then one operator for all steps of all chains."""

from __future__ import annotations

import torch
from torch import Tensor

from mmebm.kernels import ops
from mmebm.kernels.reference import Chain

from . import again, graphs
from .conventions import Size, StepSize, table
from .info import LangevinInfo, refuse_lost, shaped, wants_check
from .streams import integers, rng_state
from .target import Clamp, Energy, Target


def langevin(
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
    offset: int | Tensor = 0,
    generator: torch.Generator | None = None,
    chain_offset: int = 0,
    record_every: int | None = None,
    precision: str | None = None,
    backend: str = "auto",
    check: str = "auto",
    return_info: bool = False,
    event_dims: int = 1,
) -> Tensor | tuple[Tensor, LangevinInfo]:
    """`steps` unadjusted Langevin steps of U = E - log p_0 from every state of z0 [.., d]; returns z like z0, detached.

    `energy`: an `EnergyMLP`, an `nn.Sequential` recognised as one (parameters live, weight and spectral norm included),
    or a callable z [B, d] -> [B] or [B, 1], which runs step by step with autograd; low is probable, `negate=True` says
    that it gives f = -E. Exactly one of `step_size` (short-run: a = s^2/2, b = s; a number or one a step), `convention`
    (`physics(eta)`, `welling_teh(eps)`, ..) and `coefficients` [steps, 3] = (a, b, t). `reference`: "laplace", "normal"
    or None, with `reference_scale` a number or [d]. `bound` c makes E into c tanh(E / c); `grad_clip` caps |dE/dz| per
    chain and step; `clamp` = (lo, hi) the state. `event_dims` > 1: a state has that many dimensions, as an image of
    [C, H, W] has 3; a callable sees [B, *event]. float64 is served by the reference backend (`info.backend`).

    Noise depends on (seed, offset + step, chain_offset + row) alone: a batch may be split over rows, and K over calls
    with advanced offsets, and give the same chains. Without `seed` one 64-bit integer is drawn from `generator`, else
    from torch's default generator on z0's device, and that is all a call takes of it.
    `check`: "auto" raises `NonFiniteChains` in eager CPU calls and where info is returned, "raise" always, "off" never.
    `record_every` n with `return_info` keeps every n-th state and energy in the `LangevinInfo`.
    Errors: ValueError or TypeError naming the argument; RuntimeError for derivatives asked of a sample.
    """
    checked = wants_check(check, return_info, z0) if isinstance(z0, Tensor) else False
    if record_every is not None and (record_every < 1 or not return_info):
        raise ValueError(f"record_every: expected an integer >= 1 together with return_info=True, got {record_every}")
    kind = None
    if not (return_info or negate) and convention is coefficients is None and event_dims == 1:
        lower, upper = clamp or (None, None)
        kind, plan = again.find(
            energy, z0, seed, offset, chain_offset, steps, step_size, reference, reference_scale, bound, grad_clip,
            lower, upper, precision, backend,
        )  # fmt: skip
        if plan is not None and not isinstance(seed, Tensor) and not isinstance(offset, Tensor):
            z, finite = plan.chain(z0, *integers(seed, offset, chain_offset, device=z0.device, generator=generator))
            if checked and not finite:
                refuse_lost(z, plan.table, None)
            return z
    target = Target(
        energy, z0, reference=reference, reference_scale=reference_scale, bound=bound, negate=negate,
        event_dims=event_dims, precision=precision, backend=backend, grad_clip=grad_clip, clamp=clamp,
    )  # fmt: skip
    coefficients = table(steps, step_size, convention, coefficients, z0.device)
    rng = rng_state(seed, offset, chain_offset, device=z0.device, generator=generator)
    chain = run_langevin(target, coefficients, rng, record_every or 0, return_info)
    if checked:
        refuse_lost(chain.z, coefficients, chain.grad_norm if return_info else None)
    if kind is not None:
        again.keep(energy, kind, target, coefficients)
    z = target.restored(chain.z)
    if not return_info:
        return z
    return z, LangevinInfo(
        **shaped(target, chain), non_finite=0 if checked else None, coefficients=coefficients.clone(), rng=rng,
        backend=target.served_by("langevin"),
    )  # fmt: skip


def run_langevin(
    target: Target, coefficients: Tensor, rng: Tensor, record_every: int = 0, statistics: bool = False
) -> Chain:
    """K = len(coefficients) steps of the target's chains from its rows."""
    run = _loop if target.network is None else _operator
    if target.rows.is_cuda:
        return graphs.run(run, target, coefficients, rng, record_every, statistics)
    return run(target, coefficients, rng, record_every, statistics)


def _operator(target: Target, coefficients: Tensor, rng: Tensor, record_every: int, statistics: bool) -> Chain:
    """A network: one operator for all steps."""
    net = target.network
    if net is None:
        raise TypeError("energy: a callable has no operator")
    with torch.no_grad():
        return ops.langevin(
            target.rows, net.weights, net.biases, coefficients, rng, record_every=record_every, statistics=statistics,
            **target.arguments(), **target.hold,
        )  # fmt: skip


def _loop(target: Target, coefficients: Tensor, rng: Tensor, record_every: int, statistics: bool) -> Chain:
    """An energy that is not an MLP: autograd for its gradient, one operator for the update."""
    steps, rows = len(coefficients), len(target.rows)
    update = ops.updates(target.rows, coefficients, rng, backend=target.backend, **target.hold)
    states, energies = [], []
    # A caller in inference mode sees no difference; the clone is an ordinary tensor.
    with torch.inference_mode(False), torch.enable_grad():
        z = target.rows.clone()
        totals = z.new_zeros(3, rows if statistics else 0)
        for k in range(steps):
            e, grad = target.differentiate(z.requires_grad_())
            before, z = z.detach(), update(z.detach(), grad, k)
            if statistics:
                totals += torch.stack((e, grad.norm(dim=1), (z - before).norm(dim=1)))
            if record_every and (k + 1) % record_every == 0:
                states.append(z.detach())
                energies.append(target.energy(z))
    kept = torch.stack(states) if states else z.new_empty(0, *z.shape)
    left = torch.stack(energies) if energies else z.new_empty(0, rows)
    return Chain(z.detach(), kept, left, *(totals / max(1, steps)))
