"""generation: rows a second and where the time goes, memory by rows, and cross coherence with and without refinement.

Two runs of `digits`, seed 0: the generalised preset and the base one.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.record import facts, write
from mmebm import data
from mmebm.evaluation.classifiers import load_or_train
from mmebm.generate import cross_generate, generate, refine
from mmebm.models import MultimodalVAE
from mmebm.training import load_config, train
from mmebm.training.run import load

RESULTS = Path(__file__).parents[1] / "results" / "generation.csv"
PRESETS = ("digits", "digits-base")
ROWS = 40_960
MEMORY = (10_000, 100_000, 1_000_000)
REFINEMENTS = ((0, 0.05), (10, 0.05), (50, 0.05), (200, 0.05))
OBSERVED, COHERENCE_ROWS = (1, 2, 3, 4), 1000


def trained(folder: Path, preset: str) -> Path:
    path = folder / preset
    config = load_config(preset, ["seed=0", "threads=1"])
    if not (path / "model.safetensors").exists() or _updates(path) < config.updates:
        train(config, data.load("digits", "train", **config.data.options), path, force=True)
        print(f"{path} done", flush=True)
    return path


def _updates(path: Path) -> int:
    lines = (path / "metrics.jsonl").read_text().splitlines() if (path / "metrics.jsonl").exists() else []
    return json.loads(lines[-1])["update"] if lines else 0


class _Clock:
    """Seconds within the calls of some modules, which are not nested in each other."""

    def __init__(self, modules: list[torch.nn.Module]) -> None:
        self.seconds, self._began = 0.0, 0.0
        self.handles = [m.register_forward_pre_hook(self._begin) for m in modules]
        self.handles += [m.register_forward_hook(self._end) for m in modules]

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._began


def throughput(run: Path, folder: Path) -> list[dict[str, Any]]:
    """Cross-generation of four modalities from one, and joint generation, in files of uint8."""
    rows = []
    for name, call in (
        ("cross", lambda out: cross_generate(run, out, "digits:test", cond_mod="m0", rows=ROWS, dtype="uint8")),
        ("joint", lambda out: generate(run, out, rows=ROWS, dtype="uint8")),
    ):
        clocks: dict[str, _Clock] = {}

        def hooked(path: Path | str, clocks: dict[str, _Clock] = clocks) -> MultimodalVAE:
            model = load(path)
            clocks["decoders"] = _Clock(list(model.decoders.values()))
            clocks["encoders"] = _Clock([m for n, p in model.named_children() if "encoders" in n for m in p.values()])
            return model

        total = _timed(partial(call, folder / name), hooked)
        shutil.rmtree(folder / name)
        shares = {part: clock.seconds / total for part, clock in clocks.items()}
        rows.append(
            {"kind": "throughput", "call": name, "rows": ROWS, "rows_per_second": round(ROWS / total)}
            | {f"{part}_share": round(share, 4) for part, share in shares.items()}
        )
    return rows


def _timed(call: Callable[[], Any], hooked: Callable[..., MultimodalVAE]) -> float:
    """Seconds of the call, whose model has its clocks."""
    from mmebm import generate as module

    plain, module.load = module.load, hooked  # type: ignore[attr-defined]
    try:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    finally:
        module.load = plain  # type: ignore[attr-defined]


def memory(run: Path, folder: Path) -> list[dict[str, Any]]:
    """Largest resident memory of a process that cross-generates, by number of rows."""
    code = (
        "import resource, sys, torch; torch.set_num_threads(1); from mmebm.generate import cross_generate; "
        "cross_generate(sys.argv[1], sys.argv[2], 'digits:test', cond_mod='m0', gen_mod='m1', rows=int(sys.argv[3]), "
        "dtype='uint8', file_rows=8192); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    rows = []
    for count in MEMORY:
        out = folder / "memory"
        done = subprocess.run(
            [sys.executable, "-c", code, str(run), str(out), str(count)], capture_output=True, text=True, check=True
        )
        shutil.rmtree(out)
        rows.append({"kind": "memory", "call": "cross", "rows": count, "peak_mib": round(int(done.stdout) / 1024)})
    return rows


@torch.no_grad()
def refinement(run: Path) -> list[dict[str, Any]]:
    """Cross coherence on the modalities that are not observed, the first k being."""
    model, test = load(run), data.load("digits", "test")
    judges = load_or_train(data.load("digits", "train"), test)
    index = torch.arange(COHERENCE_ROWS)
    inputs, rows = test.batch(index), []
    assert test.labels is not None
    for steps, step_size in REFINEMENTS:
        for k in OBSERVED:
            given = {m: inputs[m] for m in model.modalities[:k]}
            z: Tensor = model.encode(given, list(given), seed=0)
            z = refine(model, given, z, steps, step_size, seed=0) if steps else z
            made = model.decode(z, model.modalities[k:], seed=0)
            right = [float((judges.predict(m, x) == test.labels[index]).double().mean()) for m, x in made.items()]
            rows.append(
                {"kind": "refinement", "call": f"{steps} steps of {step_size}", "rows": len(index), "observed": k}
                | {"coherence": round(sum(right) / len(right), 4)}
            )
    return rows


def run(folder: Path) -> None:
    torch.set_num_threads(1)
    known, rows = facts(), []
    for preset in PRESETS:
        path = trained(folder, preset)
        found = throughput(path, folder) + refinement(path)
        found += memory(path, folder) if preset == PRESETS[0] else []
        rows += [{"preset": preset} | row | {"threads": 1} | known for row in found]
    write(RESULTS, rows)


def report() -> str:
    """Markdown, from the CSV alone."""
    with RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    lines = ["| preset | call | rows a second | in decoders | in encoders | elsewhere |", "|---|---|---|---|---|---|"]
    for r in (r for r in rows if r["kind"] == "throughput"):
        shares = [float(r["decoders_share"]), float(r["encoders_share"])]
        cells = [f"{100 * s:.0f}%" for s in (*shares, 1.0 - sum(shares))]
        lines.append(f"| {r['preset']} | {r['call']} | {int(r['rows_per_second']):,} | " + " | ".join(cells) + " |")
    memories = [r for r in rows if r["kind"] == "memory"]
    lines.append("\n| rows | " + " | ".join(f"{int(r['rows']):,}" for r in memories) + " |")
    lines.append("|---|" + "---|" * len(memories))
    lines.append("| largest resident memory, MiB | " + " | ".join(r["peak_mib"] for r in memories) + " |")
    lines.append("\n| preset | refinement of z | " + " | ".join(f"{k} observed" for k in OBSERVED) + " |")
    lines.append("|---|---|" + "---|" * len(OBSERVED))
    found = [r for r in rows if r["kind"] == "refinement"]
    for preset, call in dict.fromkeys((r["preset"], r["call"]) for r in found):
        cells = [r["coherence"] for r in found if (r["preset"], r["call"]) == (preset, call)]
        lines.append(f"| {preset} | {call} | " + " | ".join(cells) + " |")
    first = rows[0]
    lines.append(f"\nOne thread; torch {first['torch']}, revision {first['revision']}.")
    return "\n".join(lines)
