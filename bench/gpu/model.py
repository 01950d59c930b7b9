"""From counted instructions to predicted times: a static model of the whole-chain kernels, to be held against a GPU.

A streaming multiprocessor has four schedulers that issue one warp's instruction a clock each, so that a program of 4
warps takes as many clocks a step as a thread has instructions, and its tensor cores take their products at a known rate
beside that. The two overlap where several programs share the multiprocessor: a step of a tile takes at least the larger
of both, at most their sum. Latency is not in the model: it holds for batches that fill the device several times.
"""

from __future__ import annotations

import csv
import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

BUDGETS = Path(__file__).parents[2] / "tests" / "triton" / "budgets.csv"
# An H100 or H200 (SXM): multiprocessors; the clock assumed under load; dense bf16 flops a clock and multiprocessor.
MULTIPROCESSORS, CLOCK, BF16 = 132, 1.7e9, 4096
PRODUCTS = {"bf16": 1.0, "bf16w2": 2.0, "bf16x3": 3.0, "tf32": 2.0}  # in products of bf16 matrices
TILE = 64


class Prediction(NamedTuple):
    """Clocks a step of a tile of 64 chains, and seconds of a call."""

    issue: float
    tensor: float
    least: float
    most: float


def predict(instructions: int, widths: tuple[int, ...], precision: str, rows: int, steps: int) -> Prediction:
    """`widths`: d and the hidden layers, as padded. Errors: KeyError for fp32, whose products are no tensor cores'."""
    products = sum(i * o for i, o in pairwise(widths))
    tensor = 4.0 * products * TILE * PRODUCTS[precision] / BF16
    tiles = math.ceil(math.ceil(rows / TILE) / MULTIPROCESSORS)
    least, most = max(instructions, tensor), instructions + tensor
    return Prediction(instructions, tensor, tiles * steps * least / CLOCK, tiles * steps * most / CLOCK)


def table(rows: int = 65_536, steps: int = 50) -> str:
    """Markdown, of the recorded configurations on sm_90 that use tensor cores and hold nothing."""
    lines = [
        "| kernel | network | precision | stack, B | shared, KB | spills | issue, clk | tensor, clk | predicted, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with BUDGETS.open(newline="") as file:
        budgets = list(csv.DictReader(file))
    for row in budgets:
        told = row["kernel"] in ("langevin", "mala") and row["activation"] == "silu" and row["precision"] in PRODUCTS
        if not told or row["sm"] != "90" or row["options"]:
            continue
        widths = (int(row["dim"]), *map(int, row["hidden"].split("x")))
        found = predict(int(row["instructions"]), widths, row["precision"], rows, steps)
        lines.append(
            f"| {row['kernel']} | {row['dim']}-{'-'.join(row['hidden'].split('x'))}-1 | {row['precision']} "
            f"| {row['stack']} | {int(row['shared']) / 1024:.0f} | {row['spills']} | {found.issue:.0f} "
            f"| {found.tensor:.0f} | {1e3 * found.least:.2f}-{1e3 * found.most:.2f} |"
        )
    return "\n".join(lines) + "\n"
