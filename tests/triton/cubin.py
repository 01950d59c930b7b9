"""Triton kernels compiled ahead of time, without a GPU, and what their machine code says: with Triton's own tools."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmebm.kernels.triton import launch

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Arguments that are integers; of these, sizes that `aligned` says are multiples of 16.
_SIZES = ("values", "dim", "width", "fan_in")
_INTEGERS = (*_SIZES, "rows", "steps", "record_every", "tiles", "blocks", "step", "subsets", "lead", "leads", "added")


class Code(NamedTuple):
    """Of one kernel; the loop is the longest, and counts are of its instructions by mnemonic."""

    name: str
    registers: int
    stack: int  # bytes a thread
    shared: int  # bytes a program
    loop: Counter[str]
    whole: Counter[str]


def compiled(kernel: Any, constants: dict[str, Any], capability: int, warps: int = 4, aligned: bool = False) -> Code:
    """`kernel` for sm_`capability` with the options that calls use; a pointer is one to float32, rng_ptr to int64."""
    signature: dict[str, str] = {}
    values: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(i,)] = "constexpr", constants[name]
        elif name.endswith("_ptr"):
            signature[name] = "*i64" if name in ("rng_ptr", "present_ptr") else "*fp32"
        else:
            signature[name] = "i32" if name in _INTEGERS else "fp32"
        if name not in constants and (name.endswith("_ptr") or (aligned and name in _SIZES)):
            attributes[(i,)] = [["tt.divisibility", 16]]  # pointers as torch allocates
    binary = triton.compile(
        ASTSource(kernel, signature, values, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, **launch.OPTIONS},
    )
    return read(binary.metadata.name, binary.asm["cubin"], binary.metadata.shared)


def read(name: str, cubin: bytes, shared: int) -> Code:
    usage, code = (dump(cubin, option) for option in ("--dump-resource-usage", "-sass"))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump: expected REG and STACK, got {usage!r}")
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)]
    loops = [(0, 0)]
    for at, text in lines:
        target = re.search(r"\bBRA.*?\b0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < at:
            loops.append((int(target[1], 16), at))
    first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    inside = [text for at, text in lines if first <= at <= last] if last else []
    return Code(name, int(found[1]), int(found[2]), shared, _count(inside), _count([text for _, text in lines]))


def dump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:  # cuobjdump reads no pipe
        file.write(cubin)
        file.flush()
        return subprocess.run([_CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout


def _count(lines: list[str]) -> Counter[str]:
    """Mnemonics without their suffixes; predicates aside."""
    return Counter(re.sub(r"^@!?U?P\d+\s+", "", line).split()[0].split(".")[0] for line in lines)
