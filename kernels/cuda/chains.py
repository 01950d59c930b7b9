"""Whole chains in one launch: csrc/cuda/block_chain.hpp.

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


def too_large(net: MLP, device: torch.device, adjusted: bool = True) -> str | None:
    """Why whole chains of this network do not fit a block, or None if they do."""
    hidden = len(net.weights) - 1
    if not 1 <= hidden <= MAX_HIDDEN:
        return f"a block takes networks of 1 to {MAX_HIDDEN} hidden layers, this one has {hidden}"
    needed, available = module.native().chain_bytes(Net(net).args, adjusted, TERMS[net.precision]), _available(device)
    if needed > available:
        return (
            f"a block has {available} bytes of shared memory, the network needs {needed} at precision {net.precision}"
        )
    return None


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
                adjusted, z.data_ptr(), rows, steps, packed.args, table.data_ptr(), rng.data_ptr(),
                hold_args(hold, scale), out.data_ptr(), recorded, told, TERMS[net.precision], module.stream(z.device),
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
