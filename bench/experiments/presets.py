"""presets: those after the papers, each for two hours at most; how far they came, converged or not.

exp1_1 on its stand-in for MNIST-SVHN, exp1_2 and exp2 on PolyMNIST at full size with MoPoE's small networks, exp2 with
its paper's residual ones too, exp3 on captions of birds. All else is as in the presets, but that PolyMNIST's energy
enters early. A run that the clock or a divergence ended is measured at its last checkpoint.
"""

from __future__ import annotations

import csv
import json
import statistics
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bench.record import facts, write
from mmebm import data
from mmebm.evaluation.runs import draw_figures, evaluate_run
from mmebm.training import TrainingDiverged, load_config, train

RESULTS = Path(__file__).parents[1] / "results" / "presets.csv"
SECONDS = 7200.0
_ALL = (
    "threads=1", "train.log_every=25", "train.checkpoint_every=100", "evaluate.samples=2000",
    "evaluate.cross_rows=1000", "evaluate.mixture_latents=5000", "evaluate.probe_rows=1000",
)  # fmt: skip
_ON_GPU = ("device=cuda", "train.cuda_graph=true")
_CONV = ("model.network=conv", "train.energy_enters=1500", "train.energy_warmup=1500")
_RESIDUAL = ("train.energy_enters=700", "train.energy_warmup=700")
# Name -> preset and what is set.
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "exp1_1": ("exp1_1", ()),
    "exp1_2-conv": ("exp1_2", _CONV),
    "exp2-conv": ("exp2", _CONV),
    "exp2": ("exp2", _RESIDUAL),
    "exp3": ("exp3", ()),
}
CURVE = ("objective", "kl_reference", "E_q", "E_p")


class _OutOfTime(Exception):
    pass


def trained(folder: Path, name: str, seconds: float = SECONDS) -> Path:
    """A run folder with evaluation and figures, trained until clock, schedule or a divergence ends it."""
    path = folder / name
    if (path / "evaluation.json").exists():
        return path
    preset, overrides = RUNS[name]
    config = load_config(preset, [*_ALL, *overrides, *(_ON_GPU if torch.cuda.is_available() else ())])

    def clock(*_: Any) -> None:
        if _seconds(path) >= seconds:
            raise _OutOfTime

    resume = (path / "checkpoint.safetensors").exists()
    with suppress(_OutOfTime, TrainingDiverged):
        rows = data.load(config.data.name, "train", **config.data.options)
        train(config, rows, path, resume=resume, force=not resume, progress=clock)
    evaluate_run(path, device="auto")
    draw_figures(path, device="auto")
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
    revision, rows = facts()["revision"], list[dict[str, Any]]()
    for name in RUNS:
        path = trained(folder, name)
        found, curve = json.loads((path / "evaluation.json").read_text()), _rows(path)
        where = json.loads((path / "environment.json").read_text())
        about = {k: where[k] for k in ("mmebm", "python", "torch")} | {
            "revision": revision,
            "device": where["gpu"] or where["processor"],
            "preset": name,
            "of": load_config(path / "config.json").updates,
            "ended": curve[-1]["update"],
            "measured": found["updates"],
            "minutes": round(_seconds(path) / 60.0, 1),
            "updates_per_second": statistics.median(row["updates_per_second"] for row in curve),
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
    write(RESULTS, rows)


def report() -> str:
    """Markdown, from the CSV alone."""
    with RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    lines = ["| preset | on | updates (measured at, ended, planned) | minutes | " + " | ".join(_COLUMNS) + " |"]
    lines.append("|---|---|---|---|" + "---|" * len(_COLUMNS))
    for preset in RUNS:
        of = [r for r in rows if r["preset"] == preset]
        cells = [_cell(of, kind, name) for kind, name in _COLUMNS.values()]
        first = of[0]
        updates = f"{first['measured']}, {first['ended']}, {first['of']}"
        lines.append(f"| {preset} | {first['device']} | {updates} | {first['minutes']} | " + " | ".join(cells) + " |")
    lines += ["", "| preset, update | " + " | ".join(CURVE) + " |", "|---|" + "---|" * len(CURVE)]
    for preset in RUNS:
        curve = [r for r in rows if (r["preset"], r["kind"]) == (preset, "curve")]
        for r in curve[:: max(1, len(curve) // 4)]:
            lines.append(f"| {preset}, {r['name']} | " + " | ".join(r[k] or "-" for k in CURVE) + " |")
    whole = []
    for preset in RUNS:
        first = next(r for r in rows if r["preset"] == preset)
        if int(first["ended"]) < int(first["of"]):
            hours = int(first["of"]) / float(first["updates_per_second"]) / 3600.0
            whole.append(f"{preset} {hours:.1f} h ({float(first['updates_per_second']):.1f} updates a second)")
    lines.append(
        "\nNot converged where they ended before their plan; all of it, at the median rate of these runs: "
        f"{', '.join(whole)}. torch {rows[0]['torch']}, revision {rows[0]['revision']}."
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
