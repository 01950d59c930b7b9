"""`python -m bench gpu`: one call on one machine with a GPU that builds, checks and times everything for GPUs.

In this order, so that what matters most is there if time runs out: every operator against the float64 reference in
every precision, the statistics tiers, the peaks, the cases against what people use, compute-sanitizer. Rows go to a CSV
as they come. With `--device cpu` the same code runs on the backends of the CPU: a rehearsal, whose times mean nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from bench.build import FLAG
from bench.gpu import cases, checks, peaks, report
from bench.gpu.clock import Clock
from bench.record import RESULTS, facts, replace
from mmebm.kernels import dispatch

ROOT = Path(__file__).parents[2]
KEY = ("part", "case", "backend", "contender", "precision", "device")


class Budget:
    """Seconds that are left of the whole call."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--backends", default="", help="comma-separated; by default all that serve the device")
    parser.add_argument("--seconds", type=float, default=530.0, help="after which nothing new begins")
    parser.add_argument("--tiny", action="store_true", help="small sizes: whether it works, not how fast")
    parser.add_argument(FLAG, action="store_true", help="take the package as it is installed")
    parser.add_argument("--only", default="", help=f"comma-separated parts: {', '.join(PARTS)}")
    parser.add_argument("--cases", default="*", help="comma-separated names or shell patterns of cases")
    parser.add_argument("--results", default="gpu", help="bench/results/NAME.csv, or a path")
    parser.add_argument("--seed", type=int, default=None, help="of the checks' inputs; by default from the clock")


def backends(device: torch.device, asked: str) -> list[str]:
    """Those asked for, or all but the reference that serve `langevin` there."""
    if asked:
        return asked.split(",")
    names = [name for name in dispatch.BACKENDS if name != "reference"]
    return [n for n in names if dispatch.unsupported(n, "langevin", device, torch.float32) is None]


class Run:
    """What the parts share: where, by whom, until when, and where rows go."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise SystemExit("--device: expected one that is there, torch finds no CUDA device; --device cpu rehearses")
        self.backends = backends(self.device, options.backends)
        self.patterns = options.cases.split(",")
        self.tiny, self.budget = options.tiny, Budget(options.seconds)
        self.seed = time.time_ns() % (1 << 31) if options.seed is None else options.seed
        self.path = Path(options.results) if options.results.endswith(".csv") else RESULTS / f"{options.results}.csv"
        self.clock = Clock(self.device)
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        self.facts = facts() | {"device": name, "cuda": torch.version.cuda or "", "triton": _version("triton")}
        self.failed: list[str] = []

    def keep(self, part: str, rows: list[dict[str, Any]]) -> None:
        rows = [{"part": part} | {name: row.get(name, "") for name in cases.COLUMNS} | self.facts for row in rows]
        replace(self.path, rows, KEY)
        for row in rows:
            print(report.line(row), flush=True)
            if str(row["verdict"]).startswith("FAILED"):
                self.failed.append(report.line(row))


def _version(module: str) -> str:
    try:
        return str(__import__(module).__version__)
    except ImportError:
        return "absent"


def _checks(run: Run) -> None:
    for row in checks.every(run.device, run.backends, run.seed, run.tiny):
        run.keep("check", [row])


def _statistics(run: Run) -> None:
    """The tiers on the backends in question, in a process of their own."""
    # Leaves a third of the time to what follows.
    limit = min(180.0, run.budget.left * 2 / 3)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/statistics", "-k"]
    command += [" or ".join(run.backends)] + (["--collect-only"] if run.tiny else [])
    began = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
        last = (done.stdout.strip().splitlines() or ["nothing printed"])[-1]
        verdict = "ok" if done.returncode == 0 else f"FAILED: exit {done.returncode}"
        if done.returncode:
            print(done.stdout[-6000:], flush=True)
    except subprocess.TimeoutExpired:
        last, verdict = f"stopped after {limit:.0f} s", "not finished"
    row = {"case": "tests/statistics", "backend": ",".join(run.backends), "note": last, "verdict": verdict}
    run.keep("statistics", [row | {"median_s": time.monotonic() - began}])


def _peaks(run: Run) -> None:
    run.keep("peak", peaks.measure(run.clock, run.tiny))


def _cases(run: Run) -> None:
    for case in cases.every(run.tiny):
        if not any(fnmatch(case.name, pattern) for pattern in run.patterns):
            continue
        if run.budget.left < 20.0 and not run.tiny:
            run.keep("case", [{"case": case.name, "note": "no time left", "verdict": "not run"}])
            continue
        run.keep("case", case.measure(run.clock, run.backends, peaks.recorded(run.path, run.facts["device"])))


def _sanitizer(run: Run) -> None:
    """Small checks under memcheck and racecheck; in the rest of the time."""
    if run.device.type != "cuda":
        return
    tool = shutil.which("compute-sanitizer")
    for check in ("memcheck", "racecheck"):
        row = {"case": f"compute-sanitizer {check}", "backend": ",".join(run.backends)}
        if tool is None or run.budget.left < 30.0:
            why = "compute-sanitizer is not on the PATH" if tool is None else "no time left"
            run.keep("sanitizer", [row | {"note": why, "verdict": "not run"}])
            continue
        command = [tool, "--tool", check, "--error-exitcode", "99", sys.executable, "-m", "bench", *_small_checks(run)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=run.budget.left / 2, check=False,
                env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )  # fmt: skip
            verdict = "ok" if done.returncode == 0 else f"FAILED: exit {done.returncode}"
            note = (done.stdout.strip().splitlines() or [""])[-1]
        except subprocess.TimeoutExpired:
            note, verdict = "stopped for lack of time", "not finished"
        run.keep("sanitizer", [row | {"note": note, "verdict": verdict}])
    run.path.with_suffix(".sanitizer.csv").unlink(missing_ok=True)


def _small_checks(run: Run) -> list[str]:
    """Arguments of `python -m bench`: of the package as it stands, since nothing is to be built under a tool."""
    arguments = [
        "gpu",
        FLAG,
        "--tiny",
        "--only",
        "checks",
        "--seed",
        str(run.seed),
        "--backends",
        ",".join(run.backends),
    ]
    return [*arguments, "--results", str(run.path.with_suffix(".sanitizer.csv"))]


PARTS = {"checks": _checks, "statistics": _statistics, "peaks": _peaks, "cases": _cases, "sanitizer": _sanitizer}


def main(options: argparse.Namespace) -> int:
    """Runs the parts; 1 where anything failed."""
    chosen = options.only.split(",") if options.only else list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        raise SystemExit(f"--only: expected among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    run = Run(options)
    print(f"{run.facts['device']}, backends {', '.join(run.backends) or 'none'}, seed {run.seed}", flush=True)
    if not run.backends:
        for name in dispatch.BACKENDS:
            print(f"  {name}: {dispatch.unsupported(name, 'langevin', run.device, torch.float32)}")
        return 1
    for name in chosen:
        if run.budget.left > 0:
            PARTS[name](run)
    print(report.table(run.path, run.facts["device"]))
    for line in run.failed:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if run.failed else 0
