"""`subset_experts` and its gradient: a tile of rows by dimensions a program, which goes through the subsets in order.

Precisions are taken once, relative to the largest of all, and every subset adds up its own; where their range is too
wide for that anywhere in the tile, every subset of it has its own scale. So it has for "kl" always: a log-variance far
from that of all loses digits, which the divergence's exponential makes large. A tile's sums over d come in a fixed
order, first within and then over blocks of dimensions.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .product import counts_prior, multiply

_REGISTERS = 4096  # values of a tile [M, R, D]
_MAX_BLOCK = 64  # dimensions of a tile
_RANGE = tl.constexpr(60.0)  # of log precisions that one scale may serve


@triton.jit
def _expm1(x):
    """e^x - 1; next to 0 by its series, where the difference cancels."""
    p = tl.fma(x, 1.0 / 5040.0, 1.0 / 720.0)  # of seven terms the next is below 2^-24 on [-1/2, 1/2]
    p = tl.fma(p, x, 1.0 / 120.0)
    p = tl.fma(p, x, 1.0 / 24.0)
    p = tl.fma(p, x, 1.0 / 6.0)
    p = tl.fma(p, x, 0.5)
    return tl.where(tl.abs(x) < 0.5, tl.fma(p * x, x, x), tl.exp(x) - 1.0)


@triton.jit
def _load(
    mu_ptr, logvar_ptr, present_ptr, rows, dim,
    EXPERTS: tl.constexpr, M: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Of a program: rows [R, 1], cells [R, D] and which exist; experts' cells, mu, logvar and held [M, R, D]; masks."""
    row = (tl.program_id(0).to(tl.int64) * R + tl.arange(0, R))[:, None]
    column = (tl.program_id(1) * D + tl.arange(0, D))[None, :]
    m = tl.arange(0, M).to(tl.int64)[:, None, None]
    exists = (row < rows) & (column < dim)
    everyone: tl.constexpr = (1 << EXPERTS) - 1
    mask = tl.load(present_ptr + row, mask=row < rows, other=0) & everyone  # [R, 1]
    at = row * dim + column
    cells = m * (tl.cast(rows, tl.int64) * dim) + at[None, :, :]
    inside = (m < EXPERTS) & exists[None, :, :]
    mu = tl.load(mu_ptr + cells, mask=inside, other=0.0)
    logvar = tl.load(logvar_ptr + cells, mask=inside, other=0.0)
    held = inside & (((mask[None, :, :] >> m) & 1) != 0)
    return row, at, exists, cells, inside, mu, logvar, held, mask


@triton.jit
def _common(logvar, mu, held, PRIOR: tl.constexpr):
    """The least log-variance [R, D], precisions relative to it [M, R, D], and whether that serves the whole tile."""
    least = tl.min(tl.where(held, logvar, float("inf")), 0)
    most = tl.max(tl.where(held, logvar, -float("inf")), 0)
    if PRIOR != "never":
        least = tl.minimum(least, 0.0)
        most = tl.maximum(most, 0.0)
    wide = tl.max(tl.max(tl.where(most - least < _RANGE, 0, tl.where(most < least, 0, 1)), 1), 0) != 0
    least = tl.where(most < least, 0.0, least)  # nothing held
    precision = tl.where(held, tl.exp(least[None, :, :] - logvar), 0.0)
    return least, precision, wide


@triton.jit
def _product(
    s, logvar, mu, held, mask, least, precision, prior_precision, own, EXPERTS: tl.constexpr, PRIOR: tl.constexpr
):
    """Subset s of every row: which experts, mean, log-variance, and the experts' weights [M, R, D]."""
    m = tl.arange(0, held.shape[0])[:, None, None]
    chosen = held & (((s >> m) & 1) != 0)
    with_prior = tl.broadcast_to(counts_prior(mask & s, EXPERTS, PRIOR), least.shape)
    if own:
        scale, total, mean, weight = multiply(logvar, mu, chosen, with_prior)
        lv = scale - tl.log(total)
    else:
        # Experts that are not chosen may hold NaN: selected, not weighted by zero.
        weight = tl.where(chosen, precision, 0.0)
        total = tl.sum(weight, 0)
        mean = tl.sum(tl.where(chosen, precision * mu, 0.0), 0)
        alone = total == 0.0
        total = tl.where(with_prior & (alone == 0), total + prior_precision, total)
        inverse = tl.div_rn(tl.full(total.shape, 1.0, tl.float32), tl.where(alone, 1.0, total))
        mean = mean * inverse
        lv = tl.where(alone, 0.0, least - tl.log(tl.where(alone, 1.0, total)))
        weight = weight * inverse[None, :, :]
    return chosen, mean, lv, weight


