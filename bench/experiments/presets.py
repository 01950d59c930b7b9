"""presets: those after the papers, each for two hours of a CPU thread at most; how far they came, converged or not.

exp1_1 on its stand-in for MNIST-SVHN, exp2 on PolyMNIST at full size with MoPoE's small networks (the paper's residual
ones take some thirty times as long an update here; their cost is in the report), exp3 with captions by an mlp. A run
that the clock or a divergence ended is measured at its last checkpoint.
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

RESULTS = Path(__file__).parents[1] / "results" / "presets.csv"
SECONDS = 7200.0
_ALL = (
    "threads=1", "train.decay=cosine", "evaluate.samples=2000", "evaluate.cross_rows=1000",
    "evaluate.mixture_latents=5000", "evaluate.probe_rows=1000",
)  # fmt: skip
RUNS: dict[str, tuple[str, ...]] = {
    "exp1_1": (
        "train.updates=1500", "train.energy_start=100", "train.energy_enters=600", "train.energy_warmup=300",
        "train.energy.repeats=2",
    ),
    "exp2": (
        "model.network=conv", "train.updates=2000", "train.energy_start=200", "train.energy_enters=800",
        "train.energy_warmup=400", "train.energy.repeats=2", "train.log_every=20", "train.checkpoint_every=100",
    ),
    "exp3": ("model.networks.caption=mlp", "train.updates=2000"),
}  # fmt: skip
CURVE = ("objective", "kl_reference", "E_q", "E_p")
# Multiply-adds of one tuple through exp2's residual networks: of encoders (shared and private) and of 25 decodings.
RESNET_GMAC = 5 * 2 * 0.105 + 25 * 0.103
FULL_UPDATES, BATCH = 107_500, 128


class _OutOfTime(Exception):
    pass


def trained(folder: Path, preset: str) -> Path:
    """A run folder with its evaluation, trained until clock, schedule or a divergence ends it."""
    path = folder / preset
    if (path / "evaluation.json").exists():
        return path
    config = load_config(preset, [*_ALL, *RUNS[preset]])

    def clock(*_: Any) -> None:
        if _seconds(path) >= SECONDS:
            raise _OutOfTime

    resume = (path / "checkpoint.safetensors").exists()
    with suppress(_OutOfTime, TrainingDiverged):
        rows = data.load(config.data.name, "train", **config.data.options)
        train(config, rows, path, resume=resume, force=not resume, progress=clock)
    evaluate_run(path)
    print(f"{path} done", flush=True)
    return path


def _rows(path: Path) -> list[dict[str, Any]]:
    metrics = path / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


def _seconds(path: Path) -> float:
    """What the updates took, by the rates that were logged."""
    done, total = 0, 0.0
    for row in _rows(path):
        total += (row["update"] - done) / row["updates_per_second"]
        done = row["update"]
    return total


def run(folder: Path) -> None:
    known, rows = facts(), []
    for preset in RUNS:
        path = trained(folder, preset)
        found, curve = json.loads((path / "evaluation.json").read_text()), _rows(path)
        about = {
            "preset": preset,
            "of": load_config(path / "config.json").updates,
            "ended": curve[-1]["update"],
            "measured": Run.open(path).counters()["updates"],
            "minutes": round(_seconds(path) / 60.0),
        }
        for row in curve:
            if row["update"] % 100 == 0:
                rows.append(
                    about | {"kind": "curve", "name": row["update"]} | {k: round(row[k], 3) for k in CURVE if k in row}
                )
        for way, draws in (found["joint"] or {}).items():
            value = {"value": round(draws["coherence"], 4), "entropy": round(draws["entropy"], 4)}
            rows.append(about | {"kind": "joint", "name": way} | value | {"frechet": round(draws["mean_frechet"], 1)})
        for size, cross in ((found["cross"] or {}).get("by_size") or {}).items():
            rows.append(about | {"kind": "cross", "name": size, "value": round(cross["micro"], 4)})
        for size, probe in found["probe_by_size"].items():
            rows.append(about | {"kind": "probe", "name": size, "value": round(probe["test"], 4)})
    write(RESULTS, [row | known for row in rows])


def report() -> str:
    """Markdown, from the CSV alone."""
    with RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    lines = ["| preset | updates (measured at, ended, planned) | minutes | " + " | ".join(_COLUMNS) + " |"]
    lines.append("|---|---|---|" + "---|" * len(_COLUMNS))
    for preset in RUNS:
        of = [r for r in rows if r["preset"] == preset]
        cells = [_cell(of, kind, name) for kind, name in _COLUMNS.values()]
        first = of[0]
        lines.append(
            f"| {preset} | {first['measured']}, {first['ended']}, {first['of']} | {first['minutes']} | "
            + " | ".join(cells)
            + " |"
        )
    lines += ["", "| preset, update | " + " | ".join(CURVE) + " |", "|---|" + "---|" * len(CURVE)]
    for preset in RUNS:
        curve = [r for r in rows if (r["preset"], r["kind"]) == (preset, "curve")]
        for r in curve[:: max(1, len(curve) // 4)]:
            lines.append(f"| {preset}, {r['name']} | " + " | ".join(r[k] or "-" for k in CURVE) + " |")
    flop = 6 * RESNET_GMAC * 1e9 * BATCH
    lines.append(
        f"\nNone is converged. exp2's own networks need {flop / 1e12:.1f} TFLOP an update, {flop * FULL_UPDATES:.1e} "
        f"FLOP for 250 epochs: {flop * FULL_UPDATES / 1e14 / 60:.0f} minutes at 100 TFLOP/s, computed, not run. torch "
        f"{rows[0]['torch']}, revision {rows[0]['revision']}."
    )
    return "\n".join(lines)


_COLUMNS = {
    "joint, prior": ("joint", "prior"),
    "joint, p_0": ("joint", "p_0"),
    "joint, GMM(10)": ("joint", "gmm10"),
    "joint, posterior": ("joint", "posterior"),
    "cross, 1 observed": ("cross", "1"),
    "probe, 1 observed": ("probe", "1"),
}


def _cell(rows: list[dict[str, str]], kind: str, name: str) -> str:
    found = [r for r in rows if (r["kind"], r["name"]) == (kind, name)]
    if not found:
        return "-"
    return found[0]["value"] + (f" (entropy {found[0]['entropy']})" if kind == "joint" else "")
