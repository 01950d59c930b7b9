"""What every CSV row carries beside its measurement, and how rows are read, written and replaced."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmebm.kernels import native
from mmebm.training.run import environment

RESULTS = Path(__file__).parent / "results"
_ROOT = Path(__file__).parents[1]
# Instruction sets worth naming, as /proc/cpuinfo spells them.
_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")


def facts() -> dict[str, Any]:
    """Versions, processor and revision: git's, or in a copy without a history what MMEBM_REVISION says."""
    known = {k: v for k, v in environment().items() if k in ("mmebm", "torch", "python", "processor")}
    if revision := os.environ.get("MMEBM_REVISION"):
        return known | {"revision": revision}
    revision = _git("describe", "--always")
    # What earlier cases have written does not change what this one measures.
    changed = _git("status", "--porcelain", "--", ".", ":!bench/results")
    return known | {"revision": revision + ("-dirty" if changed else "")}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=_ROOT)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """`facts`, with the processor's model and instruction sets and the compiler of the native module."""
    compiler = native.build_info()["compiler"] if native.available() else "no native module"
    known = facts()
    return known | {"processor": _described(known["processor"]), "compiler": compiler}


def _described(name: str) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{name}; {os.cpu_count()} cores"
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    first = {key.strip(): value.strip() for key, _, value in reversed([*lines])}
    numbers = "/".join(first.get(key, "?") for key in ("cpu family", "model", "stepping"))
    found = [f for f in _FEATURES if f in first.get("flags", "").split()]
    return f"{name} ({numbers}); {os.cpu_count()} cores; {' '.join(found)}"


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One CSV, whole or not at all; a column for every key that any row has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, dict.fromkeys(key for row in rows for key in row), restval="", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def replace(path: Path, rows: Sequence[dict[str, Any]], key: Sequence[str]) -> None:
    """Puts `rows` where the first rows with the same values of `key` stood, else at the end; the others stay."""
    new = {tuple(str(row[k]) for k in key) for row in rows}
    kept: list[dict[str, Any]] = []
    at = None
    for row in read(path):
        if tuple(row[k] for k in key) in new:
            at = len(kept) if at is None else at
        else:
            kept.append(row)
    at = len(kept) if at is None else at
    write(path, [*kept[:at], *rows, *kept[at:]])
