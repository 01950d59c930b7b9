"""What the device can do at most: copy bandwidth and matrix rates, measured before anything is held against them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.gpu.clock import Clock
from bench.record import read

BANDWIDTH = "copy"
# Matrix rates that bound a precision's kernels; three products of bf16x3, two of bf16w2 count in a case's work.
RATES = {"bf16": "matmul bf16", "bf16w2": "matmul bf16", "bf16x3": "matmul bf16", "tf32": "matmul tf32"}


def measure(clock: Clock, tiny: bool) -> list[dict[str, Any]]:
    """Rows with `rate` in GB/s or GFLOP/s."""
    n, size = (1 << 18, 256) if tiny else (1 << 29, 8192)
    source = torch.ones(n // 4, device=clock.device)
    target = torch.empty_like(source)
    rows = [_row(clock, BANDWIDTH, lambda: target.copy_(source), 2e-9 * 4 * source.numel(), "GB/s")]
    kinds = [("matmul bf16", torch.bfloat16, "highest"), ("matmul tf32", torch.float32, "high")]
    for name, dtype, precision in [*kinds, ("matmul fp32", torch.float32, "highest")]:
        a, b = (torch.randn(size, size, device=clock.device).to(dtype) for _ in range(2))
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        rows.append(_row(clock, name, lambda a=a, b=b: a @ b, 2e-9 * size**3, "GFLOP/s"))
        torch.set_float32_matmul_precision(before)
    return rows


def _row(clock: Clock, name: str, call: Any, work: float, unit: str) -> dict[str, Any]:
    spread = clock.interleaved({name: call}, 20, 3.0)[name]
    return {
        "case": name, "rounds": spread.rounds, "min_s": spread.least, "median_s": spread.median, "p80_s": spread.p80,
        "rate": work / spread.median, "unit": unit,
    }  # fmt: skip


def recorded(path: Path, device: str) -> dict[str, float]:
    """Rates by name, of the latest measurement on this device; none where there is none."""
    rows = [row for row in read(path) if row["part"] == "peak" and row["device"] == device]
    return {row["case"]: float(row["rate"]) for row in rows}
