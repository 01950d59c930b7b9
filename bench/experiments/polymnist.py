"""polymnist: the preset exp2 at full size for two hours of a CPU, on MoPoE's small networks; the curve so far.

55,000 tuples of five pictures made from MNIST. The paper's residual networks take some thirty times as long an update
here (their cost is in the report); a run that was cut off by the clock is marked, its cells are not converged.
"""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.record import facts, write
from mmebm import data
from mmebm.evaluation.runs import evaluate_run
from mmebm.training import TrainingDiverged, load_config, train
from mmebm.training.run import Run

RESULTS = Path(__file__).parents[1] / "results" / "polymnist.csv"
SECONDS = 7200.0
UPDATES = 2000
SETTINGS = (
    "model.network=conv", f"train.updates={UPDATES}", "train.decay=cosine", "train.energy_start=200",
    "train.energy_enters=800", "train.energy_warmup=400", "train.energy.repeats=2", "train.log_every=20",
    "train.checkpoint_every=100", "evaluate.samples=2000", "evaluate.cross_rows=1000", "threads=1",
)  # fmt: skip
CURVE = ("objective", "kl_reference", "kl_private", "E_q", "E_p", "grad_norm")
# Multiply-adds of one tuple through MMVAE+: of encoders (shared and private) and of 25 decodings.
RESNET_GMAC = 5 * 2 * 0.105 + 25 * 0.103
FULL_UPDATES = 107_500


class _OutOfTime(Exception):
    pass


def trained(folder: Path) -> tuple[Path, float]:
    """A run folder, trained on until clock, schedule or a divergence ends it, and the seconds it took in all."""
    path = folder / "exp2-conv"
    config = load_config("exp2", SETTINGS)
    resume = (path / "checkpoint.safetensors").exists()
    if _updates(path) < UPDATES and _seconds(path) < SECONDS:

        def clock(*_: Any) -> None:
            if _seconds(path) >= SECONDS:
                raise _OutOfTime

        with suppress(_OutOfTime, TrainingDiverged):
            train(config, data.load("polymnist", "train"), path, resume=resume, force=not resume, progress=clock)
    return path, _seconds(path)


def _rows(path: Path) -> list[dict[str, Any]]:
    metrics = path / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


def _updates(path: Path) -> int:
    rows = _rows(path)
    return rows[-1]["update"] if rows else 0


def _seconds(path: Path) -> float:
    """What the updates took, by the rates that were logged."""
    done, total = 0, 0.0
    for row in _rows(path):
        total += (row["update"] - done) / row["updates_per_second"]
        done = row["update"]
    return total


def run(folder: Path) -> None:
    path, seconds = trained(folder)
    if not (path / "evaluation.json").exists():
        evaluate_run(path)
    found, known = json.loads((path / "evaluation.json").read_text()), facts()
    rows: list[dict[str, Any]] = [
        {"kind": "curve", "update": row["update"]} | {k: round(row[k], 3) for k in CURVE if k in row} | known
        for row in _rows(path)
        if row["update"] % 100 == 0
    ]
    # What is measured are the weights of the last checkpoint.
    about = {"update": Run.open(path).counters()["updates"], "seconds": round(seconds), "of": UPDATES}
    about |= {"ended": _updates(path)}
    for way, draws in found["joint"].items():
        rows.append(
            {"kind": "joint", "name": way, "value": round(draws["coherence"], 4)}
            | {"low": round(draws["interval"][0], 4), "high": round(draws["interval"][1], 4)}
            | {"entropy": round(draws["entropy"], 4), "frechet": round(draws["mean_frechet"], 1), "n": draws["n"]}
            | about
            | known
        )
    for size, cross in found["cross"]["by_size"].items():
        low, high = cross["interval"]
        rows.append(
            {"kind": "cross", "name": size, "value": round(cross["micro"], 4), "low": round(low, 4)}
            | {"high": round(high, 4), "n": found["cross"]["n"]}
            | about
            | known
        )
    write(RESULTS, rows)


def report() -> str:
    """Markdown, from the CSV alone."""
    with RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    joint, cross = ([r for r in rows if r["kind"] == kind] for kind in ("joint", "cross"))
    lines = ["| joint, z drawn from | coherence | class entropy | Frechet |", "|---|---|---|---|"]
    for r in joint:
        lines.append(f"| {r['name']} | {r['value']} ({r['low']} to {r['high']}) * | {r['entropy']} | {r['frechet']} |")
    lines += ["", "| observed | " + " | ".join(r["name"] for r in cross) + " |", "|---|" + "---|" * len(cross)]
    lines.append("| cross coherence | " + " | ".join(f"{r['value']} *" for r in cross) + " |")
    lines += ["", "| update | " + " | ".join(CURVE) + " |", "|---|" + "---|" * len(CURVE)]
    curve = [r for r in rows if r["kind"] == "curve"]
    for r in curve[:: max(1, len(curve) // 8)]:
        lines.append(f"| {r['update']} | " + " | ".join(r[k] or "-" for k in CURVE) + " |")
    first, flop = joint[0], 6 * RESNET_GMAC * 1e9 * 128
    lines.append(
        f"\n\\* not converged: weights of update {first['update']} of {first['of']}, of a run that ended at update "
        f"{first['ended']} after {int(first['seconds']) // 60} minutes on one "
        f"thread of a busy machine; {first['n']} samples. The paper's networks need {flop / 1e12:.1f} TFLOP an update, "
        f"{flop * FULL_UPDATES:.1e} FLOP for 250 epochs: 50 minutes at 100 TFLOP/s, computed, not run. torch "
        f"{first['torch']}, revision {first['revision']}."
    )
    return "\n".join(lines)
