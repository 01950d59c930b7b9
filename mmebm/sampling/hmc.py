"""Hamiltonian Monte Carlo for any energy: leapfrog trajectories with accept/reject, all chains in one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from mmebm.kernels import checks, ops
from mmebm.kernels.reference import MalaChain
from mmebm.kernels.reference.langevin import reference_gradient
from mmebm.kernels.reference.noise import MOMENTUM, log_uniform

from .adaptation import check_warm_up, warm_up
from .conventions import StepSize
from .info import MalaInfo, refuse_lost, shaped, wants_check
from .streams import advanced, rng_state
from .target import Energy, Target


def hmc(
    energy: Energy,
    z0: Tensor,
    *,
    steps: int,
    step_size: float,
    leapfrog: int = 10,
    reference: str | None = None,
    reference_scale: float | Tensor = 1.0,
    bound: float | None = None,
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
    target_acceptance: float = 0.651,
) -> Tensor | tuple[Tensor, MalaInfo]:
    """`steps` trajectories of `leapfrog` steps of length `step_size`, momenta N(0, I); the target exp(-U) is exact.

    Arguments, shapes, warm-up and errors are those of `mala`; `target_acceptance` by default as Beskos et al. (2013)
    have it. The noise of trajectory k is that of step offset + k: purpose 5 for momenta, 2 for accept/reject. In the
    info, `displacement` is that of a whole trajectory and `step_size` says leapfrog steps: a = step_size^2 / 2,
    b = step_size, a trajectory of one leapfrog step being MALA's proposal. Source: Duane et al. (1987); Neal (2011).
    """
    checked = wants_check(check, return_info, z0) if isinstance(z0, Tensor) else False
    if record_every is not None and (record_every < 1 or not return_info):
        raise ValueError(f"record_every: expected an integer >= 1 together with return_info=True, got {record_every}")
    checks.at_least("leapfrog", leapfrog, 1)
    checks.at_least("steps", steps, 0)
    target = Target(
        energy, z0, reference=reference, reference_scale=reference_scale, bound=bound, negate=negate,
        event_dims=event_dims, precision=precision, backend=backend,
    )  # fmt: skip
    size = _leapfrog_size(step_size)
    check_warm_up(warmup, target_acceptance, size)
    rng = rng_state(seed, offset, chain_offset, device=z0.device, generator=generator)
    with torch.inference_mode(False), torch.no_grad():
        chains = _Trajectories(target, rng, leapfrog)
        if warmup:

            def round_of(chains: _Trajectories, size: StepSize, first: int, count: int) -> tuple[_Trajectories, Tensor]:
                accepted = [chains.step(size.b[0], first + k) for k in range(count)]
                return chains, torch.stack(accepted).mean(0)

            chains, size = warm_up(chains, size, warmup, target_acceptance, round_of)
        rng, info = advanced(rng, warmup), _Record(chains, record_every or 0)
        for k in range(steps):
            info.before(chains)
            info.after(chains, chains.step(size.b[0], warmup + k))
    table = size.coefficients(steps, z0.device)
    if checked:
        refuse_lost(chains.z, table, None)
    z = target.restored(chains.z)
    if not return_info:
        return z
    return z, MalaInfo(
        **shaped(target, info.result(chains.z, steps)), non_finite=0 if checked else None, coefficients=table, rng=rng,
        backend=target.served_by("energy_and_grad"), step_size=size,
    )  # fmt: skip


def _leapfrog_size(step_size: float) -> StepSize:
    checks.positive("step_size", step_size)
    return StepSize("leapfrog", (step_size * step_size / 2.0,), (float(step_size),))


class _Trajectories:
    """States with their potential and its gradient, carried over from trajectory to trajectory."""

    def __init__(self, target: Target, rng: Tensor, leapfrog: int) -> None:
        self.target, self.rng, self.leapfrog = target, rng, leapfrog
        self.backend = target.served_by("energy_and_grad")
        self.z = target.rows.clone()
        self.energy, self.grad, self.potential, self.force = self._evaluate(self.z)

    def _evaluate(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """E, dE/dz, U and dU/dz."""
        hold = self.target.hold
        energy, grad = self.target.energy_and_grad(z)
        pull = reference_gradient(z, hold["reference"], hold["reference_scale"])
        return energy, grad, energy + self.target.minus_log_reference(z), grad if pull is None else grad + pull

    def step(self, size: float, k: int) -> Tensor:
        """One trajectory; which chains accepted, as numbers [N]."""
        rng = advanced(self.rng, k)
        rows, dim = self.z.shape
        start = ops.draw(rng, 1, rows, dim, law="normal", purpose=MOMENTUM, backend=self.backend)[0].to(self.z.dtype)
        z, p = self.z, start - 0.5 * size * self.force
        for i in range(self.leapfrog):
            z = z + size * p
            energy, grad, potential, force = self._evaluate(z)
            p = p - (size if i + 1 < self.leapfrog else 0.5 * size) * force
        log_alpha = self.potential - potential + 0.5 * (start.square() - p.square()).sum(1)
        accept = log_uniform(rng, 1, rows)[0] < log_alpha  # a NaN compares false: it rejects
        column = accept.unsqueeze(1)
        self.z, self.grad, self.force = (
            torch.where(column, new, old) for new, old in ((z, self.z), (grad, self.grad), (force, self.force))
        )
        self.energy = torch.where(accept, energy, self.energy)
        self.potential = torch.where(accept, potential, self.potential)
        return accept.to(z.dtype)


class _Record:
    """Every n-th state with its energy, and sums over the states that trajectories start from."""

    def __init__(self, chains: _Trajectories, every: int) -> None:
        self.every, self.steps = every, 0
        self.states: list[Tensor] = []
        self.energies: list[Tensor] = []
        self.sums = chains.z.new_zeros(4, len(chains.z))
        self.left = chains.z

    def before(self, chains: _Trajectories) -> None:
        self.left = chains.z
        self.sums[:2] += torch.stack((chains.energy, chains.grad.norm(dim=1)))

    def after(self, chains: _Trajectories, accepted: Tensor) -> None:
        self.sums[2:] += torch.stack(((chains.z - self.left).norm(dim=1), accepted))
        self.steps += 1
        if self.every and self.steps % self.every == 0:
            self.states.append(chains.z)
            self.energies.append(chains.energy)

    def result(self, z: Tensor, steps: int) -> MalaChain:
        """As MALA's chains give it; nothing anneals, so there is no work."""
        states = torch.stack(self.states) if self.states else z.new_empty(0, *z.shape)
        energies = torch.stack(self.energies) if self.energies else z.new_empty(0, len(z))
        means = [*(self.sums / max(1, steps)), z.new_zeros(len(z))]
        return MalaChain(z, states, energies, *means)
