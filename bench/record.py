"""What every CSV row carries beside its measurement, and how rows are written."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmebm.training.run import environment


def facts() -> dict[str, Any]:
    """Versions, processor and revision."""
    known = {k: v for k, v in environment().items() if k in ("mmebm", "torch", "python", "processor")}
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return known | {"revision": described.stdout.strip()}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One CSV; a column for every key that any row has."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row), restval="")
        writer.writeheader()
        writer.writerows(rows)
