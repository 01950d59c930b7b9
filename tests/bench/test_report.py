"""Tables and the plot, from a small made-up CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import record
from bench.case import SUBJECT
from bench.plot import plot
from bench.report import report

Made = Callable[..., dict[str, Any]]


@pytest.fixture
def csv(tmp_path: Path, row: Made) -> Path:
    path, case = tmp_path / "cpu.csv", "langevin/16x64/B64"
    model = {"limit": "FMA loop", "model": "1 flop + 0.015 silu + 0.004 normals"}
    record.write(
        path,
        [
            row(case, SUBJECT, 1.0, backend="cpu", isa="avx512", **model),
            row(case, "eager autograd", 40.0),
            row(case, "torch.compile", 30.0, scaled_from="K=7"),
            row(case, "torchebm", 60.0, rounds="", note="absent: `make bench` installs torchebm", version=""),
            row(case, "torch.mm(4096,h,h)", 0.87),
            row(case, "FMA loop", 0.45),
            row("stage/avx512", "FMA loop", 1.0, threads=1),
            row("stage/avx512", "silu", 40.0, threads=1),
            row("stage/avx512", "normals", 100.0, threads=1),
            row("subset_experts-all/M5", SUBJECT, 1.0, limit="fill_", model="1 byte", unit="GB/s"),
            row("subset_experts-all/M5", "fill_", 0.78),
            row("langevin/16x64/B512", SUBJECT, 1.0, backend="cpu", isa="avx2", **model),
            row("langevin/16x64/B512", "FMA loop", 0.6),
        ],
    )
    return path


def test_every_ratio_has_its_place(csv: Path) -> None:
    text = report(csv)
    assert "| sizes | backend | mmebm | vs eager autograd | vs torch.compile | vs torchebm |" in text
    assert "| cpu avx512 | 1.2 ms | 40.00 [36.00-44.00] | 30.00 [27.00-33.00]* | absent |" in text
    assert "| langevin | B=64 d=16 h=64 L=2 K=50 | avx512 | 100 (120) | 115 (138) | 0.87 [0.78-0.96] |" in text
    assert "- torchebm, absent: `make bench` installs torchebm (1 cases, such as langevin/16x64/B64)" in text
    assert "A processor (6/1/0); 2 cores; avx512f; threads: 1, 2; torch 2.13.0" in text and "revision abc1234" in text


def test_the_bound_adds_what_its_parts_cost(csv: Path) -> None:
    # 1 + 0.015 * 40 + 0.004 * 100 = 2 flops of time per flop, so that 0.45 of the loop's rate is 90% of the bound.
    words = "multiply-adds at L1 rate 50% + SiLU with its derivative 30% + Philox normals 20%"
    text = report(csv)
    assert f"| langevin/16x64/B64 | 2 | avx512 | 100 GFLOP/s | 0.45 [0.41-0.50] FMA loop | 90% | {words} |" in text
    stores = "0.78 [0.70-0.86] fill_ | 78% | all bytes at the rate of fill_"
    assert f"| subset_experts-all/M5 | 2 |  | 100 GB/s | {stores} |" in text


def test_a_bound_without_its_parts_says_so(csv: Path) -> None:
    why = "0.60 [0.54-0.66] FMA loop |  | no stage rate of silu, normals on avx2"
    assert f"| langevin/16x64/B512 | 2 | avx2 | 100 GFLOP/s | {why} |" in report(csv)


def test_the_plot_is_a_png(csv: Path, tmp_path: Path) -> None:
    plot(csv, tmp_path / "cpu.png")
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="expected timed cases, got none"):
        plot(tmp_path / "none.csv", tmp_path / "none.png")


def test_an_empty_csv_says_what_to_run(tmp_path: Path) -> None:
    assert "`python -m bench run`" in report(tmp_path / "cpu.csv")
