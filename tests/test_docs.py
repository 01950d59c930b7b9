"""What the documentation says is what the committed CSVs and the code give."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import mmebm
from bench.experiments import ablation, digits, frozen, joint
from bench.record import RESULTS
from bench.report import report, summary

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("case", "page"),
    [
        (digits, "README.md"),
        (ablation, "docs/training.md"),
        (frozen, "docs/training.md"),
        (joint, "docs/training.md"),
    ],
)
def test_tables_are_the_csvs(case: ModuleType, page: str) -> None:
    assert case.report() in (ROOT / page).read_text()


def test_measurements_are_the_csv() -> None:
    assert report(RESULTS / "cpu.csv") in (ROOT / "docs" / "benchmarks.md").read_text()
    assert summary(RESULTS / "cpu.csv") in (ROOT / "README.md").read_text()


def test_the_readmes_python_runs(tiny_runs: dict[str, Path]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert '"runs/demo/energy"' in code
    names: dict[str, object] = {}
    exec(code.replace('"runs/demo/energy"', repr(str(tiny_runs["energy"]))), names)
    z, others = names["z"], names["others"]
    assert isinstance(z, torch.Tensor) and z.shape == (512, 16)
    assert isinstance(others, dict) and {m: x.shape for m, x in others.items()} == dict.fromkeys(
        ("m1", "m2"), (64, 3, 16, 16)
    )
    assert isinstance(names["fitted"], mmebm.EnergyPrior)


def test_every_linked_file_is_there() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).is_file(), f"{page.name} links to {link}"
