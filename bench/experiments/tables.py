"""Tables of the energy prior against a separately trained plain prior and Gaussian mixtures, on `digits`.

Rows, for each version: (a) a model trained with the plain prior, drawn from p_0; (b) a Gaussian mixture of ten
full-covariance components fitted to (a)'s posterior; (c) the model trained with the energy prior, drawn by chains;
(d) such a mixture on (c)'s posterior; (e) (c)'s model drawn from p_0, for information. (a) and (c) have the same nets,
updates, seeds and batches; settings were chosen on the validation split, the table is of the test split.
"""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from bench.record import facts, write
from mmebm import data
from mmebm.evaluation.coherence import JointResult, collapse
from mmebm.evaluation.runs import evaluate_run
from mmebm.training import load_config, train

SEEDS = (0, 1, 2)
# Row -> (which model, how z is drawn).
ROWS = {
    "a plain prior, p_0": ("plain", "prior"),
    "b GMM(10) on (a)": ("plain", "gmm10"),
    "c energy prior, chains": ("energy", "prior"),
    "d GMM(10) on (c)": ("energy", "gmm10"),
    "e p_0 of (c)": ("energy", "p_0"),
    "posterior of (a)": ("plain", "posterior"),
    "posterior of (c)": ("energy", "posterior"),
}
MEASURES = ("coherence", "standard_error", "entropy", "mean_frechet")


class Table(NamedTuple):
    """`versions`: name -> (preset, overrides); `plain`: what makes one's prior plain."""

    results: Path
    versions: dict[str, tuple[str, tuple[str, ...]]]
    plain: tuple[str, ...]

    def trained(self, folder: Path, version: str, kind: str, seed: int) -> dict[str, Any]:
        """The evaluation of a run, which is trained if `folder` does not hold it yet."""
        path = folder / f"{version}-{kind}-{seed}"
        if not (path / "evaluation.json").exists():
            preset, overrides = self.versions[version]
            plain = self.plain if kind == "plain" else ()
            config = load_config(preset, [*overrides, *plain, f"seed={seed}", "threads=1"])
            dataset = data.load(config.data.name, "train", **config.data.options)
            train(config, dataset, path, force=True)
            evaluate_run(path)
            print(f"{path} done", flush=True)
        return json.loads((path / "evaluation.json").read_text())

    def run(self, folder: Path) -> None:
        """Trains and measures what `folder` does not hold yet, then writes the CSV."""
        known, rows = facts(), []
        for version in self.versions:
            for seed in SEEDS:
                results = {kind: self.trained(folder, version, kind, seed) for kind in ("plain", "energy")}
                for name, (kind, way) in ROWS.items():
                    result, draw = results[kind], results[kind]["joint"][way]
                    rows.append(
                        {"version": version, "row": name, "seed": seed, "n": draw["n"]}
                        | {m: round(draw[m], 4) for m in MEASURES}
                        | {
                            "cross": round(result["cross"]["mean"], 4),
                            "probe": round(result["probe"]["test"], 4),
                            "classifier_accuracy": round(min(result["classifier_accuracy"].values()), 4),
                            "real_agreement": round(result["real_agreement"], 4),
                        }
                        | known
                    )
        write(self.results, rows)

    def report(self) -> str:
        """Markdown: mean ± standard deviation over seeds, from the CSV alone."""
        with self.results.open() as file:
            rows = list(csv.DictReader(file))
        lines = [
            "| model | z drawn from | joint coherence | class entropy | Frechet | cross |",
            "|---|---|---|---|---|---|",
        ]
        for version in self.versions:
            for name in ROWS:
                chosen = [r for r in rows if (r["version"], r["row"]) == (version, name)]
                cells = [
                    spread([float(r[m]) for r in chosen], d)
                    for m, d in (("coherence", 3), ("entropy", 3), ("mean_frechet", 1), ("cross", 3))
                ]
                lines.append(f"| {version} | {name} | " + " | ".join(cells) + " |")
            lines.append(f"| {version} | collapse of (c) against (a) | {_verdicts(rows, version)} | | | |")
        first = rows[0]
        lines.append(
            f"\n{len(SEEDS)} seeds, {first['n']} samples each; "
            f"classifiers reach {first['classifier_accuracy']} at least, "
            f"real tuples agree on {first['real_agreement']}; torch {first['torch']}, revision {first['revision']}."
        )
        return "\n".join(lines)


def spread(values: list[float], digits: int = 3) -> str:
    """Mean ± standard deviation."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _verdicts(rows: list[dict[str, str]], version: str) -> str:
    verdicts = []
    for seed in SEEDS:
        energy, plain = (
            next(r for r in rows if (r["version"], r["row"], r["seed"]) == (version, name, str(seed)))
            for name in ("c energy prior, chains", "a plain prior, p_0")
        )
        pair = [
            JointResult(float(r["coherence"]), float(r["entropy"]), {}, {"": float(r["mean_frechet"])}, int(r["n"]))
            for r in (energy, plain)
        ]
        verdicts.append("yes" if collapse(*pair).collapsed else "no")
    return ", ".join(verdicts)