@triton.jit(do_not_specialize=["subsets"], repr=launch.kernel_name("subset_experts"))
def subsets_kernel(
    mu_ptr, logvar_ptr, present_ptr, mean_ptr, out_logvar_ptr, kl_ptr, rows, dim, subsets,
    EXPERTS: tl.constexpr, PRIOR: tl.constexpr, MODE: tl.constexpr,
    M: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """All subsets of R rows, in D dimensions; of "kl" the block's part [blocks, S, B]."""
    row, at, exists, _cells, _inside, mu, logvar, held, mask = _load(
        mu_ptr, logvar_ptr, present_ptr, rows, dim, EXPERTS, M, R, D
    )
    least, precision, wide = _common(logvar, mu, held, PRIOR)
    prior_precision = tl.exp(least)
    own = True if MODE == "kl" else wide
    size = tl.cast(rows, tl.int64) * dim
    for s in range(1, subsets + 1):
        _chosen, mean, lv, _weight = _product(
            s, logvar, mu, held, mask, least, precision, prior_precision, own, EXPERTS, PRIOR
        )
        before = tl.cast(s - 1, tl.int64)
        if MODE == "all":
            tl.store(mean_ptr + before * size + at, mean, mask=exists)
            tl.store(out_logvar_ptr + before * size + at, lv, mask=exists)
        else:
            divergence = tl.fma(mean, mean, _expm1(lv) - lv) * 0.5
            kl = tl.sum(tl.where(exists, divergence, 0.0), 1)[:, None]
            into = (tl.program_id(1).to(tl.int64) * subsets + before) * rows + row
            tl.store(kl_ptr + into, kl, mask=row < rows)


@triton.jit(do_not_specialize=["subsets"], repr=launch.kernel_name("subset_experts_backward"))
def subsets_backward_kernel(
    g_mu_ptr, g_logvar_ptr, g_kl_ptr, mu_ptr, logvar_ptr, present_ptr, d_mu_ptr, d_logvar_ptr, rows, dim, subsets,
    EXPERTS: tl.constexpr, PRIOR: tl.constexpr, MODE: tl.constexpr,
    M: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """What all subsets of R rows send back to their experts, in D dimensions."""
    row, at, exists, cells, inside, mu, logvar, held, mask = _load(
        mu_ptr, logvar_ptr, present_ptr, rows, dim, EXPERTS, M, R, D
    )
    least, precision, wide = _common(logvar, mu, held, PRIOR)
    prior_precision = tl.exp(least)
    own = True if MODE == "kl" else wide
    size = tl.cast(rows, tl.int64) * dim
    d_mu = tl.zeros((M, R, D), tl.float32)
    d_logvar = tl.zeros((M, R, D), tl.float32)
    for s in range(1, subsets + 1):
        chosen, mean, lv, weight = _product(
            s, logvar, mu, held, mask, least, precision, prior_precision, own, EXPERTS, PRIOR
        )
        before = tl.cast(s - 1, tl.int64)
        if MODE == "all":
            g_mean = tl.load(g_mu_ptr + before * size + at, mask=exists, other=0.0)
            g_lv = tl.load(g_logvar_ptr + before * size + at, mask=exists, other=0.0)
        else:
            g = tl.load(g_kl_ptr + before * rows + row, mask=row < rows, other=0.0)
            g_mean = g * mean
            g_lv = _expm1(lv) * (g * 0.5)
        away = mu - mean[None, :, :]
        back = tl.fma(-tl.broadcast_to(g_mean[None, :, :], mu.shape), away, tl.broadcast_to(g_lv[None, :, :], mu.shape))
        d_mu += tl.where(chosen, weight * g_mean[None, :, :], 0.0)
        d_logvar += tl.where(chosen, weight * back, 0.0)
    tl.store(d_mu_ptr + cells, d_mu, mask=inside)
    tl.store(d_logvar_ptr + cells, d_logvar, mask=inside)


def tile(experts: int, dim: int) -> dict[str, int]:
    """M experts, R rows and D dimensions of a program: at least a thread's of each expert, who are one thread's."""
    m, d = triton.next_power_of_2(experts), min(_MAX_BLOCK, triton.next_power_of_2(dim))
    cells = max(128, _REGISTERS // m)
    return {"M": m, "R": max(1, min(512, cells) // d), "D": d}


def _call(mu: Tensor, prior: str, mode: str) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and constants of a launch."""
    experts, rows, dim = mu.shape
    shape = tile(experts, max(1, dim))
    options = {"EXPERTS": experts, "PRIOR": prior, "MODE": mode, **shape, "num_warps": 4, **launch.OPTIONS}
    return (triton.cdiv(rows, shape["R"]), triton.cdiv(dim, shape["D"])), options


def subset_experts(mu: Tensor, logvar: Tensor, present: Tensor, prior: str, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """Over every subset: mu, logvar [S, B, d] (mode "all") and KL(q_s || N(0, I)) [S, B] (mode "kl"), else empty."""
    experts, rows, dim = mu.shape
    subsets, everywhere = (1 << experts) - 1, mode == "all"
    means, logvars = (mu.new_empty((subsets, rows, dim) if everywhere else 0) for _ in range(2))
    grid, options = _call(mu, prior, mode)
    parts = mu.new_empty((0, 0, 0) if everywhere else (grid[1], subsets, rows))
    if rows * dim:
        with launch.on(mu.device):
            subsets_kernel[grid](
                mu.contiguous(), logvar.contiguous(), present.contiguous(), means, logvars, parts, rows, dim, subsets,
                **options,
            )  # fmt: skip
    if everywhere:
        return means, logvars, mu.new_empty(0)
    return means, logvars, parts[0] if len(parts) == 1 else parts.sum(0)


def subset_experts_backward(
    g_mu: Tensor, g_logvar: Tensor, g_kl: Tensor, mu: Tensor, logvar: Tensor, present: Tensor, prior: str, mode: str
) -> tuple[Tensor, Tensor]:
    """The gradient of sum(g_mu mu + g_logvar logvar) (mode "all") or sum(g_kl kl) (mode "kl") in the experts."""
    experts, rows, dim = mu.shape
    d_mu, d_logvar = mu.new_empty(mu.shape), mu.new_empty(mu.shape)
    grid, options = _call(mu, prior, mode)
    if rows * dim:
        with launch.on(mu.device):
            subsets_backward_kernel[grid](
                g_mu.contiguous(), g_logvar.contiguous(), g_kl.contiguous(), mu.contiguous(), logvar.contiguous(),
                present.contiguous(), d_mu, d_logvar, rows, dim, (1 << experts) - 1, **options,
            )  # fmt: skip
    return d_mu, d_logvar
