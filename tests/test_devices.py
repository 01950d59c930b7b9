"""Devices by name, and who takes one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmebm import generate as generation
from mmebm.devices import find
from mmebm.evaluation.runs import draw_figures, evaluate_run
from mmebm.training import load


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert find("auto") == torch.device(expected)


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find("cuda:1") == find(torch.device("cuda:1")) == torch.device("cuda:1")
    assert find("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device: expected one that is there, got 'cuda:2' of 2"):
        find("cuda:2")
    with pytest.raises(ValueError, match="device: expected auto, cpu, cuda or cuda:N, got 'gpu'"):
        find("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_one_is_told_before_anything_is_done(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    run = tiny_runs["energy"]
    for call in (
        lambda: load(run, "cuda"),
        lambda: evaluate_run(run, device="cuda"),
        lambda: draw_figures(run, device="cuda"),
        lambda: generation.generate(run, tmp_path / "out", rows=5, device="cuda"),
        lambda: generation.cross_generate(run, tmp_path / "out", "digits:test", cond_mod="m0", device="cuda"),
    ):
        with pytest.raises(ValueError, match="device: expected one that is there, got 'cuda'"):
            call()
    assert not (tmp_path / "out").exists()


def test_generated_files_tell_their_device(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    index = generation.generate(tiny_runs["energy"], tmp_path / "out", rows=5)
    told = json.loads(index.read_text())
    assert told["device"] == "cpu"
    index.write_text(json.dumps(told | {"device": "cuda"}))
    with pytest.raises(FileExistsError, match="holds another call's files, which differ in device"):
        generation.generate(tiny_runs["energy"], tmp_path / "out", rows=5)
