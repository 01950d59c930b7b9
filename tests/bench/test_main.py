"""`python -m bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import cases, record
from bench.__main__ import main
from bench.case import SUBJECT
from bench.cases.langevin import update

Bench = Callable[..., tuple[int, str]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    """Exit status and output; only two tiny cases are registered."""
    tiny = {case.name: case for case in (update(B=20, d=3), update(B=30, d=3))}
    kept = (SUBJECT, "eager")
    tiny = {n: replace(c, contenders={k: c.contenders[k] for k in kept}) for n, c in tiny.items()}
    monkeypatch.setattr(cases, "every", lambda: tiny)
    threads = torch.get_num_threads()

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["bench", *arguments])
        return main(), capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cpu.csv"


def test_run_does_what_is_missing_and_writes_case_by_case(bench: Bench, path: Path) -> None:
    options = ("--results", str(path), "--quick", "--threads", "1")
    code, out = bench("run", "*20x3", *options)
    assert code == 0 and "[1/1] langevin_update/20x3 .." in out
    assert [(r["case"], r["contender"]) for r in record.read(path)] == [
        ("langevin_update/20x3", SUBJECT),
        ("langevin_update/20x3", "eager"),
    ]
    assert "recorded  langevin_update/20x3" in bench("list", "--results", str(path))[1]
    assert "[1/1] langevin_update/30x3 .." in bench("run", *options)[1]
    assert bench("run", *options) == (0, "")
    assert "### langevin_update" in bench("report", str(path), "--plot", str(path.with_suffix(".png")))[1]
    assert path.with_suffix(".png").exists()


def test_a_refused_case_is_told_by_the_exit_status(bench: Bench, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gate.values", lambda *_: "it is wrong")
    code, out = bench("run", "*20x3", "--results", str(path), "--quick", "--threads", "1")
    assert code == 1 and "mmebm refused: it is wrong" in out
    assert "missing   langevin_update/20x3" in bench("list", "--results", str(path))[1]
    assert "refused: it is wrong" in bench("report", str(path))[1]


def test_a_case_that_breaks_leaves_no_row(bench: Bench, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.run.interleave", lambda *_, **__: 1 / 0)
    code, out = bench("run", "--results", str(path), "--quick", "--threads", "1")
    assert code == 1 and out.count("failed: ZeroDivisionError") == 2 and not path.exists()


def test_experiments_are_listed_and_named(bench: Bench) -> None:
    assert [line.split()[0] for line in bench("experiments", "list")[1].splitlines()][:2] == ["digits", "ablation"]
    with pytest.raises(SystemExit, match=r"NAME: expected among digits, .*got nothing"):
        bench("experiments", "run", "nothing")
    assert bench("experiments", "report", "digits")[1].startswith("| model |")
