"""The energy's update: lower E where the posterior is, raise it where the chains go.

    grad_alpha L = E_{p_alpha}[grad_alpha E] - E_q[grad_alpha E]   (Pang et al. 2020; Yuan et al. 2024)

Positives are posterior samples with the weights that their energies have in the model's objective; negatives are chains
from p_0, fresh at every update or persistent (Tieleman 2008) with a share of them restarted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmebm.kernels.ranges import ranged
from mmebm.priors import EnergyPrior
from mmebm.sampling.streams import Chains, Stream

from .build import build_prior
from .config import EnergyTrainConfig, PriorConfig
from .graph import UpdateGraph


class TrainingDiverged(RuntimeError):
    """A quantity left the finite or the plausible; the message names it."""


def cosine(update: int, total: int, floor: float = 0.01) -> float:
    """Learning-rate factor from 1 to `floor` over `total` updates."""
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, update / max(1, total))))


class EnergyUpdate:
    """One Adam over the prior's parameters, its chains and their noise; `total` updates set the decay's length.

    `cuda_graph`: from the fourth update on a replay makes the whole of it; prior and stream are on a CUDA device.
    """

    def __init__(
        self, prior: EnergyPrior, config: EnergyTrainConfig, stream: Stream, total: int, cuda_graph: bool = False
    ) -> None:
        self.prior, self.config, self.stream, self.total = prior, config, stream, total
        parameters = [p for p in prior.parameters() if p.requires_grad]
        # A graph reads the learning rate where it lies.
        rate = torch.tensor(config.learning_rate, device=stream.device) if cuda_graph else config.learning_rate
        self.optimiser = torch.optim.Adam(parameters, lr=rate, betas=config.betas, capturable=cuda_graph)
        self.updates = 0
        self.chains = Chains(stream, config.persistent, config.reinitialise)
        self.graph = UpdateGraph(self.update, self.chains) if cuda_graph else None

    @ranged("train/chains")
    def negatives(self) -> Tensor:
        """[chains, d]: `steps` more steps of the persistent chains, or of fresh ones."""
        config, prior = self.config, self.prior

        def start(rng: Tensor) -> Tensor:
            return prior.sample_reference(config.chains, seed=rng[0], offset=rng[1])

        def run(z: Tensor, rng: Tensor) -> Tensor:
            return prior.chain(  # type: ignore[return-value]
                z, steps=config.steps, step_size=config.step_size, seed=rng[0], offset=rng[1], check="off"
            )

        return self.chains.advance(config.chains, config.steps, start, run)

    def step(self, positives: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        """One update from positives [n, d] and their weights [n], which sum to 1 (default uniform)."""
        positives = positives.detach().reshape(-1, self.prior.dim)
        n = len(positives)
        weights = positives.new_full((n,), 1.0 / n) if weights is None else weights.detach().reshape(-1)
        factor = cosine(self.updates, self.total) if self.config.decay == "cosine" else 1.0
        group = self.optimiser.param_groups[0]
        if self.graph is None:
            group["lr"] = self.config.learning_rate * factor
            metrics = self.update(positives, weights)
        else:
            group["lr"].fill_(self.config.learning_rate * factor)
            metrics = self.graph.run(positives, weights)
        self.updates += 1
        return metrics

    def update(self, positives: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Chains, loss, backward and optimiser, as they are captured: nothing here waits for the device."""
        config, prior, n = self.config, self.prior, len(positives)
        negatives = self.negatives()
        energies = prior.energy_of(torch.cat((positives, negatives)))
        e_pos, e_neg = (weights * energies[:n]).sum(), energies[n:].mean()
        loss = e_pos - e_neg
        if config.regularisation:
            squares = energies.square()
            loss = loss + config.regularisation * ((weights * squares[:n]).sum() + squares[n:].mean())
        if prior.log_scale.requires_grad:
            log_p0 = prior.reference_log_prob(torch.cat((positives, negatives)))
            loss = loss - ((weights * log_p0[:n]).sum() - log_p0[n:].mean())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        limit = math.inf if config.max_grad_norm is None else config.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.optimiser.param_groups[0]["params"], limit)
        self.optimiser.step()
        return {
            "E_q": e_pos.detach(),
            "E_p": e_neg.detach(),
            "E_gap": (e_pos - e_neg).detach(),
            "energy_grad_norm": norm,
            "chain_scale": negatives.square().mean().sqrt(),
        }

    def state(self) -> dict[str, Any]:
        """Counters, for a checkpoint; tensors are the optimiser's and `chains`."""
        return {"updates": self.updates, "offset": self.stream.offset}


