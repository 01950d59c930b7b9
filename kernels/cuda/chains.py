"""Whole chains in one launch.

Many chains run 16 a warp, by wgmma on Hopper where bf16 will do ("wgmma") or by mma.sync ("warp"); few, adjusted ones
and networks of other sizes run 16 a block ("block"). A chain's bits hang on the variant, by rounding alone.

Coefficients and `rng` are read on the device, so that a call can be captured in a CUDA graph.
"""

from __future__ import annotations

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
    """Chains from which on 64 a block fill the device."""
    return 64 * int(torch.cuda.get_device_properties(index).multi_processor_count)


def _hopper(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) == (9, 0)


def _bytes(variant: str, net: MLP, adjusted: bool) -> int:
    return int(module.native().chain_bytes(variant, adjusted, Net(net).args, TERMS[net.precision]))


def variants(net: MLP, device: torch.device, adjusted: bool) -> list[str]:
    """The kernels that hold this network, the one for most chains first."""
    names = ["wgmma"] if _hopper(device) else []
    available = _available(device)
    return [name for name in (*names, "warp", "block") if 0 < _bytes(name, net, adjusted) <= available]


def _variant(net: MLP, device: torch.device, adjusted: bool, rows: int) -> str:
    found = variants(net, device, adjusted)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return found[-1] if rows < _fewest(index) else found[0]
    return found[-1]


def too_large(net: MLP, device: torch.device, adjusted: bool = True) -> str | None:
    """Why whole chains of this network do not fit a block, or None if they do."""
    hidden = len(net.weights) - 1
    if not 1 <= hidden <= MAX_HIDDEN:
        return f"a block takes networks of 1 to {MAX_HIDDEN} hidden layers, this one has {hidden}"
    if variants(net, device, adjusted):
        return None
    needed, at = _bytes("block", net, adjusted), f"at precision {net.precision}"
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
        with on(z.device):
            module.native().chain(
                _variant(net, z.device, adjusted, rows), adjusted, z.data_ptr(), rows, steps, packed.args,
                table.data_ptr(), rng.data_ptr(), hold_args(hold, scale), out.data_ptr(), recorded, told,
                TERMS[net.precision], module.stream(z.device),
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
