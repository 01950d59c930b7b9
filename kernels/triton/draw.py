"""`draw`: a tile of chains by 16 dimensions a program, each Philox call's four values written where they belong."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .noise import laplace4, normal4, to_dims

_ROWS = 64


@triton.jit(do_not_specialize=["rows", "tiles", "blocks"], repr=launch.kernel_name("draw"))
def draw_kernel(
    out_ptr, scale_ptr, rng_ptr, rows, tiles, blocks, dim,
    LAW: tl.constexpr, PURPOSE: tl.constexpr, SCALED: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Program (s tiles + i) blocks + j draws step s of chains i M.. and dimensions j D.."""
    place = tl.program_id(0) // blocks
    step = (place // tiles).to(tl.int64)
    row = (place % tiles).to(tl.int64) * M + tl.arange(0, M)
    first = tl.program_id(0) % blocks * D
    seed = tl.load(rng_ptr)
    q = first // 4 + tl.arange(0, D // 4)
    chain = (tl.load(rng_ptr + 2) + row)[:, None]
    if LAW == "normal":
        a, b, c, d = normal4(seed, tl.load(rng_ptr + 1) + step, chain, PURPOSE, q[None, :])
    else:
        a, b, c, d = laplace4(seed, tl.load(rng_ptr + 1) + step, chain, PURPOSE, q[None, :])
    values = to_dims(a, b, c, d, M, D)  # [M, D]
    dims = first + tl.arange(0, D)
    if SCALED:
        values = values * tl.load(scale_ptr + dims, mask=dims < dim, other=0.0)[None, :]
    cells = (step * rows + row)[:, None] * dim + dims[None, :]
    tl.store(out_ptr + cells, values, mask=(row < rows)[:, None] & (dims < dim)[None, :])


def draw(rng: Tensor, steps: int, rows: int, dim: int, law: str, purpose: int, scale: Tensor | None = None) -> Tensor:
    """Draws float32 [steps, rows, dim] of the law, times scale [dim]; rng: int64 [3] = (seed, offset, first chain)."""
    out = torch.empty((steps, rows, dim), dtype=torch.float32, device=rng.device)
    if out.numel():
        width = min(64, launch.padded(dim))
        tiles, blocks = triton.cdiv(rows, _ROWS), triton.cdiv(dim, width)
        with launch.on(rng.device):
            draw_kernel[(steps * tiles * blocks,)](
                out, out if scale is None else scale.contiguous(), rng.contiguous(), rows, tiles, blocks, dim,
                LAW=law, PURPOSE=purpose, SCALED=scale is not None, M=_ROWS, D=width, num_warps=4, **launch.OPTIONS,
            )  # fmt: skip
    return out
