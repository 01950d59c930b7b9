"""Whole chains in one launch.

Many chains run 16 a warp, by wgmma on Hopper where bf16 will do ("wgmma") or by mma.sync ("warp"); few, adjusted ones
and networks of other sizes run 16 a block ("block"), which reads weights that do not fit its memory in every step
("streamed"): for few chains, since those of other networks are better off layer by layer. A chain's bits hang on the
variant, by rounding alone.

Coefficients and `rng` are read on the device, so that a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from ..device import on
from ..pointers import Net, address, hold_args
from ..reference import MLP, Chain, Constraints, MalaChain
from . import module

MAX_HIDDEN = 3
# Products of bf16 matrices for one, by the floor of a call: csrc/cuda/split.hpp.
TERMS = {"bf16": 1, "bf16w2": 2, "tf32": 3, "bf16x3": 3, "fp32": 6}
# Bytes of weights, both ways, that a block may read in every step: from the second cache at 64 bytes a clock a megabyte
# takes 16,000 clocks, about what a step of many small launches does. Beyond that a launch a layer is better.
_MOST_STREAMED = 1 << 20
_HOST_BYTES = 227 * 1024  # of shared memory that the emulated device has: a Hopper's


@cache
def _shared_memory(index: int) -> int:
    """Bytes a block may have."""
    return int(torch.cuda.get_device_properties(index).shared_memory_per_block_optin)  # type: ignore[attr-defined]


def _available(device: torch.device) -> int:
    if device.type != "cuda":
        return _HOST_BYTES
    return _shared_memory(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _fewest(index: int) -> int:
    """Chains from which on 16 a warp are faster than 16 a block: beyond two blocks a multiprocessor, as measured."""
    return 32 * int(torch.cuda.get_device_properties(index).multi_processor_count)


def _widths(net: MLP) -> tuple[int, ...]:
    return tuple(w.shape[1] for w in net.weights)


@cache
def _bytes(variant: str, widths: tuple[int, ...], precision: str, adjusted: bool) -> int:
    """Shared memory of a block; 0 where the variant has no kernel for the network."""
    return int(module.native().chain_bytes(variant, adjusted, widths, TERMS[precision]))


@cache
def _variants(widths: tuple[int, ...], precision: str, device: torch.device, adjusted: bool) -> list[str]:
    # In a build for other architectures its kernel would do nothing but trap.
    built = module.emulated() or "90a" in module.build_info()["architectures"]
    hopper = built and (device.type != "cuda" or torch.cuda.get_device_capability(device) == (9, 0))
    names, available = (["wgmma"] if hopper else []) + ["warp", "block"], _available(device)

    def held(name: str) -> bool:
        return 0 < _bytes(name, widths, precision, adjusted) <= available

    found = [name for name in names if held(name)]
    few = _workspace(widths, precision) <= _MOST_STREAMED and held("streamed")
    return found or ["streamed"] * few


@cache
def _workspace(widths: tuple[int, ...], precision: str) -> int:
    """Bytes of the weights as "streamed" reads them."""
    return int(module.native().workspace_bytes(widths, TERMS[precision]))


def variants(net: MLP, device: torch.device, adjusted: bool) -> list[str]:
    """The kernels that hold this network, the one for most chains first."""
    return _variants(_widths(net), net.precision, device, adjusted)


_forced: list[str] = []


@contextmanager
def forced(variant: str) -> Iterator[None]:
    """Chains run by this one of `variants`, however many there are: for checks."""
    _forced.append(variant)
    try:
        yield
    finally:
        _forced.pop()


def _variant(net: MLP, device: torch.device, adjusted: bool, rows: int) -> str:
    found = variants(net, device, adjusted)
    if _forced:
        return _forced[-1]
    if device.type != "cuda":
        return found[-1]
    index = torch.cuda.current_device() if device.index is None else device.index
    return found[-1] if rows < _fewest(index) else found[0]


def too_large(net: MLP, device: torch.device, adjusted: bool = True) -> str | None:
    """Why whole chains of this network do not fit a block, or None if they do."""
    hidden = len(net.weights) - 1
    if not 1 <= hidden <= MAX_HIDDEN:
        return f"a block takes networks of 1 to {MAX_HIDDEN} hidden layers, this one has {hidden}"
    if variants(net, device, adjusted):
        return None
    needed, at = _bytes("block", _widths(net), net.precision, adjusted), f"at precision {net.precision}"
    return f"a block has {_available(device)} bytes of shared memory, the network needs {needed} {at}"


def _chain(
    adjusted: bool,
    z: Tensor,
    net: MLP,
    coefficients: Tensor,
    rng: Tensor,
    hold: Constraints,
    record_every: int,
    statistics: bool,
) -> list[Tensor]:
    z, packed, table, scale = z.contiguous(), Net(net), coefficients.contiguous(), hold.scale.contiguous()
    rng, (rows, dim), steps = rng.contiguous(), z.shape, len(table)
    kept = steps // record_every if record_every else 0
    out, states, energies = z.new_empty(rows, dim), z.new_empty(kept, rows, dim), z.new_empty(kept, rows)
    measured = [z.new_empty(rows if statistics else 0) for _ in range(5 if adjusted else 3)]
    told = (*map(address, measured), *(0,) * (5 - len(measured)))
    recorded = (record_every if kept else 0, address(states), address(energies))
    if rows:
        variant = _variant(net, z.device, adjusted, rows)
        size = _workspace(_widths(net), net.precision) if variant == "streamed" else 0
        workspace = z.new_empty(size // z.element_size())
        with on(z.device):
            module.native().chain(
                variant, adjusted, z.data_ptr(), rows, steps, packed.args,
                table.data_ptr(), rng.data_ptr(), hold_args(hold, scale), out.data_ptr(), recorded, told,
                TERMS[net.precision], address(workspace), module.stream(z.device),
            )  # fmt: skip
    return [out, states, energies, *measured]


def langevin(
    z: Tensor,
    net: MLP,
    coefficients: Tensor,
    rng: Tensor,
    hold: Constraints,
    record_every: int = 0,
    statistics: bool = False,
) -> Chain:
    """K = len(coefficients) steps from z [B, d]."""
    return Chain(*_chain(False, z, net, coefficients, rng, hold, record_every, statistics))


def mala(
    z: Tensor,
    net: MLP,
    coefficients: Tensor,
    rng: Tensor,
    hold: Constraints,
    record_every: int = 0,
    statistics: bool = False,
) -> MalaChain:
    """K Metropolis-adjusted steps from z [B, d]; proposals outside the clamp box are rejected."""
    return MalaChain(*_chain(True, z, net, coefficients, rng, hold, record_every, statistics))
