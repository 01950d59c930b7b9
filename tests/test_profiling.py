"""`mmebm profile`: real calls on disk, the commands that profile them, and what is said where a tool is missing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mmebm import profiling
from mmebm.cli import app
from mmebm.kernels.ops import capture
from mmebm.training import load_config


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain of an update of `digits`."""
    return profiling.capture_call("langevin", tmp_path_factory.mktemp("calls"))


def test_the_call_of_a_training_is_kept(call: Path) -> None:
    saved = capture.load(call)
    assert saved.operator == "langevin" and saved.arguments[0].shape == (256, 8)
    assert torch.isfinite(saved.run()[0]).all()


def test_a_call_that_nobody_makes_is_refused_with_those_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected an operator that digits calls, draw, energy, .*, got 'mala'"):
        profiling.capture_call("mala", tmp_path)
    with pytest.raises(ValueError, match=r"call: expected a saved call or one of langevin, mala, .*, got 'sample'"):
        profiling.capture_call("sample", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_for_another_device_is_captured_here(tmp_path: Path) -> None:
    config = load_config("digits", ["device=cuda", "train.cuda_graph=true"])
    (tmp_path / "gpu.json").write_text(config.model_dump_json())
    path = profiling.capture_call("langevin", tmp_path / "calls", str(tmp_path / "gpu.json"))
    assert capture.load(path).operator == "langevin"


def test_commands(call: Path, tmp_path: Path) -> None:
    replay = profiling.command("none", call, tmp_path / "x", repeat=7, backend="cpu")
    assert replay[1:] == ["-m", "mmebm.profiling", str(call), "--repeat", "7", "--device", "auto", "--backend", "cpu"]
    nsys = profiling.command("nsys", call, tmp_path / "x", device="cuda")
    assert nsys[:2] == ["nsys", "profile"] and "--capture-range=cudaProfilerApi" in nsys
    assert "--capture-range=cudaProfilerApi" not in profiling.command("nsys", call, tmp_path / "x", device="cpu")
    ncu = profiling.command("ncu", call, tmp_path / "x")
    assert ncu[0] == "ncu" and "mmebm@langevin/" in ncu and "--launch-skip=3" in ncu
    with pytest.raises(ValueError, match="tool: expected one of nsys, ncu, none, got 'perf'"):
        profiling.command("perf", call, tmp_path / "x")


def test_a_missing_tool_is_said(call: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    line, obstacle = profiling.profile(str(call), "nsys", tmp_path)
    assert line.startswith("nsys profile ") and obstacle is not None and "not on the PATH" in obstacle


def test_the_tool_runs_what_is_printed(call: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for nsys, which runs what follows its options and says so."""
    tool = tmp_path / "nsys"
    tool.write_text('#!/bin/sh\nwhile [ "${1#*python}" = "$1" ]; do shift; done\necho "$@" > "$0.log"\nexec "$@"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    line, obstacle = profiling.profile(str(call), "nsys", tmp_path, repeat=2, device="cpu")
    assert obstacle is None
    assert line.endswith((tmp_path / "nsys.log").read_text().strip())
    tool.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(RuntimeError, match="nsys ended with 3: nsys profile"):
        profiling.profile(str(call), "nsys", tmp_path, device="cpu")


def test_a_call_runs_again(call: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiling.main([str(call), "--repeat", "2", "--backend", "reference", "--device", "cpu"])
    said = capsys.readouterr().out
    assert said.startswith("langevin(z=[256, 8], ") and "backend='reference'" not in said
    assert "us a call on cpu, median of 2" in said


def test_the_command_line(call: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["profile", str(call), "--tool", "ncu", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("ncu --set=full ") and "not run: ncu is not on the PATH" in result.output
    with pytest.raises(ValueError, match="backend: expected"):
        profiling.profile(str(call), "nsys", tmp_path, backend="gpu")
