"""The module of CUDA kernels built for the host, where csrc/cuda/simt.hpp emulates a block of threads."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).parents[2]
NAME = "_cuda_emulated"
SOURCE = ROOT / "csrc" / "cuda" / "chain_terms.cu"  # compiled once for each of
TERMS = (1, 2, 3, 6)
# -O1: compiling costs more than running.
_FLAGS = [
    "-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off",
    "-Wno-unknown-pragmas", f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}",
    f"-I{sysconfig.get_paths()['include']}", f"-DMMEBM_MODULE={NAME}", "-DMMEBM_EMULATED",
    '-DMMEBM_CUDA_COMPILER="none"', '-DMMEBM_CUDA_ARCHITECTURES="host"',
]  # fmt: skip


def build() -> Path:
    """Compiles what has changed since the last time, into build/emulated; g++ is on the PATH."""
    sources = [(path, "") for path in (ROOT / "csrc" / "bind_cuda.cpp", *sorted((ROOT / "csrc" / "cuda").glob("*.cu")))]
    sources = [pair for pair in sources if pair[0] != SOURCE] + [(SOURCE, f"-DMMEBM_TERMS={n}") for n in TERMS]
    headers = b"".join(path.read_bytes() for path in sorted((ROOT / "csrc").glob("c[ou]*/*.hpp")))
    folder = ROOT / "build" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    key = repr((_FLAGS, sysconfig.get_config_var("EXT_SUFFIX"))).encode()

    def compiled(of: tuple[Path, str]) -> Path:
        source, define = of
        digest = hashlib.sha256(key + headers + source.read_bytes()).hexdigest()[:16]
        name = source.stem + define.rpartition("=")[2]
        target = folder / f"{name}-{digest}.o"
        if not target.exists():
            for old in folder.glob(f"{name}-*"):
                old.unlink()
            part, flags = target.with_suffix(".part"), [*_FLAGS, *([define] if define else [])]
            subprocess.run(["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(part)], check=True)
            part.rename(target)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    name = hashlib.sha256("".join(o.name for o in objects).encode()).hexdigest()[:16]
    module = folder / f"module-{name}.so"
    if not module.exists():
        for old in folder.glob("module-*"):
            old.unlink()
        part = module.with_suffix(".part")
        subprocess.run(["g++", "-shared", *map(str, objects), "-o", str(part)], check=True)
        part.rename(module)
    return module


def load(path: Path) -> ModuleType:
    """The module in a file."""
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(NAME, loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module
