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

TESTS = Path(__file__).parents[2] / "tests"
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


def _line(kernel: str, by: str, widths: tuple[int, ...], row: dict[str, str], rows: int, steps: int) -> str:
    found = predict(int(row["instructions"]), widths, row["precision"], rows, steps)
    return (
        f"| {kernel} | {by} | {'-'.join(map(str, widths))}-1 | {row['precision']} | {row['stack']} "
        f"| {int(row['shared']) / 1024:.0f} | {row['spills']} | {found.issue:.0f} | {found.tensor:.0f} "
        f"| {1e3 * found.least:.2f}-{1e3 * found.most:.2f} |"
    )


def _triton() -> list[tuple[str, str, tuple[int, ...], dict[str, str]]]:
    """The recorded configurations on sm_90 that use tensor cores and hold nothing."""
    found = []
    for row in csv.DictReader((TESTS / "triton" / "budgets.csv").open(newline="")):
        told = row["kernel"] in ("langevin", "mala") and row["activation"] == "silu" and row["precision"] in PRODUCTS
        if told and row["sm"] == "90" and not row["options"]:
            found.append((row["kernel"], "Triton", (int(row["dim"]), *map(int, row["hidden"].split("x"))), row))
    return found


def _cuda() -> list[tuple[str, str, tuple[int, ...], dict[str, str]]]:
    """Chains by warps on sm_90a, two hidden layers, whose instructions were counted."""
    found = []
    for row in csv.DictReader((TESTS / "cuda" / "budgets.csv").open(newline="")):
        if row["instructions"]:
            engine, dim, width, _ = row["kernel"].removeprefix("WarpChain<").removesuffix(">").split(", ")
            by = "CUDA, wgmma" if engine == "WgmmaEngine" else "CUDA, mma.sync"
            spills = str((int(row["spill_stores"]) + int(row["spill_loads"])) // 4)
            row |= {"precision": "bf16", "spills": spills}
            found.append(("langevin", by, (int(dim), int(width), int(width)), row))
    return found


def table(rows: int = 65_536, steps: int = 50) -> str:
    """Markdown."""
    lines = [
        "| kernel | by | network | precision | stack, B | shared, KB | spills | issue, clk | tensor, clk "
        "| predicted, ms |",
        "|---" * 10 + "|",
        *(_line(*of, rows, steps) for of in (*_cuda(), *_triton())),
    ]
    return "\n".join(lines) + "\n"
