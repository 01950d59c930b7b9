"""Parts of CUDA kernels under the host's emulator of one block: fragment maps, products, shuffles, barriers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests/csrc/emulated.cpp"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ found")
def test_fragments_agree_with_a_plain_product(tmp_path: Path) -> None:
    program = tmp_path / "emulated"
    subprocess.run(["g++", "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", str(SOURCE), "-o", str(program)], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
