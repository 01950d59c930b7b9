"""ablation: what makes the energy prior of `digits` work, one change at a time, on the validation split.

`frozen` rows fit an energy prior to the posterior of a model trained with the plain prior (2,000 updates); `joint` rows
train preset `digits` with the change named. A run that diverges is a row with its message. One seed.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from bench.record import facts, write
from mmebm import data
from mmebm.evaluation.runs import evaluate_run
from mmebm.fit import fit_prior_of
from mmebm.training import TrainingDiverged, load_config, train

RESULTS = Path(__file__).parents[1] / "results" / "ablation.csv"
FROZEN = {
    "as fitted by default (input scale and step = spread / 6)": (),
    "input scale 1": ("prior.input_scale=1.0",),
    "input scale 1, spectral norm 1000": ("prior.input_scale=1.0", "prior.spectral_norm=1000.0"),
    "input scale 1, no spectral norm": ("prior.input_scale=1.0", "prior.spectral_norm=none"),
    "no spectral norm": ("prior.spectral_norm=none",),
    "no spectral norm, learning rate 2e-3": ("prior.spectral_norm=none", "train.energy.learning_rate=2e-3"),
    "fresh chains, K = 20": ("train.energy.persistent=false",),
    "normal p_0": ("prior.reference=normal",),
}
JOINT = {
    "preset": (),
    "E enters at update 0": ("train.energy_start=0", "train.energy_enters=0", "train.energy_warmup=0"),
    "E never enters": ("train.energy_enters=none",),
    "E is trained only from the update it enters at": ("train.energy_start=500",),
    "one energy update a step": ("train.energy.repeats=1",),
    "no spectral norm": ("prior.spectral_norm=none",),
    "Laplace posterior": ("model.posterior=laplace",),
}


def _measured(row: dict[str, Any], draw: dict[str, Any]) -> dict[str, Any]:
    measures = ("coherence", "standard_error", "entropy", "mean_frechet")
    return row | {m: round(draw[m], 4) for m in measures} | {"note": ""}


def _frozen(plain: Path, name: str, changes: tuple[str, ...]) -> dict[str, Any]:
    row = {"kind": "frozen", "change": name}
    folder = plain.parent / "frozen" / name.replace("/", "over").replace(" ", "-")
    kept = folder / "result.json"
    if not kept.exists():
        try:
            _, result = fit_prior_of(plain, None, folder, updates=2000, overrides=changes, force=True)
        except TrainingDiverged as error:
            result = {"diverged": str(error)}
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(result))
        print(f"{folder} done", flush=True)
    result = json.loads(kept.read_text())
    return row | {"note": result["diverged"]} if "diverged" in result else _measured(row, result["fitted"])


def _joint(folder: Path, name: str, changes: tuple[str, ...]) -> dict[str, Any]:
    row = {"kind": "joint", "change": name}
    path = folder / "joint" / name.replace(" ", "-")
    if not (path / "evaluation-validation.json").exists() and not (path / "diverged.txt").exists():
        config = load_config("digits", [*changes, "threads=1"])
        try:
            train(config, data.load("digits", "train"), path, force=True)
            evaluate_run(path, "validation")
        except TrainingDiverged as error:
            (path / "diverged.txt").write_text(str(error))
        print(f"{path} done", flush=True)
    if (path / "diverged.txt").exists():
        return row | {"note": (path / "diverged.txt").read_text()}
    result = json.loads((path / "evaluation-validation.json").read_text())
    cross = {"cross": round(result["cross"]["mean"], 4), "probe": round(result["probe"]["test"], 4)}
    posterior = {"posterior_coherence": round(result["joint"]["posterior"]["coherence"], 4)}
    return _measured(row, result["joint"]["prior"]) | cross | posterior


def run(folder: Path) -> None:
    """Does what `folder` does not hold yet, then writes the CSV."""
    plain = folder / "plain"
    if not (plain / "evaluation.json").exists():
        config = load_config("digits", ["prior.name=laplace", "threads=1"])
        train(config, data.load("digits", "train"), plain, force=True)
        evaluate_run(plain)
    known = facts()
    rows = [_frozen(plain, name, changes) | known for name, changes in FROZEN.items()]
    rows += [_joint(folder, name, changes) | known for name, changes in JOINT.items()]
    write(RESULTS, rows)


def report() -> str:
    """Markdown, from the CSV alone."""
    with RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    lines = ["| | change | joint coherence | entropy | Frechet | cross |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["note"]:
            stopped = row["note"].partition(": {")[0].partition(". ")[0]
            lines.append(f"| {row['kind']} | {row['change']} | {stopped} | | | |")
            continue
        coherence = f"{float(row['coherence']):.3f} ± {float(row['standard_error']):.3f}"
        cells = (coherence, f"{float(row['entropy']):.3f}", f"{float(row['mean_frechet']):.1f}", row["cross"])
        lines.append(f"| {row['kind']} | {row['change']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
