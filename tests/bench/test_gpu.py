"""`python -m bench gpu`, rehearsed on the CPU: the same code, small sizes, times that mean nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import build, gpu
from bench.gpu import cases, checks, emulate, model, peaks, report
from bench.gpu.clock import Clock
from bench.record import RESULTS, read
from mmebm.kernels import dispatch, native, reference
from mmebm.kernels.reference import MLP

pytestmark = pytest.mark.skipif(not native.available(), reason="the native CPU module cannot be loaded")
CPU = torch.device("cpu")


def options(path: Path, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    gpu.add_arguments(parser)
    return parser.parse_args(["--device", "cpu", "--tiny", "--results", str(path), "--seed", "3", *arguments])


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(cases, "SECONDS", 0.2)


def test_a_rehearsal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.csv"
    assert gpu.main(options(path, "--only", "checks,peaks,cases,sanitizer")) == 0
    rows = read(path)
    assert {row["part"] for row in rows} == {"check", "peak", "case"}
    assert {row["case"] for row in rows if row["part"] == "check"} == set(checks.CHECKS)
    assert all(row["verdict"] == "ok" for row in rows if row["part"] == "check")
    timed = [row for row in rows if row["verdict"] == "timed"]
    assert {row["contender"] for row in timed} >= {"mmebm", "eager, fp32", "torch.compile step"}
    assert all(float(row["median_s"]) > 0 and float(row["ratio"]) > 0 for row in timed)
    said = capsys.readouterr().out
    assert "check  energy  cpu  bf16  error" in said and "| chains or experts |" in said
    assert gpu.main(options(path, "--only", "peaks")) == 0
    assert len(read(path)) == len(rows), "rows are replaced, not added"


def test_a_wrong_kernel_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = native.langevin_update

    def wrong(*args: Any) -> torch.Tensor:
        return right(*args) * 1.00001

    monkeypatch.setattr(native, "langevin_update", wrong)
    rows = {row["case"]: row for row in checks.every(CPU, ["cpu"], 1, True)}
    assert rows["langevin_update"]["verdict"] == "FAILED"
    assert float(rows["langevin_update"]["error"]) > float(rows["langevin_update"]["allowed"])
    assert [name for name, row in rows.items() if row["verdict"] != "ok"] == ["langevin_update"]


def test_what_is_not_written_is_seen() -> None:
    with checks.poisoned():
        assert torch.empty(5).isnan().all()
    exact = torch.ones(3, dtype=torch.float64)
    assert checks.loss([torch.tensor([1.0, float("nan"), 1.0])], [exact], False) == [float("inf")]


def test_a_backend_that_serves_nothing_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(dispatch, "unsupported", lambda *a: "it is absent")
    assert gpu.main(options(Path("unused.csv"))) == 1
    assert "cpu: it is absent" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--only: expected among checks, statistics"):
        gpu.main(options(Path("unused.csv"), "--only", "all"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(SystemExit, match="torch finds no CUDA device; --device cpu rehearses"):
        gpu.Run(options(Path("unused.csv"), "--device", "cuda"))


def test_nothing_is_built_under_the_sanitizer(tmp_path: Path) -> None:
    run = gpu.Run(options(tmp_path / "gpu.csv"))
    arguments = gpu._small_checks(run)
    assert not build.wanted(arguments)
    parser = argparse.ArgumentParser()
    gpu.add_arguments(parser)
    parsed = parser.parse_args(arguments[1:])
    assert parsed.tiny and parsed.only == "checks" and parsed.seed == run.seed and parsed.results != str(run.path)


def test_who_builds() -> None:
    assert build.wanted(["gpu"]) and build.wanted(["gpu", "--tiny"])
    assert not any(map(build.wanted, ([], ["run"], ["gpu", "--no-build"], ["gpu", "--device", "cpu"], ["gpu", "-h"])))


@pytest.mark.parametrize(("precision", "least", "most"), [
    ("fp32", 1e-8, 1e-6), ("bf16x3", 1e-7, 3e-5), ("tf32", 1e-5, 2e-3), ("bf16w2", 1e-4, 1e-2), ("bf16", 1e-3, 2e-2),
])  # fmt: skip
def test_emulated_precisions_lose_what_they_should(precision: str, least: float, most: float) -> None:
    """From the mantissas' 24, 16, 11, 8 and 8 bits, and what sums of 64 products make of them."""
    weights = [torch.randn(64, 32) / 32**0.5, torch.randn(64, 64) / 8.0, torch.randn(1, 64) / 8.0]
    net, z = MLP(weights, [torch.randn(64), torch.randn(64), torch.randn(1)], "silu", 0.0, 5.0), torch.randn(200, 32)
    exact = reference.energy_and_grad(
        z.double(), net._replace(weights=[w.double() for w in weights], biases=[b.double() for b in net.biases])
    )[1]
    error = (emulate.energy_and_grad(z, net, precision)[1] - exact).norm() / exact.norm()
    assert least < float(error) < most


def test_a_clock_interleaves() -> None:
    seen: list[str] = []
    spreads = Clock(CPU).interleaved({name: lambda n=name: seen.append(n) for name in "ab"}, 5, 1.0)
    assert [s.rounds for s in spreads.values()] == [5, 5]
    assert all(sorted(seen[i : i + 2]) == ["a", "b"] for i in range(4, 14, 2))
    assert all(0.0 < s.least <= s.median for s in spreads.values())


def test_peaks_are_those_of_the_device(tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    assert peaks.recorded(path, "cpu") == {}
    gpu.main(options(path, "--only", "peaks"))
    found = peaks.recorded(path, "cpu")
    assert set(found) >= {peaks.BANDWIDTH, *peaks.RATES.values()} and all(rate > 0 for rate in found.values())
    assert peaks.recorded(path, "another") == {}


def test_the_pages_have_the_tables() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "gpu.md").read_text()
    assert model.table() in page and model.table().count("\n") > 10
    recorded, device = RESULTS / "gpu.csv", "NVIDIA H200"
    assert report.table(recorded, device) in page
    assert report.summary(recorded, device) in (root / "README.md").read_text()


def test_predictions() -> None:
    """8 tiles a multiprocessor of 1,000 clocks a step; the products of 32-64-64 take 384."""
    found = model.predict(1000, (32, 64, 64), "bf16", 64 * 8 * model.MULTIPROCESSORS, 50)
    assert (found.issue, found.tensor) == (1000, 384)
    assert found.least == pytest.approx(8 * 50 * 1000 / model.CLOCK)
    assert found.most == pytest.approx(8 * 50 * 1384 / model.CLOCK)
    assert model.predict(100, (32, 64, 64), "bf16x3", 64, 1).least == pytest.approx(3 * 384 / model.CLOCK)


def test_flops_are_those_of_the_gradient() -> None:
    """Forward and backward, two a weight; the last layer's forward is left out, its backward no product."""
    assert cases.mlp_flops((32, 128, 128, 1)) == 4 * (32 * 128 + 128 * 128)
