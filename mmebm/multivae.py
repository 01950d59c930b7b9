"""A sampler for models of MultiVae (Senellart et al. 2025): an energy prior where its Gaussian mixture would stand.

sampler = EnergyPriorSampler(model)
sampler.fit(train_data)
JointCoherenceEvaluator(model, classifiers, test_data, sampler=sampler)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmebm.priors import EnergyPrior
from mmebm.sampling.streams import Stream, fresh_seed
from mmebm.training import fit_energy_prior


class EnergyPriorSampler:
    """`fit` and `sample` as MultiVae's evaluators and users call them; nothing of MultiVae is needed to import it.

    `model` has `encode(batch)` that gives z [B, d] and, where it has several latent spaces (`multiple_latent_spaces`),
    `modalities_z` by name: each gets an energy prior of its own. `options` go to `mmebm.fit_energy_prior` (updates,
    batch_size, prior, train). Chains are numbered through all calls, so that no two share noise.
    """

    name = "EnergyPriorSampler"

    def __init__(self, model: Any, sampler_config: Any = None, *, seed: int | None = None, **options: Any) -> None:
        self.model, self.sampler_config, self.options = model.eval(), sampler_config, options
        self.seed = int(fresh_seed()) if seed is None else seed
        self.priors: dict[str, EnergyPrior] = {}
        self._streams: dict[str, Stream] = {}

    @property
    def is_fitted(self) -> bool:
        return bool(self.priors)

    @torch.no_grad()
    def fit(self, train_data: Any, batch_size: int = 100, **options: Any) -> EnergyPriorSampler:
        """An energy prior on the codes of `train_data`, an index-able dataset of the model's."""
        codes: dict[str, list[Tensor]] = {}
        for batch in DataLoader(train_data, batch_size=batch_size, shuffle=False):
            for space, z in self._codes(self.model.encode(_on(batch, self._device()))):
                codes.setdefault(space, []).append(z)
        if not codes:
            raise ValueError("train_data: expected at least one row, got none")
        with torch.enable_grad():
            settings = {"seed": self.seed, **self.options, **options}
            self.priors = {space: fit_energy_prior(torch.cat(parts), **settings) for space, parts in codes.items()}
        self._streams = {space: Stream(self.seed + i) for i, space in enumerate(self.priors)}
        return self

    @torch.no_grad()
    def sample(self, n_samples: int = 1, batch_size: int = 500, **_: Any) -> Any:
        """What `model.decode` takes: z [n, d], `one_latent_space`, and `modalities_z` where the model has several."""
        if not self.is_fitted:
            raise ArithmeticError("the sampler has to be fitted before it samples: call fit(train_data)")
        drawn = {space: self._draws(space, n_samples, batch_size) for space in self.priors}
        z = drawn.pop("")
        found: dict[str, Any] = {"z": z, "one_latent_space": not drawn}
        if drawn:
            found["modalities_z"] = drawn
        # MultiVae's own type where its models are in use.
        output = getattr(sys.modules.get("multivae.models.base"), "ModelOutput", SimpleNamespace)
        return output(**found)

    def _draws(self, space: str, n: int, batch_size: int) -> Tensor:
        prior, stream = self.priors[space], self._streams[space]
        parts = []
        for first in range(0, n, batch_size):
            rows = min(batch_size, n - first)
            at = int(stream.take(max(1, prior.steps))[1])
            parts.append(prior.sample(rows, seed=stream.seed, offset=at))
        return torch.cat(parts) if parts else torch.empty(0, prior.dim)

    def _codes(self, encoded: Any) -> Iterator[tuple[str, Tensor]]:
        yield "", encoded.z
        if getattr(self.model, "multiple_latent_spaces", False):
            yield from encoded.modalities_z.items()

    def _device(self) -> torch.device:
        parameter = next(iter(self.model.parameters()), None)
        return torch.device("cpu") if parameter is None else parameter.device


def _on(batch: Any, device: torch.device) -> Any:
    """MultiVae's batches hold {modality: tensor} in `data`, and masks where modalities are missing."""
    for part in ("data", "masks"):
        values = batch.get(part) if hasattr(batch, "get") else getattr(batch, part, None)
        if isinstance(values, dict):
            for name, value in values.items():
                values[name] = value.to(device) if isinstance(value, Tensor) else value
    return batch
