"""The queue of recorded experiments: it does what is missing, goes on after a failure, and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.experiments import EXPERIMENTS, listing, work_off


class Experiment:
    """Three parts, kept in the run folder; `stop_at` breaks before one, once."""

    __doc__ = "made up.\n\nSecond line."

    def __init__(self, results: Path, stop_at: int | None = None) -> None:
        self.RESULTS, self.stop_at, self.done = results, stop_at, []

    def run(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for part in range(3):
            if (folder / str(part)).exists():
                continue
            if part == self.stop_at:
                self.stop_at = None
                raise RuntimeError("the power went")
            (folder / str(part)).touch()
            self.done.append(part)
        self.RESULTS.write_text("done")

    def report(self) -> str:
        return f"table of {self.RESULTS.stem}"


@pytest.fixture
def queue(tmp_path: Path) -> dict[str, Any]:
    return {name: Experiment(tmp_path / f"{name}.csv", stop) for name, stop in (("a", 1), ("b", None))}


def test_it_resumes(queue: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert work_off([], tmp_path / "runs", queue) == ["a"]
    shown = capsys.readouterr()
    assert "table of b" in shown.out and "table of a" not in shown.out and "the power went" in shown.err
    assert work_off([], tmp_path / "runs", queue) == []
    assert (queue["a"].done, queue["b"].done) == ([0, 1, 2], [0, 1, 2])
    assert "table of a" in capsys.readouterr().out
    assert work_off([], tmp_path / "runs", queue) == [] and capsys.readouterr().out == ""


def test_a_named_one_runs_though_recorded(queue: dict[str, Any], tmp_path: Path) -> None:
    queue["b"].RESULTS.touch()
    assert work_off(["b"], tmp_path / "runs", queue) == [] and queue["b"].done == [0, 1, 2]
    assert queue["a"].done == []


def test_the_list_tells_what_is_missing(queue: dict[str, Any]) -> None:
    queue["b"].RESULTS.touch()
    assert listing(queue).splitlines() == ["a          missing   made up.", "b          recorded  made up."]


def test_the_registered_ones_have_the_face() -> None:
    for name, module in EXPERIMENTS.items():
        assert module.RESULTS.name == f"{name}.csv" and module.RESULTS.parent.name == "results"
        assert callable(module.run) and callable(module.report) and module.__doc__
