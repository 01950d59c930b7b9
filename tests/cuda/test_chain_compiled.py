"""What nvcc makes of the whole-chain kernel: stack and spills a thread, of which no more may come. Nothing runs.

Recorded with nvcc 13.0, in bf16, for 32 dimensions and layers of width 64 and 128.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# By architecture and width: bytes of stack, of spill stores and of spill loads.
MOST = {
    "sm_80": {64: (0, 0, 0), 128: (0, 0, 0)},
    "sm_90a": {64: (0, 0, 0), 128: (16, 16, 16)},
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None or shutil.which("g++") is None, reason="no nvcc found")
@pytest.mark.parametrize("architecture", MOST)
def test_registers_hold_a_chain(architecture: str, tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++20", "-O3", "-fmad=false", f"-arch={architecture}", "-Xptxas", "-v", "-cubin"]
    source = ROOT / "csrc" / "cuda" / "chain.cu"
    done = subprocess.run(
        [*command, f"-I{ROOT / 'csrc'}", str(source), "-o", str(tmp_path / "chain.cubin")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    found = re.findall(
        r"langevin_chainILi32ELi(\d+)ELi1E.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        done.stderr,
        re.S,
    )
    assert {int(width) for width, *_ in found} == set(MOST[architecture])
    for width, *numbers, registers in found:
        assert int(registers) <= 255
        for number, most in zip(map(int, numbers), MOST[architecture][int(width)], strict=True):
            assert number <= most, (width, numbers)
