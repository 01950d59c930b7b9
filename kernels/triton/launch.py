"""How a call becomes a launch: what fits a program, padded shapes, options and names. Imports triton."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..device import on as on
from ..reference import MLP, Constraints
from . import noise

# As the kernels were wrapped when their modules were imported.
INTERPRETED = bool(noise.INTERPRETED.value)

# Multiply-adds stand where they are written out and nowhere else, whatever a version of Triton does by default.
OPTIONS: dict[str, Any] = {} if INTERPRETED else {"enable_fp_fusion": False, "num_stages": 1}

MAX_WIDTH = 128
# IEEE products run on the ordinary pipes with both operands in registers: at 128 units the compiler puts 10 KB a thread
# on the stack (sm_90, Triton 3.9), at 64 and 16 chains a program nothing.
MAX_WIDTH_FP32 = 64
MAX_DEPTH = 3
# What may stand in for a floor whose weights do not fit shared memory: tf32 needs two copies of 4 bytes, bf16x3 one.
_STANDS_IN = {"tf32": "bf16x3"}


class Tile(NamedTuple):
    """Chains of a program and its warps."""

    rows: int
    warps: int


class Packed(NamedTuple):
    """A network as kernels take it: eight tensors (layers that are not there repeat the last), shapes and padding."""

    tensors: list[Tensor]
    shape: dict[str, int]


def padded(n: int) -> int:
    """The least power of two that holds n and that `tl.dot` takes."""
    return max(16, triton.next_power_of_2(n))


def too_large(net: MLP, device: torch.device) -> str | None:
    """Why a whole chain of this network does not fit a program, or None if it does."""
    hidden, dim = len(net.weights) - 1, net.weights[0].shape[1]
    width = max((len(w) for w in net.weights[:-1]), default=0)
    limit = MAX_WIDTH_FP32 if net.precision == "fp32" and not INTERPRETED else MAX_WIDTH
    at = " at precision fp32" if limit < MAX_WIDTH else ""
    if hidden > MAX_DEPTH:
        return f"a program holds up to {MAX_DEPTH} hidden layers, the network has {hidden}"
    if dim > limit:
        return f"a program holds up to {limit} dimensions{at}, the network has {dim}"
    if width > limit:
        return f"a program holds hidden layers of width up to {limit}{at}, the network has {width}"
    if device.type == "cuda" and precision(net, device) is None:
        capability, available = _capability_and_memory(device)
        least = shared_bytes(net, _STANDS_IN.get(net.precision, net.precision), capability)
        return f"a program holds weights of up to {available} bytes of shared memory, the network needs {least}"
    return None


def shared_bytes(net: MLP, precision: str, capability: tuple[int, int]) -> int:
    """Shared memory of a program, as Triton 3.6 and 3.9 allocate it: weights, and a tile of states as they come in."""
    pads, tile = shape(net), _tile(precision)
    sizes = [pads["D"], pads["P1"], pads["P2"], pads["P3"]][: pads["DEPTH"] + 1]
    weights = sum(n * m for n, m in itertools.pairwise(sizes))
    # Hopper reads 16-bit weights both ways from one copy; other operands of its tensor cores, and mma.sync, want two.
    copies = 1 if capability >= (9, 0) and precision != "tf32" else 2
    if precision == "fp32":  # operands of each product pass through
        return weights * 4 + tile.rows * max(sizes) * 4
    # On mma.sync the tile of states takes the place of what making the second copy needed.
    states = 1024 if capability < (9, 0) else tile.rows * sizes[0] * 4
    return weights * copies * (2 if precision == "bf16" else 4) + states


@cache
def _capability_and_memory(device: torch.device) -> tuple[tuple[int, int], int]:
    properties = torch.cuda.get_device_properties(device)
    shared = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return (properties.major, properties.minor), shared


@cache
def _fits(shared: int, device: torch.device) -> bool:
    return shared <= _capability_and_memory(device)[1]


def precision(net: MLP, device: torch.device) -> str | None:
    """The arithmetic of a call, at or above the floor; None if its weights fit in none.

    The interpreter computes in float32 whatever is asked, for it does bf16 wrongly.
    """
    if INTERPRETED or device.type != "cuda":
        return "fp32" if INTERPRETED else net.precision
    capability = _capability_and_memory(device)[0]
    for candidate in (net.precision, _STANDS_IN.get(net.precision)):
        if candidate is not None and _fits(shared_bytes(net, candidate, capability), device):
            return candidate
    return None


def _tile(precision: str) -> Tile:
    return Tile(16, 4) if precision == "fp32" and not INTERPRETED else Tile(64, 4)


def tile(net: MLP, device: torch.device) -> Tile:
    """The chains of a program, the same for every batch, so that a chain's bits do not hang on it."""
    return _tile(precision(net, device) or net.precision)


def shape(net: MLP) -> dict[str, int]:
    """Widths of the hidden layers (1 where there is none), their padding and their number."""
    dim, widths = net.weights[0].shape[1], [len(w) for w in net.weights[:-1]]
    h1, h2, h3 = (widths + [1] * MAX_DEPTH)[:MAX_DEPTH]
    pads = {"D": padded(dim), "P1": padded(h1), "P2": padded(h2), "P3": padded(h3)}
    return {"DIM": dim, "H1": h1, "H2": h2, "H3": h3, **pads, "DEPTH": len(widths)}


def packed(net: MLP) -> Packed:
    """The network's tensors, contiguous, in the order that kernels take them."""
    layers = [(w.contiguous(), b.contiguous()) for w, b in zip(net.weights, net.biases, strict=True)]
    filled = (layers[:-1] + layers[-1:] * MAX_DEPTH)[:MAX_DEPTH]
    return Packed([t for layer in (*filled, layers[-1]) for t in layer], shape(net))


def flags(net: MLP, hold: Constraints, device: torch.device) -> dict[str, Any]:
    """What a kernel is specialised for beside shapes."""
    used = precision(net, device)
    return {
        "ACTIVATION": net.activation,
        "PRECISION": used,
        "HALVED": used == "bf16" and net.activation == "silu",
        "REFERENCE": hold.reference,
        "BOUND": net.bound is not None,
        "CLIP": hold.grad_clip is not None,
        "CLAMP": hold.lower is not None or hold.upper is not None,
    }


def limits(hold: Constraints) -> tuple[float, float, float]:
    """clip, lower and upper as a kernel takes them; what is off is not read."""
    low = -math.inf if hold.lower is None else hold.lower
    high = math.inf if hold.upper is None else hold.upper
    return hold.grad_clip or 1.0, low, high


def held(net: MLP, hold: Constraints) -> tuple[float, float, float, float]:
    """bound, clip, lower and upper."""
    return net.bound or 1.0, *limits(hold)


def kernel_name(base: str) -> Callable[[Any], str]:
    """`repr` of a kernel: base, then its shape, activation and precision, as profilers filter on."""

    def name(specialization: Any) -> str:
        known = specialization.constants
        known = {key[0] if isinstance(key, tuple) else key: value for key, value in known.items()}
        parts = [base]
        for prefix, key in (("d", "DIM"), ("h", "H1"), ("l", "DEPTH"), ("", "ACTIVATION"), ("", "PRECISION")):
            if key in known:
                parts.append(f"{prefix}{known[key]}")
        return "_".join(parts)

    return name