def settings_for(z: Tensor) -> tuple[PriorConfig, EnergyTrainConfig]:
    """Settings on the scale of latents z [n, d]: p_0 matched, the energy's input and the chains' step in units of z.

    With s the mean standard deviation of z's coordinates, input_scale = step_size = s / 6: docs/training.md, measured
    on latents with s = 0.5, where an input scale of 1 left the energy far too smooth to resolve the modes.
    """
    if bool((z == z[0]).all()):
        raise ValueError(f"z: expected rows that differ, got {len(z)} equal: their spread sets every scale")
    unit = float(z.std(0, correction=0).mean()) / 6.0
    prior = PriorConfig(reference_scale="matched", input_scale=unit, step_size=unit)
    return prior, EnergyTrainConfig(step_size=unit)


def match_reference(prior: EnergyPrior, z: Tensor) -> None:
    """Set p_0's scale to the maximum-likelihood one of z [n, d] (location 0)."""
    spread = z.abs().mean(0) if prior.reference == "laplace" else z.square().mean(0).sqrt()
    with torch.no_grad():
        prior.log_scale.copy_(spread.clamp_min(1e-6).log())


def fit_energy_prior(
    z: Tensor,
    *,
    prior: PriorConfig | None = None,
    train: EnergyTrainConfig | None = None,
    updates: int = 3000,
    batch_size: int = 512,
    seed: int = 0,
    progress: Callable[[int, dict[str, float]], None] | None = None,
    log_every: int = 100,
) -> EnergyPrior:
    """Fit an energy-based prior to latents z [n, d] of a frozen posterior, or anybody's latents.

    `prior` and `train` default to `settings_for(z)`. Every update takes `batch_size` rows of z as positives.
    `progress(update, metrics)` is called every `log_every` updates. Errors: ValueError for empty, non-finite or
    misshapen z; TrainingDiverged.
    """
    if not isinstance(z, Tensor) or z.dim() != 2 or z.numel() == 0:
        raise ValueError(f"z: expected latents [n, d] with n, d >= 1, got {getattr(z, 'shape', type(z).__name__)}")
    if not bool(torch.isfinite(z).all()):
        raise ValueError(f"z: expected finite numbers, got {int((~torch.isfinite(z)).any(1).sum())} rows that are not")
    z = z.detach().float()
    if prior is None or train is None:
        matched = settings_for(z)
        prior, train = prior or matched[0], train or matched[1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fitted = build_prior(prior.model_copy(update={"name": "energy"}), z.shape[1])
    if not isinstance(fitted, EnergyPrior):
        raise TypeError("prior: expected the configuration of an energy prior")
    if prior.reference_scale == "matched":
        match_reference(fitted, z)
    update = EnergyUpdate(fitted, train, Stream(seed, device=z.device), updates)
    rows = torch.Generator().manual_seed(seed)
    for i in range(1, updates + 1):
        metrics = update.step(z[torch.randint(len(z), (min(batch_size, len(z)),), generator=rows)])
        if i % log_every == 0 or i == updates:
            values = {name: float(value) for name, value in metrics.items()}
            if not all(map(math.isfinite, values.values())) or abs(values["E_gap"]) > train.largest_gap:
                raise TrainingDiverged(f"the energy diverged at update {i}: {values}")
            if progress is not None:
                progress(i, values)
    return fitted.eval()
