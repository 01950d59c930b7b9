"""The CSV: a round trip, replacement in place, nothing half written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import record

KEY = ("case", "threads")


def test_rows_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cpu.csv"
    record.write(path, [{"case": "a", "note": 'with "quotes", commas\nand lines'}, {"case": "b", "rate": 1.5}])
    assert record.read(path) == [
        {"case": "a", "note": 'with "quotes", commas\nand lines', "rate": ""},
        {"case": "b", "note": "", "rate": "1.5"},
    ]
    assert record.read(tmp_path / "none.csv") == []


def test_a_case_is_replaced_where_it_stood(tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    old = [{"case": c, "threads": t, "contender": n} for c, t, n in (("a", 2, "x"), ("b", 2, "x"), ("b", 2, "y"))]
    record.write(path, [*old, {"case": "b", "threads": 1, "contender": "x"}, {"case": "c", "threads": 2}])
    record.replace(path, [{"case": "b", "threads": 2, "contender": "z", "new": "1"}], KEY)
    found = [(r["case"], r["threads"], r["contender"], r["new"]) for r in record.read(path)]
    assert found == [("a", "2", "x", ""), ("b", "2", "z", "1"), ("b", "1", "x", ""), ("c", "2", "", "")]
    record.replace(path, [{"case": "d", "threads": 2}], KEY)
    assert record.read(path)[-1]["case"] == "d"


def test_a_failed_write_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    record.write(path, [{"case": "a"}])

    class Broken:
        def __str__(self) -> str:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        record.write(path, [{"case": "a"}, {"case": Broken()}])
    assert record.read(path) == [{"case": "a"}]


def test_the_machine_is_told_from_its_like() -> None:
    known = record.machine()
    assert set(known) == {"mmebm", "torch", "python", "processor", "revision", "compiler"}
    assert all(known.values())
    if Path("/proc/cpuinfo").exists():
        assert re.search(r"\((\d+|\?)/(\d+|\?)/(\d+|\?)\); \d+ cores; ", known["processor"])
