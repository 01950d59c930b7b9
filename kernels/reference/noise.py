"""Counter-based noise in plain PyTorch: Philox4x32-10 and the transforms on its words.

Words are computed in wrapping int64 arithmetic, transforms in float64 and rounded once to float32.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); counter layout: docs/conventions.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CHAIN_NOISE, REFERENCE_DRAW, ACCEPT, CHOICE, REPARAMETERISATION, MOMENTUM = range(6)

_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK32 = 0xFFFFFFFF
_MASK48 = 0xFFFFFFFFFFFF


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 on int64 tensors that hold 32-bit words; shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0 = c0 * _MULTIPLIER[0]  # the low 64 bits are right: int64 multiplication wraps
        p1 = c2 * _MULTIPLIER[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK32) ^ c1 ^ k0,
            p1 & _MASK32,
            ((p0 >> 32) & _MASK32) ^ c3 ^ k1,
            p0 & _MASK32,
        )
        k0 = (k0 + _WEYL[0]) & _MASK32
        k1 = (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def calls(dim: int) -> int:
    """How many calls q = 0, 1, .. give one of `dim` dimensions; the first of the four of q = 4 j + t is 16 j + 2 t."""
    return 4 * (dim // 16) + min(4, (dim % 16 + 1) // 2)


def advanced(rng: Tensor, steps: int) -> Tensor:
    """The state `steps` steps on, without a copy from the host."""
    seed, offset, first = rng.unbind()
    return torch.stack((seed, offset + steps, first))


def words(rng: Tensor, steps: int, rows: int, dim: int, purpose: int) -> Tensor:
    """Philox words for steps offset..offset+steps-1 and chains first..first+rows-1: int64 [steps, rows, calls, 4]."""
    device = rng.device
    seed, offset, first = rng.unbind()
    chain = ((first + torch.arange(rows, device=device)) & _MASK48).view(1, rows, 1)
    step = ((offset + torch.arange(steps, device=device)) & _MASK48).view(steps, 1, 1)
    call = torch.arange(calls(dim), device=device).view(1, 1, -1)
    counter = (chain & _MASK32, step & _MASK32, call | purpose << 24, (step >> 32) << 16 | chain >> 32)
    return torch.stack(philox4x32(counter, (seed & _MASK32, (seed >> 32) & _MASK32)), dim=-1)


def _open_unit(x: Tensor) -> Tensor:
    """u(x) in [2^-24, 1 - 2^-24], exact in float32."""
    return (x >> 9) * 2.0**-23 + 2.0**-24


def log_uniform(rng: Tensor, steps: int, rows: int) -> Tensor:
    """ln u(x0) of the accept/reject words: float64 [steps, rows]."""
    return _open_unit(words(rng, steps, rows, 1, ACCEPT)[..., 0, 0]).double().log()


def choose(rng: Tensor, rows: int, n: int | Tensor) -> Tensor:
    """One of 0..n-1 for each row, uniformly: int64 [rows]; n is at most 2^31, and may differ by row."""
    return words(rng, 1, rows, 1, CHOICE)[0, :, 0, 0] * n >> 32


def normal_pair(x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Box-Muller on two words: r cos(2 pi v), r sin(2 pi v) in float64, the angle reduced exactly to an octant."""
    r = (-2.0 * _open_unit(x0).double().log()).clamp_min(0.0).sqrt()
    turn = x1 >> 8  # v = turn * 2^-24
    quadrant = (turn + (1 << 21)) >> 22
    angle = (turn - (quadrant << 22)).double() * (2.0 * math.pi * 2.0**-24)  # [-pi/4, pi/4)
    c, s = angle.cos(), angle.sin()
    odd = (quadrant & 1).bool()
    c, s = torch.where(odd, -s, c), torch.where(odd, c, s)
    half = torch.where((quadrant & 2).bool(), -r, r)
    return half * c, half * s


def laplace_unit(x: Tensor) -> Tensor:
    """Standard Laplace from one word: the lowest bit is the sign, the upper 23 the magnitude."""
    magnitude = -_open_unit(x).double().log()
    return torch.where((x & 1).bool(), -magnitude, magnitude)


def _to_dims(values: Tensor, dim: int) -> Tensor:
    """Values [..., calls, 4] in call order -> [..., dim]: call 4 j + t holds 16 j + (2t, 2t+1, 2t+8, 2t+9)."""
    calls = values.shape[-2]
    padded = torch.nn.functional.pad(values, (0, 0, 0, -calls % 4))
    blocks = padded.unflatten(-2, (-1, 4)).unflatten(-1, (2, 2))  # [..., j, t, half, pair]
    return blocks.transpose(-3, -2).flatten(-4)[..., :dim]


def draw(rng: Tensor, steps: int, rows: int, dim: int, law: str, purpose: int, scale: Tensor | None = None) -> Tensor:
    """Draws float32 [steps, rows, dim], one independent stream per (purpose, step, chain)."""
    x = words(rng, steps, rows, dim, purpose)
    if law == "normal":
        x0, x1, x2, x3 = x.unbind(-1)
        values = torch.stack((*normal_pair(x0, x1), *normal_pair(x2, x3)), dim=-1)
    else:
        values = laplace_unit(x)
    out = _to_dims(values, dim).float()
    return out if scale is None else out * scale
