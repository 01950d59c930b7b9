"""NVTX ranges, as a tool sees them: one that is loaded as Nsight's is, and writes down what it is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HEADERS = [
    path
    for nvcc in [shutil.which("nvcc")]
    if nvcc is not None
    for path in Path(nvcc).resolve().parents[1].glob("**/nvtx3/nvToolsExt.h")
]


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not HEADERS or shutil.which("g++") is None:
        pytest.skip("no nvcc found")
    path = tmp_path_factory.mktemp("tool") / "tool.so"
    source = Path(__file__).parents[1] / "csrc" / "nvtx_tool.cpp"
    command = ["g++", "-std=c++17", "-shared", "-fPIC", f"-I{HEADERS[0].parents[1]}", str(source), "-o", str(path)]
    subprocess.run(command, check=True)
    return path


def seen(tool: Path, script: str, folder: Path) -> list[str]:
    """What the tool is told of a Python process."""
    told = folder / "ranges.txt"
    environment = os.environ | {"NVTX_INJECTION64_PATH": str(tool), "MMEBM_RANGES": str(told), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, cwd=folder)
    return told.read_text().splitlines()


def nested(lines: list[str]) -> list[str]:
    """Every range with those that it stands in: "outer > inner"; all of one domain, and closed in order."""
    stack: list[str] = []
    found = []
    for line in lines:
        if line.startswith("push mmebm@"):
            stack.append(line.removeprefix("push mmebm@"))
            found.append(" > ".join(stack))
        else:
            assert line == "pop mmebm"
            stack.pop()
    assert not stack
    return found


def test_operators_and_samplers(tool: Path, tmp_path: Path) -> None:
    script = """
import torch, mmebm
net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.SiLU(), torch.nn.Linear(5, 1))
z, options = torch.randn(4, 3), {"steps": 2, "step_size": 0.1, "seed": 0}
for _ in range(2):
    mmebm.langevin(net, z, **options)
mmebm.mala(net, z, **options)
try:
    mmebm.langevin(net, z, **options, backend="cuda")
except ValueError:
    pass
"""
    assert nested(seen(tool, script, tmp_path)) == ["langevin", "langevin", "mala", "langevin"]


def test_phases_of_training(tool: Path, tmp_path: Path) -> None:
    script = """
from mmebm import data
from mmebm.training import load_config, train
config = load_config("digits", ["train.updates=1", "train.energy_finish=0", "train.energy_start=0"])
train(config, data.load("digits", "train", **config.data.options), "run")
"""
    found = nested(seen(tool, script, tmp_path))
    assert [name for name in found if name.count(" > ") == 0] == ["train/model", "train/energy"]
    assert "train/energy > train/chains > langevin" in found
    assert "train/model > energy" in found or "train/model > mixture_log_prob" in found
