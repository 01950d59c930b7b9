"""The CUDA module built as users build it, and what nvcc made of its kernels, against budgets.csv. Nothing runs here.

A row of budgets.csv is a kernel and what nvcc 13.0 made of it for an architecture: registers, bytes of stack and of
spill stores and loads of a thread; and, of chains in bf16, instructions of a thread in a step of 16 chains a warp,
counted in a build that decides what calls choose (MMEBM_COUNTED in csrc/cuda/warp_chain.hpp). More than a twentieth
above fails: look at it, and where it is meant write the new row, which is printed.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pybind11
import pytest
import torch

ROOT = Path(__file__).parents[2]
MEASURED = ("registers", "stack", "spill_stores", "spill_loads")
BUDGETS = list(csv.DictReader(Path(__file__).with_name("budgets.csv").open()))
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None or shutil.which("g++") is None, reason="no nvcc found")
pytestmark = [pytest.mark.slow, needs_nvcc]


class Build(NamedTuple):
    module: Path
    log: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The module for two architectures."""
    folder = tmp_path_factory.mktemp("cuda")
    options = {
        "CMAKE_BUILD_TYPE": "Release", "MMEBM_CUDA": "ON", "MMEBM_CUDA_ARCHITECTURES": "80-real;90a-real",
        "CMAKE_CUDA_FLAGS": "-Xptxas -v", "Python_EXECUTABLE": sys.executable, "pybind11_DIR": pybind11.get_cmake_dir(),
    }  # fmt: skip
    commands = [
        ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), *(f"-D{k}={v}" for k, v in options.items())],
        ["cmake", "--build", str(folder), "--target", "_cuda"],
    ]
    for command in commands:
        tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # cmake and ninja
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | tools)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (module,) = folder.glob("_cuda.*so")
    return Build(module, done.stdout)


def _plain(mangled: str) -> str:
    """A kernel's body: "WarpChain<MmaEngine, 32, 128, 1>"."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = name.replace("mmebm::cuda::", "").replace("(anonymous namespace)::", "")
    found = re.match(r"void kernel<(.*?)\s*>\(", name)
    assert found, name
    return re.sub(r"(?<=\d)(u?l?)(?=[,>])|\((?:int|bool)\)", "", found[1])


def _usage(log: str) -> dict[tuple[str, str], tuple[int, ...]]:
    """(kernel, architecture) -> MEASURED."""
    pattern = (
        r"Compiling entry function '(\w+)' for '(sm_\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    return {
        (_plain(name), sm): (int(registers), int(stack), int(stores), int(loads))
        for name, sm, stack, stores, loads, registers in re.findall(pattern, log, re.S)
    }


def test_no_kernel_takes_more_than_it_did(built: Build) -> None:
    assert "warning" not in built.log
    assert "wgmma" not in re.sub(r"[\w/.]*wgmma_chain[\w/.]*", "", built.log), "ptxas tells where it serialises wgmma"
    found = _usage(built.log)
    for (kernel, sm), values in sorted(found.items()):
        print(f'"{kernel}",{sm},{",".join(map(str, values))}')
    budget = {(row["kernel"], row["sm"]): [int(row[name]) for name in MEASURED] for row in BUDGETS}
    assert set(found) == set(budget)
    over = {
        key: (got, budget[key])
        for key, got in found.items()
        if any(value > 1.05 * most for value, most in zip(got, budget[key], strict=True))
    }
    assert not over


def test_chains_of_width_128_do_not_spill() -> None:
    fp32_at_64_dimensions = "WarpChain<MmaEngine, 64, 128, 6>"
    for row in BUDGETS:
        if row["kernel"].startswith(("WarpChain", "BlockChain")) and ", 256, " not in row["kernel"]:
            most = 32 if row["kernel"] == fp32_at_64_dimensions else 0
            assert all(int(row[name]) <= most for name in MEASURED[1:]), row


def test_the_module_needs_no_driver_to_be_imported(built: Build) -> None:
    needed = subprocess.run(["readelf", "-d", str(built.module)], capture_output=True, text=True, check=True).stdout
    assert "libcuda" not in needed and "libtorch" not in needed
    code = "import _cuda; print(_cuda.build_info()); _cuda.draw(0, 0, 1, 1, 1, 0, 0, 0, 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=built.module.parent, capture_output=True, text=True, check=False
    )
    assert "'architectures': '80-real 90a-real'" in done.stdout and "'emulated': False" in done.stdout
    if not torch.cuda.is_available():
        assert "RuntimeError: launch: CUDA error" in done.stderr


def _step(lines: list[tuple[int, str]]) -> Counter[str]:
    """Instructions of the step's loop: the longest within the loop over tiles."""
    loops = []
    for at, text in lines:
        target = re.search(r"\bBRA.*?\b0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < at:
            loops.append((int(target[1], 16), at))
    outer, inner = sorted(loops, key=lambda loop: loop[0] - loop[1])[:2]
    assert outer[0] <= inner[0] and inner[1] <= outer[1] and inner[1] - inner[0] > (outer[1] - outer[0]) / 2
    return Counter(text.split()[1 if text.startswith("@") else 0].split(".")[0] for at, text in lines
                   if inner[0] <= at <= inner[1])  # fmt: skip


@pytest.mark.parametrize("source", ["chain_terms", "wgmma_chain"])
def test_instructions_of_a_step(source: str, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="backend triton cannot run here")  # its wheel has the disassembler
    from ..triton.cubin import dump

    cubin = tmp_path / "counted.cubin"
    command = [
        "nvcc",
        "-std=c++20",
        "-O3",
        "-fmad=false",
        "-arch=sm_90a",
        "-DMMEBM_COUNTED",
        "-DMMEBM_TERMS=1",
        "-cubin",
    ]
    path = ROOT / "csrc" / "cuda" / f"{source}.cu"
    subprocess.run([*command, f"-I{ROOT / 'csrc'}", str(path), "-o", str(cubin)], check=True)
    found = {}
    for function in dump(cubin.read_bytes(), "-sass").split("Function : ")[1:]:
        kernel = _plain(function.split()[0])
        if kernel.startswith("WarpChain"):
            found[kernel] = _step([(int(a, 16), t) for a, t in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", function)])
    engine = "WgmmaEngine" if source == "wgmma_chain" else "MmaEngine"
    expected = {row["kernel"]: int(row["instructions"]) for row in BUDGETS if row["instructions"]}
    expected = {kernel: most for kernel, most in expected.items() if engine in kernel}
    for kernel, counts in found.items():
        print(kernel, counts.total(), counts)
    assert set(found) == set(expected)
    for kernel, counts in found.items():
        assert counts["HGMMA" if source == "wgmma_chain" else "HMMA"] > 0
        assert counts["LDG"] <= 3 + 16, "three coefficients and, at width 256, scales: nothing of the network"
        assert counts.total() <= 1.05 * expected[kernel], kernel
