"""Evaluation and figures of a run folder: data, classifiers and files around `evaluate` and `figures`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmebm import data
from mmebm.data import MultimodalDataset
from mmebm.devices import find
from mmebm.models import MultimodalVAE
from mmebm.priors import EnergyPrior
from mmebm.training.config import Config, load_config
from mmebm.training.run import Run, load

from . import figures
from .classifiers import Classifiers, is_picture, judged, load_or_train
from .coherence import class_entropy, joint_coherence
from .evaluate import evaluate
from .fid import inception

# Images a block of the grids, which keeps a figure within a page's width.
JOINT, CROSS = 8, 4
# The transition figure's steps: every 5 to 50, then every 50 to 500; measured on CHAINS chains, SHOWN of them drawn.
TRANSITION = (*range(0, 51, 5), *range(100, 501, 50))
CHAINS, SHOWN = 1000, 3


def splits(config: Config, *names: str) -> list[MultimodalDataset]:
    return [data.load(config.data.name, name, **_options(config, name)) for name in names]


def _options(config: Config, split: str) -> dict[str, Any]:
    """`size` is the training split's; the others keep theirs."""
    return {k: v for k, v in config.data.options.items() if k != "size" or split == "train"}


def judges(train: MultimodalDataset, test: MultimodalDataset) -> Classifiers | None:
    """Classifiers for pictures and strings of letters; None where there are no labels or fewer than two of those."""
    names = judged(train)
    if train.labels is None or test.labels is None or len(names) < 2:
        return None
    return load_or_train(train, test, modalities=names)


def evaluate_run(
    path: Path | str,
    split: str = "test",
    *,
    likelihood_samples: int | None = None,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Measures the run's model on a split and leaves the result in its evaluation.json (test) or -SPLIT.json.

    `likelihood_samples` replaces the configuration's; `weights` of Inception add its Frechet distances; `device` is
    where model and data lie, as `mmebm.devices.find` knows it.
    """
    at = find(device)
    features = None if weights is None else inception(weights, at)
    run = Run.open(path)
    config = load_config(run.config)
    train, held_out, test = (rows.to(at) for rows in splits(config, "train", split, "test"))
    settings = config.evaluate
    result = evaluate(
        load(path, at),
        train,
        held_out,
        judges(train, test),
        samples=settings.samples,
        cross_rows=settings.cross_rows,
        components=settings.mixture_components,
        latents=settings.mixture_latents,
        probe_rows=settings.probe_rows,
        likelihood_samples=settings.likelihood_samples if likelihood_samples is None else likelihood_samples,
        likelihood_rows=settings.likelihood_rows,
        inception=features,
        seed=config.seed,
    )
    result["updates"] = run.counters()["updates"]
    target = run.evaluation if split == "test" else run.path / f"evaluation-{split}.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    return result


@dataclass(frozen=True)
class Transition:
    """Chains from p_0 at the steps of TRANSITION."""

    frames: dict[str, Tensor]  # [T, n, *shape], decoded states of the shown chains
    energy: list[float]  # over all chains: mean energy,
    coherence: list[float]  # joint coherence
    entropy: list[float]  # and class entropy


def transition(model: MultimodalVAE, classifiers: Classifiers, *, seed: int = 0) -> Transition:
    """CHAINS chains of the model's energy prior, decoded on their way; a chain keeps its private latents."""
    prior = model.prior
    if not isinstance(prior, EnergyPrior):
        raise ValueError(f"prior: the transition needs an energy prior's chains, this model has {type(prior).__name__}")
    z = prior.sample_reference(CHAINS, seed=seed)
    _, info = prior.chain(z, steps=TRANSITION[-1], seed=seed, record_every=5, return_info=True)
    made = Transition({}, [], [], [])
    frames: dict[str, list[Tensor]] = {m: [] for m in classifiers.networks if is_picture(model.shapes[m])}
    for step in TRANSITION:
        state = z if step == 0 else info.states[step // 5 - 1]
        decoded = model.decode(state, list(classifiers.networks), seed=seed)
        predictions = {m: classifiers.predict(m, x) for m, x in decoded.items()}
        with torch.no_grad():
            made.energy.append(float(prior.energy_of(state).mean()))
        made.coherence.append(joint_coherence(predictions))
        made.entropy.append(class_entropy(predictions, classifiers.n_classes))
        for m in frames:
            frames[m].append(decoded[m][:SHOWN])
    return replace(made, frames={m: torch.stack(x) for m, x in frames.items()})


def draw_figures(
    path: Path | str, compare: Mapping[str, Path | str] | None = None, *, device: torch.device | str = "cpu"
) -> list[Path]:
    """The run's figures: joint samples (beside those of `compare`d runs), cross generation, curves, transition.

    They show the modalities that are pictures, the transition those that classifiers judge; `mmebm report` shows all.
    """
    at, seed = find(device), 0
    run, model = Run.open(path), load(path, at)
    config = load_config(run.config)
    train, test = (rows.to(at) for rows in splits(config, "train", "test"))
    pictures = [m for m, shape in model.shapes.items() if len(shape) == 3]
    run.figures.mkdir(exist_ok=True)
    made = [run.figures / "curves.png"]
    figures.curves(run.rows(), made[0])
    if not pictures:
        return made
    joint = {name: load(other, at).generate(JOINT, pictures, seed=seed) for name, other in (compare or {}).items()}
    if isinstance(model.prior, EnergyPrior):
        joint["p_0"] = model.decode(model.prior.sample_reference(JOINT, seed=seed), pictures, seed=seed)
        joint["energy prior"] = model.generate(JOINT, pictures, seed=seed)
    else:
        joint[f"{model.prior.law} prior"] = model.generate(JOINT, pictures, seed=seed)
    made = [run.figures / "joint.png", run.figures / "cross.png", *made]
    figures.sample_grids(joint, made[0], titles={"p_0": "$p_0$, where its chains start"})
    rows = torch.arange(CROSS)
    inputs, masks = test.batch(rows), test.observed(rows)
    crossed = {m: model.cross_generate(inputs, m, pictures, masks=masks, seed=seed) for m in pictures}
    figures.cross_grid({m: inputs[m] for m in pictures}, crossed, made[1])
    classifiers = judges(train, test) if isinstance(model.prior, EnergyPrior) else None
    if classifiers is not None:
        made.append(run.figures / "transition.png")
        t = transition(model, classifiers, seed=seed)
        figures.transition(
            TRANSITION, t.frames, t.energy, t.coherence, t.entropy, made[-1], trained_steps=config.train.energy.steps
        )
    return made
