"""Rows as `bench.run` writes them, made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

FACTS = {
    "processor": "A processor (6/1/0); 2 cores; avx512f",
    "torch": "2.13.0",
    "python": "3.11.7",
    "compiler": "GNU 12.2.0",
    "mmebm": "0.1.0",
    "revision": "abc1234",
}


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    """A row of contender `name` that the subject is `ratio` times faster than; anything else by name."""

    def made(case: str, name: str, ratio: float, **changes: Any) -> dict[str, Any]:
        timing = {
            "rounds": 11,
            "min_s": 0.001 * ratio,
            "median_s": 0.0012 * ratio,
            "ratio_median": ratio,
            "ratio_q1": 0.9 * ratio,
            "ratio_q3": 1.1 * ratio,
            "rate": 100.0 / ratio,
            "best_rate": 120.0 / ratio,
        }
        row = {"case": case, "operator": "langevin", "sizes": "B=64 d=16 h=64 L=2 K=50", "contender": name, "note": ""}
        row |= timing | {"unit": "GFLOP/s", "scaled_from": "", "limit": "", "model": "", "threads": 2}
        row |= {"backend": "", "isa": "", "version": ""} | FACTS
        return row | changes

    return made
