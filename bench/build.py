"""Builds the package where it stands, before anything of it is imported: for a machine that is lent for minutes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLAG = "--no-build"


def wanted(arguments: Sequence[str]) -> bool:
    """`bench gpu` builds first, unless it is told not to or rehearses on the CPU."""
    return list(arguments[:1]) == ["gpu"] and not {FLAG, "cpu", "--device=cpu", "-h", "--help"} & set(arguments)


def architectures() -> list[str]:
    """What the CUDA kernels are compiled for: this machine's GPU alone, or nothing said where none is found."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []
    names = sorted({capability.replace(".", "") for capability in found})
    return [";".join(f"{name}{'a' if name == '90' else ''}-real" for name in names)] if names else []


def build() -> float:
    """Seconds it took. Errors: subprocess.CalledProcessError with the compiler's words on the screen."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--editable", str(ROOT)]
    command += [f"--config-settings=cmake.define.MMEBM_CUDA_ARCHITECTURES={a}" for a in architectures()]
    subprocess.run(command, check=True)
    return time.monotonic() - began
