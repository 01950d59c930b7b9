"""`langevin_update`: one step of chains whose energy is not an MLP, given its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import Constraints
from . import launch
from .noise import CHAIN_NOISE, normal4, to_dims

_NAN = tl.constexpr(tl.PropagateNan.ALL)
_VALUES = 2048  # of a program


@triton.jit
def moved(
    z, grad, table_ptr, rng_ptr, step, row, q, scale, REFERENCE: tl.constexpr, M: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """z [M, D] of chains `row` and dimensions of calls `q` after a step of coefficients (a, b, t), grad being dE/dz."""
    force = grad * tl.load(table_ptr + 2)
    if REFERENCE == "normal":
        force += tl.div_rn(z, (scale * scale)[None, :])
    if REFERENCE == "laplace":
        force += tl.div_rn(tl.where(z > 0.0, 1.0, tl.where(z < 0.0, -1.0, 0.0)), scale[None, :])
    chain = (tl.load(rng_ptr + 2) + row)[:, None]
    n0, n1, n2, n3 = normal4(tl.load(rng_ptr), tl.load(rng_ptr + 1) + step, chain, CHAIN_NOISE, q[None, :])
    return tl.fma(tl.load(table_ptr + 1), to_dims(n0, n1, n2, n3, M, D), tl.fma(-tl.load(table_ptr), force, z))


@triton.jit(do_not_specialize=["rows", "step"], repr=launch.kernel_name("langevin_update"))
def update_kernel(
    z_ptr, grad_ptr, table_ptr, rng_ptr, scale_ptr, out_ptr, rows, step, dim, clip, lower, upper,
    REFERENCE: tl.constexpr, CLIP: tl.constexpr, CLAMP: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One step of M chains, D dimensions at a time; the clip's norm is a pass of its own."""
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    here = (row < rows)[:, None]
    if CLIP:
        square = tl.zeros((M,), tl.float32)
        for first in range(0, dim, D):
            dims = first + tl.arange(0, D)[None, :]
            grad = tl.load(grad_ptr + row[:, None] * dim + dims, mask=here & (dims < dim), other=0.0)
            square += tl.sum(grad * grad, 1)
        shrink = clip / tl.maximum(tl.sqrt_rn(square), clip, propagate_nan=_NAN)
    for first in range(0, dim, D):
        dims = first + tl.arange(0, D)
        mask = here & (dims[None, :] < dim)
        cells = row[:, None] * dim + dims[None, :]
        z = tl.load(z_ptr + cells, mask=mask, other=0.0)
        grad = tl.load(grad_ptr + cells, mask=mask, other=0.0)
        if CLIP:
            grad = grad * shrink[:, None]
        scale = tl.load(scale_ptr + dims, mask=dims < dim, other=1.0)
        q = first // 4 + tl.arange(0, D // 4)
        new = moved(z, grad, table_ptr + 3 * step, rng_ptr, step, row, q, scale, REFERENCE, M, D)
        if CLAMP:
            new = tl.minimum(tl.maximum(new, lower, propagate_nan=_NAN), upper, propagate_nan=_NAN)
        tl.store(out_ptr + cells, new, mask=mask)


def updates(coefficients: Tensor, rng: Tensor, hold: Constraints) -> Callable[[Tensor, Tensor, int], Tensor]:
    """`langevin_update` of (z, grad, step) for a loop: what does not change from step to step is read once."""
    table, stream, scale = coefficients.contiguous(), rng.contiguous(), hold.scale.contiguous()
    dim = len(scale)
    width = min(64, launch.padded(dim))
    tile = _VALUES // width
    clip, lower, upper = launch.limits(hold)
    flags = {
        "REFERENCE": hold.reference,
        "CLIP": hold.grad_clip is not None,
        "CLAMP": hold.lower is not None or hold.upper is not None,
    }

    def update(z: Tensor, grad: Tensor, step: int) -> Tensor:
        z, grad = z.contiguous(), grad.contiguous()
        out = torch.empty_like(z)
        if len(z):
            with launch.on(z.device):
                update_kernel[(triton.cdiv(len(z), tile),)](
                    z, grad, table, stream, scale, out, len(z), step, dim, clip, lower, upper,
                    **flags, M=tile, D=width, num_warps=4, **launch.OPTIONS,
                )  # fmt: skip
        return out

    return update


def langevin_update(z: Tensor, grad: Tensor, coefficients: Tensor, rng: Tensor, step: int, hold: Constraints) -> Tensor:
    """Step `step` of a chain given dE/dz [B, d] at z."""
    return updates(coefficients, rng, hold)(z, grad, step)
