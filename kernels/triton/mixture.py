"""`mixture_log_prob` and its gradient: a tile of rows a program, all experts of each beside one another.

The gradient is two launches: the experts' shares of g at every row, a number an expert, then a block of dimensions a
program, which adds up over the leading dimensions of z in their order.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from . import launch

_REGISTERS = 4096  # values of a tile [M, R, D]
_MAX_BLOCK = 64  # dimensions of a tile
_HALF_LOG_TWO_PI = tl.constexpr(0.5 * math.log(2.0 * math.pi))
_LOG_TWO = tl.constexpr(math.log(2.0))


@triton.jit
def _minus_log_density(u, log_scale, LAW: tl.constexpr):
    if LAW == "normal":
        return tl.fma(u * 0.5, u, log_scale + _HALF_LOG_TWO_PI)
    else:
        return tl.abs(u) + (log_scale + _LOG_TWO)


@triton.jit
def _sign(x):
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))  # 0 and NaN stay


@triton.jit
def _held(present_ptr, row, rows, EXPERTS: tl.constexpr, M: tl.constexpr):
    """Which experts rows [R] have, [M, R]."""
    m = tl.arange(0, M).to(tl.int64)[:, None]
    everyone: tl.constexpr = (1 << EXPERTS) - 1
    mask = tl.load(present_ptr + row, mask=row < rows, other=0) & everyone
    return ((mask[None, :] >> m) & 1) != 0


@triton.jit(do_not_specialize=["rows"], repr=launch.kernel_name("mixture_log_prob"))
def mixture_kernel(
    z_ptr, loc_ptr, scale_ptr, present_ptr, g_ptr, out_ptr, lead, rows, dim,
    EXPERTS: tl.constexpr, LAW: tl.constexpr, SHARES: tl.constexpr,
    M: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """log q [L, B] of R rows at one leading index, or g times the experts' responsibilities [M, L, B]."""
    tiles = tl.cdiv(rows, R)
    row = (tl.program_id(0) % tiles).to(tl.int64) * R + tl.arange(0, R)
    at = (tl.program_id(0) // tiles).to(tl.int64) * rows + row
    m = tl.arange(0, M).to(tl.int64)[:, None]
    size = tl.cast(rows, tl.int64) * dim
    held = _held(present_ptr, row, rows, EXPERTS, M)
    inside = (m < EXPERTS) & (row < rows)[None, :]
    each = tl.zeros((M, R), tl.float32)
    standard = tl.zeros((R,), tl.float32)
    for first in range(0, dim, D):
        column = first + tl.arange(0, D)
        exists = (row < rows)[:, None] & (column < dim)[None, :]
        z = tl.load(z_ptr + at[:, None] * dim + column[None, :], mask=exists, other=0.0)
        cells = (m * size + row[None, :] * dim)[:, :, None] + column[None, None, :]
        there = inside[:, :, None] & (column < dim)[None, None, :]
        loc = tl.load(loc_ptr + cells, mask=there, other=0.0)
        scale = tl.load(scale_ptr + cells, mask=there, other=1.0)
        lost = _minus_log_density(tl.div_rn(z[None, :, :] - loc, scale), tl.log(scale), LAW)
        each += tl.sum(tl.where(there, lost, 0.0), 2)
        standard += tl.sum(tl.where(exists, _minus_log_density(z, z * 0.0, LAW), 0.0), 1)
    each = tl.where(held, -each, float("-inf"))
    count = tl.sum(held.to(tl.int32), 0)
    top = tl.where(count > 0, tl.max(each, 0), 0.0)
    likelihood = tl.where(held, tl.exp(each - top[None, :]), 0.0)
    total = tl.where(count > 0, tl.sum(likelihood, 0), 1.0)
    if SHARES:
        g = tl.load(g_ptr + at, mask=row < rows, other=0.0)
        into = m * (tl.cast(lead, tl.int64) * rows) + at[None, :]
        tl.store(
            out_ptr + into, tl.div_rn(likelihood, tl.broadcast_to(total[None, :], (M, R))) * g[None, :], mask=inside
        )
    else:
        mixed = top + (tl.log(total) - tl.log(tl.maximum(count, 1).to(tl.float32)))
        tl.store(out_ptr + at, tl.where(count > 0, mixed, -standard), mask=row < rows)


@triton.jit(do_not_specialize=["rows", "leads"], repr=launch.kernel_name("mixture_log_prob_backward"))
def mixture_backward_kernel(
    g_ptr, shares_ptr, z_ptr, loc_ptr, scale_ptr, present_ptr, dz_ptr, d_loc_ptr, d_scale_ptr, lead, leads, rows, dim,
    EXPERTS: tl.constexpr, LAW: tl.constexpr, PARAMETERS: tl.constexpr,
    M: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Of R rows, D dimensions and `leads` leading indices; with PARAMETERS these are all there are."""
    tiles = tl.cdiv(rows, R)
    row = (tl.program_id(0) % tiles).to(tl.int64) * R + tl.arange(0, R)
    column = tl.program_id(1) * D + tl.arange(0, D)
    m = tl.arange(0, M).to(tl.int64)[:, None]
    held = _held(present_ptr, row, rows, EXPERTS, M)
    empty = tl.sum(held.to(tl.int32), 0) == 0
    inside = (m < EXPERTS) & (row < rows)[None, :]
    exists = (row < rows)[:, None] & (column < dim)[None, :]
    cells = (m * (tl.cast(rows, tl.int64) * dim) + row[None, :] * dim)[:, :, None] + column[None, None, :]
    there = inside[:, :, None] & (column < dim)[None, None, :]
    loc = tl.load(loc_ptr + cells, mask=there, other=0.0)
    scale = tl.load(scale_ptr + cells, mask=there, other=1.0)
    chosen = held[:, :, None] & there
    if PARAMETERS:
        d_loc = tl.zeros((M, R, D), tl.float32)
        d_scale = tl.zeros((M, R, D), tl.float32)
    first = (tl.program_id(0) // tiles).to(tl.int64) * leads
    for k in range(leads):
        index = first + k
        at = index * rows + row
        z = tl.load(z_ptr + at[:, None] * dim + column[None, :], mask=exists, other=0.0)
        g = tl.load(g_ptr + at, mask=row < rows, other=0.0)
        share = tl.load(shares_ptr + m * (tl.cast(lead, tl.int64) * rows) + at[None, :], mask=inside, other=0.0)
        u = tl.div_rn(z[None, :, :] - loc, scale)
        by_scale = tl.div_rn(tl.broadcast_to(share[:, :, None], u.shape), scale)
        if LAW == "normal":
            pull = by_scale * u
            prior = z
        else:
            pull = by_scale * _sign(u)
            prior = _sign(z)
        pull = tl.where(chosen, pull, 0.0)
        dz = tl.where(empty[:, None], -g[:, None] * prior, -tl.sum(pull, 0))
        tl.store(dz_ptr + at[:, None] * dim + column[None, :], dz, mask=exists)
        if PARAMETERS:
            d_loc += pull
            stretch = tl.fma(u, u, tl.full(u.shape, -1.0, tl.float32)) if LAW == "normal" else tl.abs(u) - 1.0
            d_scale += tl.where(chosen, by_scale * stretch, 0.0)
    if PARAMETERS:
        tl.store(d_loc_ptr + cells, d_loc, mask=there)
        tl.store(d_scale_ptr + cells, d_scale, mask=there)


def tile(experts: int, dim: int) -> dict[str, int]:
    """M experts, R rows and D dimensions of a program."""
    m, d = triton.next_power_of_2(experts), min(_MAX_BLOCK, triton.next_power_of_2(dim))
    cells = min(512, max(128, _REGISTERS // m))
    return {"M": m, "R": max(1, cells // d), "D": d}


def _mixture(
    z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, g: Tensor | None = None
) -> tuple[Tensor, dict[str, int]]:
    """log q [.., B], or of a gradient g [.., B] the experts' shares [M, .., B]; and the launch's tile."""
    experts, rows, dim = loc.shape
    shape, lead = tile(experts, max(1, dim)), math.prod(z.shape[:-2])
    out = z.new_empty(z.shape[:-1] if g is None else (experts, *z.shape[:-1]))
    if rows * lead:
        with launch.on(z.device):
            mixture_kernel[(triton.cdiv(rows, shape["R"]) * lead,)](
                z.contiguous(), loc.contiguous(), scale.contiguous(), present.contiguous(),
                z if g is None else g.contiguous(), out, lead, rows, dim, EXPERTS=experts, LAW=law,
                SHARES=g is not None, **shape, num_warps=4, **launch.OPTIONS,
            )  # fmt: skip
    return out, shape


def mixture_log_prob(z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str) -> Tensor:
    """z [.., B, d], loc and scale [M, B, d], present int64 [B] -> [.., B]; an empty row has the standard law."""
    return _mixture(z, loc, scale, present, law)[0]


def mixture_log_prob_backward(
    g: Tensor, z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of sum g log q in z, and where `parameters`, in loc and scale (else empty)."""
    experts, rows, dim = loc.shape
    lead = math.prod(z.shape[:-2])
    shares, shape = _mixture(z, loc, scale, present, law, g)
    dz = z.new_empty(z.shape)
    d_loc, d_scale = (loc.new_empty(loc.shape if parameters else 0) for _ in range(2))
    if parameters and not lead:
        return dz, d_loc.zero_(), d_scale.zero_()
    if rows * dim * lead:
        leads = lead if parameters else 1
        grid = triton.cdiv(rows, shape["R"]) * (lead // leads), triton.cdiv(dim, shape["D"])
        with launch.on(z.device):
            mixture_backward_kernel[grid](
                g.contiguous(), shares, z.contiguous(), loc.contiguous(), scale.contiguous(), present.contiguous(),
                dz, d_loc, d_scale, lead, leads, rows, dim, EXPERTS=experts, LAW=law, PARAMETERS=parameters, **shape,
                num_warps=4, **launch.OPTIONS,
            )  # fmt: skip
    return dz, d_loc, d_scale
