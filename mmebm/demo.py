"""`mmebm demo`: `digits` with the plain and with the energy prior, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from mmebm import data
from mmebm.cli import console, progress_bar, say, show_evaluation
from mmebm.evaluation.coherence import JointResult, collapse
from mmebm.evaluation.runs import draw_figures, evaluate_run
from mmebm.training import load_config, train

PLAIN, ENERGY = "plain", "energy"


def run_demo(folder: Path, overrides: Sequence[str] = ()) -> None:
    """Trains both, evaluates both, prints the table and where the pictures are."""
    if any(override.partition("=")[0].strip() == "prior.name" for override in overrides):
        raise ValueError("--set prior.name: the demo trains one model with a plain and one with an energy prior")
    began = time.perf_counter()
    priors = {PLAIN: ("prior.name=laplace",), ENERGY: ()}
    results, seconds = {}, {}
    for name, prior in priors.items():
        config = load_config("digits", [*overrides, *prior])
        start = time.perf_counter()
        dataset = data.load(config.data.name, "train", **config.data.options)
        with progress_bar(name, config.updates) as show:
            train(config, dataset, folder / name, force=True, progress=show)
        seconds[name] = time.perf_counter() - start
        results[name] = evaluate_run(folder / name)
        show_evaluation(name, results[name])
    table = Table(title="digits: joint generation, test split")
    for column in ("prior", "z drawn from", "joint coherence", "entropy", "Frechet", "cross"):
        table.add_column(column, justify="left" if column in ("prior", "z drawn from") else "right", no_wrap=True)
    for name in priors:
        result = results[name]
        for way, row in result["joint"].items():
            table.add_row(
                name, way, f"{row['coherence']:.3f} ± {row['standard_error']:.3f}", f"{row['entropy']:.3f}",
                f"{row['mean_frechet']:.1f}", f"{result['cross']['mean']:.3f}",
            )  # fmt: skip
    console.print(table)
    plain, energy = (_result(results[name]["joint"]["prior"]) for name in priors)
    verdict = collapse(energy, plain)
    say(
        f"energy prior against plain prior: {energy.coherence:.3f} against {plain.coherence:.3f}"
        + (f"; collapsed: {verdict.reason}" if verdict.collapsed else ", without collapse")
    )
    for path in draw_figures(folder / ENERGY, compare={"plain prior": folder / PLAIN}):
        say(f"  {path}")
    spent = ", ".join(f"{name} prior {s:.0f} s" for name, s in seconds.items())
    say(f"training: {spent}; {time.perf_counter() - began:.0f} s in all")


def _result(row: dict[str, object]) -> JointResult:
    return JointResult(**{k: v for k, v in row.items() if k in JointResult.__dataclass_fields__})  # type: ignore[arg-type]
