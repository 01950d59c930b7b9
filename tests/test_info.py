"""`mmebm info` answers for every operator and backend, most of all where something is set wrongly."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from mmebm import cli, info
from mmebm.kernels import dispatch, native, ops

CPU = torch.device("cpu")


def table(report: str, device: str = "cpu") -> dict[str, tuple[str, str]]:
    """operator -> (who serves it, the rest of its line)."""
    _, found, after = report.partition(f"operators on {device}, float32\n")
    assert found
    lines = [line.split(maxsplit=2) for line in after.split("\n\n")[0].strip().splitlines()]
    return {name: (chosen, rest[0] if rest else "") for name, chosen, *rest in lines}


def test_every_operator_has_its_backend_and_the_others_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMEBM_BACKEND", raising=False)
    found = table(info.report())
    assert list(found) == list(ops.OPERATORS) and len(found) > 5
    for operator, (chosen, rest) in found.items():
        assert chosen == dispatch.choose("auto", operator, CPU, torch.float32)
        notes = dict(note.split(": ", 1) for note in rest.split("; "))
        assert list(notes) == [name for name in dispatch.BACKENDS if name != chosen]
        for name, reason in notes.items():
            assert reason == (dispatch.unsupported(name, operator, CPU, torch.float32) or "could serve it too")


def test_versions_and_what_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    report = info.report()
    assert f"torch      {torch.__version__}\n" in report and f"threads    {torch.get_num_threads()}\n" in report
    assert ("cuda       no device" in report) == (not torch.cuda.is_available())
    monkeypatch.setattr(native, "_load", lambda: (None, "ImportError: no _cpu here"))
    report = info.report()
    assert "native     missing: ImportError: no _cpu here\n" in report
    chosen, rest = table(report)["draw"]
    assert chosen == "reference" and "cpu: its native module is missing: ImportError: no _cpu here" in rest


@pytest.mark.skipif(not native.available(), reason="the native CPU module cannot be loaded")
def test_what_the_native_module_was_built_with() -> None:
    (line,) = [line for line in info.report().splitlines() if line.startswith("native")]
    assert "built" in line and str(native.build_info()["compiler"]) in line and "isas" in line


def test_a_backend_asked_for_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEBM_BACKEND", "reference")
    report = info.report()
    assert "backend    reference (MMEBM_BACKEND)\n" in report
    found = table(report)
    assert {chosen for chosen, _ in found.values()} == {"reference"}
    reason = "could serve it too" if native.available() else "its native module is missing"
    assert f"cpu: {reason}" in found["draw"][1]


@pytest.mark.parametrize("wanted", ["triton", "cuda", "fastest"])
def test_a_backend_that_cannot_serve_is_diagnosed_and_not_a_crash(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if wanted in dispatch.BACKENDS and any(
        dispatch.unsupported(wanted, operator, CPU, torch.float32) is None for operator in ops.OPERATORS
    ):
        pytest.fail(f"{wanted} now serves CPU tensors: test something else here")
    monkeypatch.setenv("MMEBM_BACKEND", wanted)
    shown = CliRunner().invoke(cli.app, ["info"])
    assert shown.exit_code == 0 and f"backend    {wanted} (MMEBM_BACKEND)\n" in shown.output
    found = table(shown.output)
    assert list(found) == list(ops.OPERATORS)
    for operator, (chosen, rest) in found.items():
        assert chosen == "refused"
        reason = dispatch.unsupported(wanted, operator, CPU, torch.float32) if wanted in dispatch.BACKENDS else wanted
        first = rest.split("; ")[0]
        assert first.startswith("MMEBM_BACKEND") and wanted in first and str(reason) in first
        assert all(f"; {name}: " in rest for name in dispatch.BACKENDS)


def test_the_module_and_the_command_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMEBM_BACKEND", raising=False)
    shown = CliRunner().invoke(cli.app, ["info"])
    assert shown.exit_code == 0 and shown.output == info.report() + "\n"  # no line broken, nothing read as markup
    made = subprocess.run(
        [sys.executable, "-m", "mmebm.info"], capture_output=True, text=True, timeout=300,
        env=os.environ | {"MMEBM_BACKEND": "fastest"},
    )  # fmt: skip
    assert made.returncode == 0 and made.stderr == ""
    assert table(made.stdout) == {
        operator: ("refused", rest) for operator, (_, rest) in table(_under("fastest", monkeypatch)).items()
    }


def _under(wanted: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MMEBM_BACKEND", wanted)
    return info.report()
