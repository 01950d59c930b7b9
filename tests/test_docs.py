"""What the documentation says is what the committed CSVs and the code give."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import mmebm
from bench import launches
from bench.experiments import ablation, digits, frozen, generation, joint, mfeat, models, presets
from bench.record import RESULTS
from bench.report import report, summary
from mmebm.kernels import ops

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("case", "page"),
    [
        (digits, "README.md"),
        (ablation, "docs/training.md"),
        (frozen, "docs/training.md"),
        (joint, "docs/training.md"),
        (models, "docs/models.md"),
        (mfeat, "docs/experiments.md"),
        (generation, "docs/experiments.md"),
        (presets, "docs/experiments.md"),
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


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def test_the_first_pages_script_runs_in_a_fresh_interpreter(tmp_path: Path) -> None:
    (code,) = blocks(ROOT / "docs" / "README.md")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "short_run(a=" in done.stdout and "rhat" in done.stdout and "log Z = " in done.stdout


def test_the_loops_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it in one namespace, as a reader would paste it; then its first two loops, on the engine's noise."""
    names: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for code in blocks(ROOT / "docs" / "sampling.md"):
            exec(code, names)
    assert any("Conv2d" in str(w.message) for w in told)
    assert names["x"].shape == (256, 8) and names["figure"].axes and names["low"].value < names["high"].value + 1.0

    def replayed(steps: int, rows: int, dim: int) -> None:
        noise = iter(ops.draw(torch.tensor([1, 0, 0]), steps, rows, dim, law="normal", purpose=0))
        monkeypatch.setattr(torch, "randn_like", lambda x: next(noise).view_as(x))

    z = torch.randn(30, 100)
    replayed(5, 30, 100)
    before = names["sample_prior"](z, steps=5)
    after = mmebm.langevin(names["ebm"], z, steps=5, step_size=0.4, reference="normal", seed=1)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)

    images = names["buffer"]
    replayed(20, 64, 192)
    before = names["sample_q"](restart=0.0)
    after = mmebm.langevin(
        names["f"], images, steps=20, coefficients=torch.tensor([[1.0, 0.01, 1.0]]).repeat(20, 1), negate=True,
        event_dims=3, seed=1,
    )  # fmt: skip
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_the_launches_are_those_counted() -> None:
    assert launches.table() in (ROOT / "docs" / "sampling.md").read_text()


def test_every_linked_file_and_heading_is_there() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link, heading in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", page.read_text()):
            target = page.parent / link if link else page
            assert target.is_file(), f"{page.name} links to {link}"
            headings = (
                [
                    line.lstrip("# ").lower().replace(" ", "-")
                    for line in target.read_text().splitlines()
                    if line.startswith("#")
                ]
                if heading
                else []
            )
            assert not heading or heading in headings, f"{page.name} links to {link}#{heading}"
