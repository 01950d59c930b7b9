"""Kernels compiled ahead of time as calls compile them whose sizes are multiples of 16, with `cubin.read`."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmebm.kernels.triton import launch

from .cubin import Code, read

_SIZES = ("values", "dim", "width", "fan_in")
_INTEGERS = (*_SIZES, "rows", "subsets", "lead", "leads", "added", "step")


def compiled(kernel: Any, constants: dict[str, Any], capability: int, aligned: bool = True) -> Code:
    """`kernel` for sm_`capability`, four warps, with the options of calls; `aligned`: its sizes are multiples of 16."""
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
            attributes[(i,)] = [["tt.divisibility", 16]]
    binary = triton.compile(
        ASTSource(kernel, signature, values, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4, **launch.OPTIONS},
    )
    return read(binary.metadata.name, binary.asm["cubin"], binary.metadata.shared)
