"""joint: the best two recipes of experiment `frozen` on the jointly trained models of `digits`, three seeds.

The generalised model is trained with its energy prior as preset `digits` says; then the energy is fitted anew to the
posterior that training left, as the recipe says. Beside its chains stand those of the energy trained jointly, a
Gaussian mixture of ten components on the same posterior, and the posterior itself. Test split.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from bench.experiments import digits, tables
from bench.record import facts, read, write
from mmebm.evaluation.classifiers import load_or_train
from mmebm.evaluation.evaluate import joint, posterior_draws
from mmebm.evaluation.runs import splits
from mmebm.fit import LATENTS
from mmebm.training.config import load_config, overridden
from mmebm.training.energy import fit_energy_prior, settings_for
from mmebm.training.run import load

RESULTS = digits.RESULTS.with_name("joint.csv")
UPDATES = 3000
RECIPES = {
    "10% restarted, 200 steps": ("train.energy.reinitialise=0.1", "prior.steps=200"),
    "20% restarted, 100 steps": ("train.energy.reinitialise=0.2", "prior.steps=100"),
}
JOINT = {"prior": "energy trained jointly", "gmm10": "GMM(10)", "posterior": "posterior"}


def _fitted(run: Path, changes: tuple[str, ...], seed: int) -> dict[str, Any]:
    """The numbers of an energy prior fitted to the run's posterior, and the seconds it took."""
    model, config = load(run), load_config(run / "config.json")
    train_split, test = splits(config, "train", "test")
    z, _ = posterior_draws(model, train_split, LATENTS, seed)
    prior, chains = settings_for(z)
    settings = overridden({"prior": prior.model_dump(), "train": {"energy": chains.model_dump()}}, changes)
    start = time.perf_counter()
    fitted = fit_energy_prior(z, prior=settings.prior, train=settings.train.energy, updates=UPDATES, seed=seed)
    spent = round(time.perf_counter() - start, 1)
    classifiers = load_or_train(train_split, test)
    real = {m: classifiers.features(m, test.modalities[m]) for m in model.modalities}
    result = joint(model, lambda n, s: fitted.sample(n, seed=s), classifiers, real, config.evaluate.samples, seed)
    return result.numbers() | {"fit_s": spent}


def run(folder: Path) -> None:
    """Trains and measures what `folder` does not hold yet, then writes the CSV."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in tables.SEEDS:
        trained = digits.TABLE.trained(folder.parent / "digits", "generalised", "energy", seed)
        draws = {named: trained["joint"][way] for way, named in JOINT.items()}
        for recipe, changes in RECIPES.items():
            kept = folder / f"{recipe.replace(' ', '-').replace('%', '')}-{seed}.json"
            if not kept.exists():
                result = _fitted(folder.parent / "digits" / f"generalised-energy-{seed}", changes, seed)
                kept.write_text(json.dumps(result))
                print(f"{kept.name} done", flush=True)
            draws[f"energy fitted anew, {recipe}"] = json.loads(kept.read_text())
        for named, draw in draws.items():
            numbers = {m: round(draw[m], 4) for m in tables.MEASURES}
            rows.append({"z": named, "seed": seed, "n": draw["n"]} | numbers | {"fit_s": draw.get("fit_s", "")})
    known = facts()
    write(RESULTS, [row | known for row in rows])


def report() -> str:
    """Markdown: mean ± standard deviation over seeds, from the CSV alone."""
    rows = read(RESULTS)
    lines = ["| z drawn from | joint coherence | class entropy | Frechet | fit, s |", "|---" * 5 + "|"]
    for named in dict.fromkeys(row["z"] for row in rows):
        chosen = [row for row in rows if row["z"] == named]
        cells = [
            tables.spread([float(row[measure]) for row in chosen], places)
            for measure, places in (("coherence", 3), ("entropy", 3), ("mean_frechet", 1))
        ]
        spent = [float(row["fit_s"]) for row in chosen if row["fit_s"]]
        cells.append(f"{statistics.mean(spent):.0f}" if spent else "")
        lines.append(f"| {named} | " + " | ".join(cells) + " |")
    first = rows[0]
    lines.append(
        f"\n{len(tables.SEEDS)} seeds, {first['n']} samples each, one thread; torch {first['torch']}, "
        f"revision {first['revision']}."
    )
    return "\n".join(lines)
