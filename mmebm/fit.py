"""`mmebm fit-prior`: an energy prior for a frozen posterior or for anybody's latents, and its file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmebm.evaluation.classifiers import load_or_train
from mmebm.evaluation.evaluate import joint, posterior_draws, samplers
from mmebm.evaluation.runs import splits
from mmebm.models import MultimodalVAE
from mmebm.priors import EnergyPrior
from mmebm.training.build import build_prior
from mmebm.training.config import Config, load_config, overridden, parse
from mmebm.training.energy import fit_energy_prior, settings_for
from mmebm.training.run import Run, load

# Draws of a run's posterior that stand for it.
LATENTS = 50_000


def save_prior(prior: EnergyPrior, config: Config, folder: Path, *, force: bool = False) -> None:
    """Weights (safetensors) and what rebuilds them (prior.json) in `folder`; a prior there is kept unless `force`."""
    description = folder / "prior.json"
    if description.exists() and not force:
        raise FileExistsError(f"{description}: exists; choose another folder or force")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: t.detach().contiguous().clone() for name, t in prior.state_dict().items()}, folder / "prior.safetensors"
    )
    description.write_text(
        json.dumps({"dim": prior.dim, "prior": config.prior.model_dump(mode="json")}, indent=2) + "\n"
    )


def load_prior(folder: Path | str) -> EnergyPrior:
    """The prior that `save_prior` left in a folder, in evaluation mode."""
    description = Path(folder) / "prior.json"
    if not description.is_file():
        raise FileNotFoundError(f"{folder}: has no prior.json")
    try:
        values = json.loads(description.read_text())
        dim, settings = values["dim"], values["prior"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{description}: expected the dimension and the settings of a prior, {error}") from None
    prior = build_prior(parse({"prior": settings}, str(description)).prior, dim)
    if not isinstance(prior, EnergyPrior):
        raise ValueError(f"{description}: expected an energy prior, got {settings['name']!r}")
    weights = Path(folder) / "prior.safetensors"
    try:
        prior.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{weights}: expected the weights of the prior in prior.json, {error}") from None
    return prior.eval()


def read_latents(path: Path) -> Tensor:
    """Latents [n, d] from a .npy file of numbers."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: expected a .npy file of numbers, {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: expected a .npy file of one array, got an archive of several")
    if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{path}: expected floating latents [n, d], got {array.dtype} {list(array.shape)}")
    latents = torch.from_numpy(array.astype(np.float32))
    bad = (~torch.isfinite(latents)).any(1).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"{path}: expected finite float32 latents, got NaN or infinity in {len(bad)} of {len(latents)} rows, "
            f"the first is row {int(bad[0])}"
        )
    return latents


def fit_prior_of(
    run: Path | None,
    latents: Path | None,
    output: Path | None,
    *,
    updates: int,
    seed: int = 0,
    overrides: Sequence[str] = (),
    force: bool = False,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Fits, saves, and for a run measures: the folder, and joint coherence by sampler on the validation split.

    Settings are `settings_for` the latents, then `overrides` ("prior.bound=20", "train.energy.steps=50").
    """
    if (run is None) == (latents is None):
        raise ValueError("run, latents: expected exactly one of them")
    if latents is not None and output is None:
        raise ValueError("output: expected a folder for a prior fitted to a file of latents")
    for assignment in overrides:
        if not assignment.strip().startswith(("prior.", "train.energy.")):
            raise ValueError(f"--set {assignment!r}: fitting a prior takes keys under prior. and train.energy.")
    overridden({}, overrides)  # a bad key is refused before anything is read
    folder = output or Run.open(run).path / "fitted-prior"  # type: ignore[arg-type]
    if (folder / "prior.json").exists() and not force:
        raise FileExistsError(f"{folder}: holds a fitted prior; choose another folder or force")
    if latents is not None:
        z = read_latents(latents)
    else:
        model, settings = load(run), load_config(Run.open(run).config)  # type: ignore[arg-type]
        z, _ = posterior_draws(model, splits(settings, "train")[0], LATENTS, seed)
    matched, chains = settings_for(z)
    config = overridden({"prior": matched.model_dump(), "train": {"energy": chains.model_dump()}}, overrides)
    if config.prior.name != "energy":
        raise ValueError(f"prior.name: expected 'energy', the prior that is fitted, got {config.prior.name!r}")
    prior = fit_energy_prior(
        z, prior=config.prior, train=config.train.energy, updates=updates, seed=seed, progress=progress
    )
    save_prior(prior, config, folder, force=force)
    if latents is not None:
        return folder, {}
    return folder, _compare(model, prior, settings, seed)


def _compare(model: MultimodalVAE, prior: EnergyPrior, config: Config, seed: int) -> dict[str, dict[str, Any]]:
    train, validation, test = splits(config, "train", "validation", "test")
    classifiers = load_or_train(train, test)
    real = {m: classifiers.features(m, validation.modalities[m]) for m in model.modalities}
    settings = config.evaluate
    ways = samplers(
        model, train, components=settings.mixture_components, latents=settings.mixture_latents, seed=seed
    ) | {"fitted": lambda n, s: prior.sample(n, seed=s)}
    return {
        name: joint(model, draw, classifiers, real, settings.samples, seed).numbers() for name, draw in ways.items()
    }
