"""mfeat: six real views of digits; errors and a probe by number of observed views, three models, three seeds.

The preset of the same name, each model with the energy prior and with a plain one, settings chosen on the validation
split by none of them; measured on the test split.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from bench.experiments.tables import SEEDS, spread
from bench.record import facts, write
from mmebm import data
from mmebm.evaluation.runs import evaluate_run
from mmebm.training import load_config, train

RESULTS = Path(__file__).parents[1] / "results" / "mfeat.csv"
MODELS = ("mvtcae", "mopoe", "mmvaeplus")
KINDS = {"energy": (), "plain": ("prior.name=normal",)}


def trained(folder: Path, model: str, kind: str, seed: int) -> dict[str, Any]:
    """The evaluation of a run, which is trained if `folder` does not hold it yet."""
    path = folder / f"{model}-{kind}-{seed}"
    if not (path / "evaluation.json").exists():
        config = load_config("mfeat", [f"model.name={model}", *KINDS[kind], f"seed={seed}", "threads=1"])
        train(config, data.load("mfeat", "train", **config.data.options), path, force=True)
        evaluate_run(path)
        print(f"{path} done", flush=True)
    return json.loads((path / "evaluation.json").read_text())


def run(folder: Path) -> None:
    """Trains and measures what `folder` does not hold yet, then writes the CSV."""
    known, rows = facts(), []
    for model in MODELS:
        for kind in KINDS:
            for seed in SEEDS:
                result = trained(folder, model, kind, seed)
                for size, probe in result["probe_by_size"].items():
                    errors = [e["rmse"] for e in result["reconstruction"]["by_size"].get(size, {}).values()]
                    rows.append(
                        {
                            "model": model,
                            "prior": kind,
                            "seed": seed,
                            "observed": size,
                            "probe": round(probe["test"], 4),
                        }
                        | {"rmse": round(sum(errors) / len(errors), 4) if errors else ""}
                        | {"rows": result["reconstruction"]["n"]}
                        | known
                    )
    write(RESULTS, rows)


def report() -> str:
    """Markdown: mean ± standard deviation over seeds, from the CSV alone."""
    with RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    sizes = sorted({r["observed"] for r in rows}, key=int)
    lines = [
        "| model | prior | measure | " + " | ".join(f"{s} observed" for s in sizes) + " |",
        "|---|---|---|" + "---|" * len(sizes),
    ]
    for model in MODELS:
        for kind in KINDS:
            for measure in ("probe", "rmse"):
                chosen = [r for r in rows if (r["model"], r["prior"]) == (model, kind) and r[measure]]
                values = {s: [float(r[measure]) for r in chosen if r["observed"] == s] for s in sizes}
                cells = [spread(v) if v else "-" for v in values.values()]
                lines.append(f"| {model} | {kind} | {measure} | " + " | ".join(cells) + " |")
    first = rows[0]
    lines.append(f"\n{len(SEEDS)} seeds, {first['rows']} rows; torch {first['torch']}, revision {first['revision']}.")
    return "\n".join(lines)
