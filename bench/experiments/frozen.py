"""frozen: what an energy prior reaches on one posterior of `digits` that stands still, on the validation split.

The posterior is the plain model's of experiment `ablation`. Every recipe is fitted once (seed 0, one thread) and drawn
with chains of several lengths from p_0; the controls are the posterior's own draws and a Gaussian mixture of ten
full-covariance components. A recipe is the settings that `settings_for` gives, with the changes its row names.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.experiments import ablation
from bench.record import facts, read, write
from mmebm import data
from mmebm.evaluation.classifiers import load_or_train
from mmebm.evaluation.evaluate import joint, posterior_draws, samplers
from mmebm.evaluation.runs import evaluate_run, splits
from mmebm.fit import LATENTS
from mmebm.training import TrainingDiverged, load_config, train
from mmebm.training.config import Config, overridden
from mmebm.training.energy import fit_energy_prior, settings_for
from mmebm.training.run import load

RESULTS = ablation.RESULTS.with_name("frozen.csv")
STEPS = (50, 100, 200, 300, 1000, 2000)  # of the chains drawn from the fitted prior
MEASURES = ("coherence", "standard_error", "entropy", "mean_frechet")
BASE = {"updates": 3000, "steps": 20, "reinitialise": 0.1, "hidden": [128, 128], "spectral_norm": 60.0}
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    *({"reinitialise": share} for share in (0.02, 0.05, 0.2, 0.5)),
    {"reinitialise": 1.0},
    *({"steps": steps} for steps in (5, 10, 40, 100)),
    *({"updates": updates} for updates in (1000, 10_000, 20_000)),
    *({"updates": updates, "reinitialise": 0.02} for updates in (10_000, 20_000)),
    *({"hidden": [width, width]} for width in (32, 64, 256)),
    *({"spectral_norm": gain} for gain in (15.0, 30.0, 120.0, 240.0)),
)
_KEYS = {
    "steps": "train.energy.steps",
    "reinitialise": "train.energy.reinitialise",
    "hidden": "prior.hidden",
    "spectral_norm": "prior.spectral_norm",
}


def _plain(folder: Path) -> Path:
    """The run of `ablation`, made if it is not there."""
    run = folder.parent / "ablation" / "plain"
    if not (run / "evaluation.json").exists():
        train(load_config("digits", ["prior.name=laplace", "threads=1"]), data.load("digits", "train"), run, force=True)
        evaluate_run(run)
    return run


def _name(recipe: dict[str, Any]) -> str:
    return ",".join(f"{k}={'x'.join(map(str, v)) if isinstance(v, list) else v}" for k, v in recipe.items())


class _Measure:
    """Joint coherence and its companions of a sampler, as one row's numbers."""

    def __init__(self, run: Path) -> None:
        self.config: Config = load_config(run / "config.json")
        self.model = load(run)
        train_split, validation, test = splits(self.config, "train", "validation", "test")
        self.train = train_split
        self.classifiers = load_or_train(train_split, test)
        self.real = {m: self.classifiers.features(m, validation.modalities[m]) for m in self.model.modalities}

    def __call__(self, sampler: Callable[[int, int], Tensor]) -> dict[str, float]:
        samples = self.config.evaluate.samples
        numbers = joint(self.model, sampler, self.classifiers, self.real, samples, 0).numbers()
        return {m: round(numbers[m], 4) for m in MEASURES}


def _fitted(measure: _Measure, z: Tensor, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    prior, chains = settings_for(z)
    config = overridden(
        {"prior": prior.model_dump(), "train": {"energy": chains.model_dump()}},
        [f"{key}={recipe[name]}" for name, key in _KEYS.items()],
    )
    row = {**recipe, "hidden": "x".join(map(str, recipe["hidden"]))}
    start = time.perf_counter()
    try:
        fitted = fit_energy_prior(z, prior=config.prior, train=config.train.energy, updates=recipe["updates"])
    except TrainingDiverged as error:
        return [{**row, "note": str(error).partition(": {")[0]}]
    spent = round(time.perf_counter() - start, 1)
    return [
        {
            **row,
            "sampling_steps": n,
            "fit_s": spent,
            **measure(lambda rows, s, n=n: fitted.sample(rows, steps=n, seed=s)),
        }
        for n in STEPS
    ]


def run(folder: Path) -> None:
    """Fits and measures what `folder` does not hold yet, then writes the CSV."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    measure = _Measure(_plain(folder))
    z, _ = posterior_draws(measure.model, measure.train, LATENTS, 0)
    evaluate = measure.config.evaluate
    controls = samplers(
        measure.model, measure.train, components=evaluate.mixture_components, latents=evaluate.mixture_latents, seed=0
    )
    rows = [{"recipe": name, **measure(controls[name])} for name in (f"gmm{evaluate.mixture_components}", "posterior")]
    for change in CHANGES:
        recipe = BASE | change
        kept = folder / f"{_name(recipe)}.json"
        if not kept.exists():
            kept.write_text(json.dumps(_fitted(measure, z, recipe)))
            print(f"{kept.name} done", flush=True)
        rows += [{"recipe": _name(change) or "base", **row} for row in json.loads(kept.read_text())]
    known = facts()
    write(RESULTS, [row | known for row in rows])


def report() -> str:
    """Markdown, from the CSV alone: per recipe, coherence / class entropy / Frechet distance by length of chain."""
    rows = read(RESULTS)
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row["recipe"], []).append(row)

    def cell(row: dict[str, str]) -> str:
        return f"{float(row['coherence']):.3f} / {float(row['entropy']):.3f} / {float(row['mean_frechet']):.0f}"

    lines = ["| recipe | fit, s | " + " | ".join(f"{n} steps" for n in STEPS) + " |", "|---" * (len(STEPS) + 2) + "|"]
    for name, group in found.items():
        if group[0].get("note"):
            cells = ["", group[0]["note"], *[""] * (len(STEPS) - 1)]
        elif group[0]["sampling_steps"]:
            cells = [f"{float(group[0]['fit_s']):.0f}", *map(cell, group)]
        else:
            cells = ["", cell(group[0]), *[""] * (len(STEPS) - 1)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    first = next(row for row in rows if row["fit_s"])
    base = ", ".join(f"{k} {first[k]}" for k in BASE)
    lines.append(f"\nbase: {base}; one thread, torch {first['torch']}, revision {first['revision']}.")
    return "\n".join(lines)


def plot(path: Path) -> None:
    """Coherence against Frechet distance, a line per recipe along the length of its chains, from the CSV alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in read(RESULTS):
        if row["coherence"] and (not row["sampling_steps"] or int(row["sampling_steps"]) <= 300):
            label = row["recipe"] + (f", {float(row['fit_s']):.0f} s" if row["fit_s"] else "")
            lines.setdefault(label, []).append((float(row["mean_frechet"]), float(row["coherence"])))
    for i, (label, points) in enumerate(lines.items()):
        style = (
            {"marker": "*", "markersize": 14, "linestyle": ""} if len(points) == 1 else {"marker": "o", "markersize": 3}
        )
        axes.plot(
            *zip(*points, strict=True), label=label, color=f"C{i}" if i < 10 else pyplot.cm.tab20b(i - 10), **style
        )
    axes.set(xlabel="Frechet distance to real features", ylabel="joint coherence", xlim=(33, 100), ylim=(0.85, 1.0))
    axes.legend(fontsize=6, ncols=2)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
