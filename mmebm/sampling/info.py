"""What chains tell beside where they end, and the error for those that left the finite numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmebm.kernels.reference import Chain, MalaChain

from .conventions import StepSize
from .report import SamplerReport, summarise
from .target import Target

NAMED = 8  # lost chains that a message names


class NonFiniteChains(RuntimeError):
    """Some chains left the finite numbers; the message says how many, which, and what to look at."""


@dataclass(frozen=True)
class LangevinInfo:
    """What chains [*batch] of states [*event] can tell; `states` and `energies` are empty without `record_every`."""

    states: Tensor  # [K // n, *batch, *event], after steps n, 2n, ..
    energies: Tensor  # [K // n, *batch]
    mean_energy: Tensor  # [*batch], over z_0..z_{K-1}
    grad_norm: Tensor  # [*batch], mean |dE/dz| before the clip
    displacement: Tensor  # [*batch], mean |z_{k+1} - z_k|
    non_finite: int | None  # chains; None where check="off"
    coefficients: Tensor  # [K, 3] = (a, b, t)
    rng: Tensor  # [3] = (seed, offset, first chain) at the first step
    backend: str  # what ran the chains: float64 is served by "reference"

    @property
    def trajectory(self) -> Tensor:
        """The recorded states, chain first: [chain, draw, *event], the batch flattened to chains."""
        batch = self.mean_energy.dim()
        return self.states.flatten(1, batch).movedim(0, 1) if batch else self.states.unsqueeze(0)

    @property
    def energy_trajectory(self) -> Tensor:
        """The recorded energies: [chain, draw]."""
        return self.energies.reshape(len(self.energies), -1).T

    def report(self, discard: int = 0) -> SamplerReport:
        """Diagnostics of the recorded draws but the first `discard`. Errors: ValueError where nothing is recorded."""
        draws = _kept(self.trajectory, discard)
        acceptance = getattr(self, "acceptance", None)
        return summarise(
            draws,
            energies=self.energy_trajectory[:, discard:],
            acceptance=None if acceptance is None else acceptance.reshape(-1),
            non_finite=~torch.isfinite(draws).flatten(1).all(1),
        )

    def to_dict(self, name: str = "z", discard: int = 0) -> dict[str, dict[str, Any]]:
        """Groups of NumPy arrays [chain, draw, ..] as `arviz.from_dict` takes them: posterior, sample_stats."""
        return {
            "posterior": {name: _kept(self.trajectory, discard).cpu().numpy()},
            "sample_stats": {"energy": self.energy_trajectory[:, discard:].cpu().numpy()},
        }

    def to_arviz(self, name: str = "z", discard: int = 0) -> Any:
        """The same as ArviZ's own data type. Errors: ImportError where arviz is not installed."""
        groups = self.to_dict(name, discard)
        try:
            import arviz
        except ImportError as error:
            raise ImportError("to_arviz needs ArviZ (pip install arviz); to_dict needs nothing") from error
        if int(arviz.__version__.partition(".")[0]) >= 1:
            return arviz.from_dict(groups)
        return arviz.from_dict(**groups)


@dataclass(frozen=True)
class MalaInfo(LangevinInfo):
    """Of chains with accept/reject. The means, acceptance included, are over the steps after warm-up."""

    acceptance: Tensor  # [*batch], the share of accepted proposals
    step_size: StepSize | None  # the one in use after warm-up; None where `coefficients` were given
    work: Tensor  # [*batch], sum over k >= 1 of (t_k - t_{k-1}) E(z_k): what annealing weighs by


def _kept(trajectory: Tensor, discard: int) -> Tensor:
    draws = trajectory.shape[1]
    if draws == 0:
        raise ValueError("record_every: nothing is recorded; ask langevin for record_every=1 and return_info=True")
    if not 0 <= discard < draws:
        raise ValueError(f"discard: expected 0 to {draws - 1}, fewer than the recorded draws, got {discard}")
    return trajectory[:, discard:]


def shaped(target: Target, chain: Chain | MalaChain) -> dict[str, Any]:
    """What a chain of rows measured, by field and in the caller's shape."""
    measured = chain._asdict()
    del measured["z"]
    states = target.restored(measured.pop("states"))
    return {"states": states} | {name: target.restored_chains(value) for name, value in measured.items()}


def wants_check(check: str, informed: bool, z: Tensor) -> bool:
    """Whether this call looks for lost chains: "auto" in eager CPU calls and where info is returned."""
    if check == "auto":
        return informed or (z.is_cpu and not torch.compiler.is_compiling())
    if check not in ("raise", "off"):
        raise ValueError(f"check: expected 'auto', 'raise' or 'off', got {check!r}")
    return check == "raise"


def refuse_lost(z: Tensor, table: Tensor, grad_norm: Tensor | None) -> None:
    """Raise `NonFiniteChains` if rows of z [N, d] are lost."""
    # A sum of finite numbers may overflow, but one with NaN or infinity in it is never finite.
    if math.isfinite(z.sum().item()):
        return
    finite = torch.isfinite(z).all(dim=1)
    lost = (~finite).nonzero().flatten().tolist()
    if lost:
        raise NonFiniteChains(_explain(lost, len(z), table, None if grad_norm is None else grad_norm[finite]))


def _explain(lost: Sequence[int], chains: int, table: Tensor, grad_norm: Tensor | None) -> str:
    a, b, _ = table.max(dim=0).values.tolist()
    seen = (
        "" if grad_norm is None or not len(grad_norm) else f", mean |dE/dz| of the finite ones {grad_norm.mean():.4g}"
    )
    names = ", ".join(map(str, lost[:NAMED])) + (", .." if len(lost) > NAMED else "")
    return (
        f"{len(lost)} of {chains} chains are not finite after {len(table)} steps: {names} "
        f"(largest a={a:.4g}, b={b:.4g}{seen}). "
        "Take smaller steps, or hold the energy with bound=, grad_clip= or a spectral norm."
    )
