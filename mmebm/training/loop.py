"""The variational scheme: encoders and decoders first, the energy second, on the same posterior samples.

For every batch: (1) z ~ q(z|X), reparameterised; (2) one Adam step of encoders and decoders on the model's objective,
in which E's value enters through z while its parameters stand still; (3) chains towards p_alpha; (4) one Adam step of E
with the samples of (1), detached, as positives. Order as in Cui and Han (ICCV 2023), the same group's public code.
After the model's last update (1), (3) and (4) go on for `energy_finish` more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmebm.data import MultimodalDataset
from mmebm.devices import find
from mmebm.kernels.ranges import Range
from mmebm.models import MultimodalVAE
from mmebm.priors import EnergyPrior
from mmebm.sampling.streams import Stream

from .build import build_model
from .config import Config, load_config
from .energy import EnergyUpdate, TrainingDiverged, cosine
from .run import Run

Progress = Callable[[int, dict[str, float]], None]

# What a profiler shows of an update; the energy's has "train/chains" within it.
_MODEL, _ENERGY = Range("train/model"), Range("train/energy")


def batches(rows: int, batch_size: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Row indices of updates `start`, start + 1, ..: a permutation an epoch, incomplete last batches dropped."""
    size = min(batch_size, rows)
    per_epoch = rows // size
    for epoch in range(start // per_epoch, 1 << 62):
        order = torch.randperm(rows, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63)))
        for i in range(start % per_epoch if epoch == start // per_epoch else 0, per_epoch):
            yield order[i * size : (i + 1) * size]


class Trainer:
    """A model, its two optimisers and its noise; `update` makes one step of both."""

    def __init__(self, model: MultimodalVAE, config: Config, device: torch.device | str = "cpu") -> None:
        self.model, self.config = model.train(), config
        train = config.train
        self.parameters = model.model_parameters()
        # Fused: one pass over a network's weights, a tenth to a third of a step on a CPU.
        self.optimiser = torch.optim.Adam(self.parameters, lr=train.learning_rate, amsgrad=train.amsgrad, fused=True)
        self.stream = Stream(config.seed, device=device)
        self.energy: EnergyUpdate | None = None
        if isinstance(model.prior, EnergyPrior):
            # A stream of its own: the model's noise is the same whether or not an energy is trained beside it.
            total = max(1, (config.updates - train.energy_start) * train.energy.repeats)
            noise = Stream(~config.seed, device=device)
            self.energy = EnergyUpdate(model.prior, train.energy, noise, total, train.cuda_graph)
        self.updates = 0

    def energy_weight(self) -> float:
        """What E's value counts in the encoders' objective at this update."""
        train = self.config.train
        if train.energy_enters is None or self.updates < train.energy_enters:
            return 0.0
        return min(1.0, (self.updates - train.energy_enters + 1) / max(1, train.energy_warmup))

    def update(self, inputs: dict[str, Tensor], masks: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        train, metrics = self.config.train, dict[str, Tensor]()
        with _MODEL:
            if self.updates < train.updates:
                weight = self.energy_weight()
                objective = self.model.objective(inputs, self.stream, masks=masks, energy_weight=weight)
                norm = self._descend(objective.loss)
                metrics = {"loss": objective.loss.detach(), "objective": objective.value, "grad_norm": norm}
                metrics |= objective.metrics
                positives: tuple[Tensor, Tensor | None] = objective.z, objective.weights
            else:
                positives = self.model.positives(inputs, self.stream, masks=masks)
        if self.energy is not None and self.updates >= train.energy_start:
            with _ENERGY:
                for _ in range(train.energy.repeats):
                    measured = self.energy.step(*positives)
            metrics |= measured
        self.updates += 1
        return metrics

    def _descend(self, loss: Tensor) -> Tensor:
        """One step of encoders and decoders; the norm of their gradient."""
        train = self.config.train
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norms = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        factor = cosine(self.updates, train.updates) if train.decay == "cosine" else 1.0
        self.optimiser.param_groups[0]["lr"] = train.learning_rate * factor
        self.optimiser.step()
        return norms

    def check(self, metrics: dict[str, float]) -> None:
        """Raises `TrainingDiverged` with the quantity that left its range."""
        train = self.config.train
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingDiverged(f"update {self.updates}: {name} is {value}")
        for name, limit in (
            ("posterior_scale", train.largest_scale),
            ("chain_scale", train.largest_scale),
            ("E_gap", train.energy.largest_gap),
        ):
            if abs(metrics.get(name, 0.0)) > limit:
                raise TrainingDiverged(
                    f"update {self.updates}: {name} is {metrics[name]:.4g}, over {limit:g}. The energy outruns p_0 or "
                    "the chains: hold it with prior.spectral_norm or prior.bound, lower train.energy.learning_rate, "
                    "or start it later (train.energy_start)"
                )

    # Checkpoints: tensors and counters, never pickles.

    def tensors(self) -> dict[str, Tensor]:
        tensors = _optimiser_tensors("model", self.optimiser)
        if self.energy is not None:
            tensors |= _optimiser_tensors("energy", self.energy.optimiser)
            if self.energy.chains.states is not None:
                tensors["chains"] = self.energy.chains.states
        return tensors

    def counters(self) -> dict[str, Any]:
        energy = {} if self.energy is None else {"energy": self.energy.state()}
        return {"updates": self.updates, "offset": self.stream.offset} | energy

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        self.updates, self.stream.offset = counters["updates"], counters["offset"]
        _load_optimiser("model", self.optimiser, tensors)
        if self.energy is not None:
            self.energy.updates, self.energy.stream.offset = counters["energy"]["updates"], counters["energy"]["offset"]
            _load_optimiser("energy", self.energy.optimiser, tensors)
            self.energy.chains.states = tensors.get("chains")
            if self.energy.graph is not None:
                self.energy.graph.forget()


def _optimiser_tensors(name: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"{name}.{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def _load_optimiser(name: str, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    whole = optimiser.state_dict()
    for key, value in tensors.items():
        owner, _, rest = key.partition(".")
        if owner == name:
            index, _, field = rest.partition(".")
            whole["state"].setdefault(int(index), {})[field] = value
    optimiser.load_state_dict(whole)


def train(
    config: Config,
    data: MultimodalDataset,
    run_folder: Path | str,
    *,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> MultimodalVAE:
    """Trains the configured model on `data` and leaves weights, state and metrics in `run_folder`.

    `resume` continues the run found there, bit for bit on the same machine. Errors: FileExistsError for a folder in
    use, ValueError for a resumed run of another configuration, TrainingDiverged when a quantity leaves its
    range; the last checkpoint before that stays.
    """
    if config.prior.name == "energy" and config.prior.reference_scale == "matched":
        raise ValueError(
            "prior.reference_scale: 'matched' is for priors fitted to given latents; training takes a number"
        )
    if resume and load_config(Run.open(run_folder).config) != config:
        raise ValueError(f"resume: expected the configuration in {run_folder}, got another one")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = find(config.device)
    for m in data.vocabularies:
        if (likelihood := config.model.likelihoods.get(m, config.model.likelihood)) != "categorical":
            raise ValueError(f"model.likelihoods.{m}: expected 'categorical' for words, got {likelihood!r}")
    data = data.to(device)
    model = build_model(config, data.shapes).to(device)
    trainer = Trainer(model, config, device)
    if resume:
        run = Run.open(run_folder)
        trainer.restore(*run.restore(model))
        run.keep_rows_until(trainer.updates)
    else:
        run = Run.create(run_folder, config, data.shapes, force=force)
        run.save(model, trainer.tensors(), trainer.counters())
    settings = config.train
    began, counted = time.perf_counter(), trainer.updates
    for index in batches(len(data), settings.batch_size, config.seed, trainer.updates):
        if trainer.updates >= config.updates:
            break
        metrics = trainer.update(data.batch(index), data.observed(index))
        done = trainer.updates
        last = done == config.updates
        logged, kept = done % settings.log_every == 0 or last, done % settings.checkpoint_every == 0 or last
        row = {name: float(value) for name, value in metrics.items()} if logged or kept else {}
        if logged:
            rate = (done - counted) / (time.perf_counter() - began)
            began, counted = time.perf_counter(), done
            run.log({"update": done, **row, "updates_per_second": round(rate, 3)})
        try:
            trainer.check(row)
        except TrainingDiverged as error:
            good = run.counters()["updates"]
            raise TrainingDiverged(f"{error}. {run.path} keeps the checkpoint of update {good}") from None
        if kept:
            run.save(model, trainer.tensors(), trainer.counters())
        if logged and progress is not None:
            progress(done, row | {"updates_per_second": rate})
    return model.eval()
