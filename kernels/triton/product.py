"""`product_of_experts` and its gradient: a run of (row, dimension) values a program, all experts of each in registers.

Log-space as in kernels/reference/experts.py: precisions are taken relative to the largest one of the product. Absent
experts are read, so that loads stay whole vectors, and selected away: they may hold anything.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import launch

_REGISTERS = 4096  # values of a tile [M, N]


@triton.jit
def counts_prior(mask, EXPERTS: tl.constexpr, PRIOR: tl.constexpr):
    """Whether the standard normal is one of the factors over the experts of a mask, of which it has no other bits."""
    if PRIOR == "always":
        return mask == mask
    elif PRIOR == "full":
        return (mask == 0) | (mask == ((1 << EXPERTS) - 1))
    else:
        return mask == 0


@triton.jit
def multiply(logvar, mu, held, with_prior):
    """The product over the experts held [M, ..] and, where `with_prior` [..], the standard normal.

    Gives t and s, the log-variance being t - ln s, the mean, and the experts' weights [M, ..].
    """
    least = tl.min(tl.where(held, logvar, float("inf")), 0)
    least = tl.where(with_prior, tl.minimum(least, 0.0), least)
    precision = tl.where(held, tl.exp(tl.expand_dims(least, 0) - logvar), 0.0)
    total = tl.sum(precision, 0) + tl.where(with_prior, tl.exp(least), 0.0)
    inverse = tl.div_rn(tl.full(total.shape, 1.0, tl.float32), total)
    mean = tl.sum(tl.where(held, precision * mu, 0.0), 0) * inverse
    return least, total, mean, precision * tl.expand_dims(inverse, 0)


@triton.jit
def _rows(first, dim, N: tl.constexpr):
    """The rows of the values first, first + 1, .. : one division of 64 bits a program, the rest in 32."""
    row = first // dim
    return row + ((first - row * dim).to(tl.int32) + tl.arange(0, N)) // dim


@triton.jit
def _load(mu_ptr, logvar_ptr, present_ptr, values, dim, EXPERTS: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Of a program: its values, which of them exist, where each expert's are, mu, logvar and held [M, N], masks [N]."""
    first = tl.program_id(0).to(tl.int64) * N
    i = first + tl.arange(0, N)
    m = tl.arange(0, M).to(tl.int64)[:, None]
    exists = i < values
    everyone: tl.constexpr = (1 << EXPERTS) - 1
    mask = tl.load(present_ptr + _rows(first, dim, N), mask=exists, other=0) & everyone
    cells = m * values + i[None, :]
    inside = (m < EXPERTS) & exists[None, :]
    mu = tl.load(mu_ptr + cells, mask=inside, other=0.0)
    logvar = tl.load(logvar_ptr + cells, mask=inside, other=0.0)
    return i, exists, cells, inside, mu, logvar, ((mask[None, :] >> m) & 1) != 0, mask


@triton.jit(do_not_specialize=["dim"], repr=launch.kernel_name("product_of_experts"))
def product_kernel(
    mu_ptr, logvar_ptr, present_ptr, mean_ptr, out_logvar_ptr, values, dim,
    EXPERTS: tl.constexpr, PRIOR: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """N of the B d values."""
    i, exists, _cells, _inside, mu, logvar, held, mask = _load(
        mu_ptr, logvar_ptr, present_ptr, values, dim, EXPERTS, M, N
    )
    least, total, mean, _weight = multiply(logvar, mu, held, counts_prior(mask, EXPERTS, PRIOR))
    tl.store(mean_ptr + i, mean, mask=exists)
    tl.store(out_logvar_ptr + i, least - tl.log(total), mask=exists)


@triton.jit(do_not_specialize=["dim"], repr=launch.kernel_name("product_of_experts_backward"))
def product_backward_kernel(
    g_mu_ptr, g_logvar_ptr, mu_ptr, logvar_ptr, present_ptr, d_mu_ptr, d_logvar_ptr, values, dim,
    EXPERTS: tl.constexpr, PRIOR: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """N of the B d values, which is of each expert's."""
    i, exists, cells, inside, mu, logvar, held, mask = _load(
        mu_ptr, logvar_ptr, present_ptr, values, dim, EXPERTS, M, N
    )
    g_mu = tl.load(g_mu_ptr + i, mask=exists, other=0.0)[None, :]
    g_logvar = tl.load(g_logvar_ptr + i, mask=exists, other=0.0)[None, :]
    _least, _total, mean, weight = multiply(logvar, mu, held, counts_prior(mask, EXPERTS, PRIOR))
    tl.store(d_mu_ptr + cells, tl.where(held, weight * g_mu, 0.0), mask=inside)
    d_logvar = weight * tl.fma(-g_mu, mu - mean[None, :], tl.broadcast_to(g_logvar, mu.shape))
    tl.store(d_logvar_ptr + cells, tl.where(held, d_logvar, 0.0), mask=inside)


def tile(experts: int) -> dict[str, int]:
    """M, the experts of a tile, and N, values of each: at least a thread's, so that sums over experts stay in it."""
    m = triton.next_power_of_2(experts)
    return {"M": m, "N": min(1024, max(128, _REGISTERS // m))}


def product_of_experts(mu: Tensor, logvar: Tensor, present: Tensor, prior: str) -> tuple[Tensor, Tensor]:
    """mu and logvar [M, B, d], present int64 [B] -> mu and logvar [B, d] of the product."""
    experts, rows, dim = mu.shape
    mean, lv = mu.new_empty(rows, dim), mu.new_empty(rows, dim)
    if values := rows * dim:
        shape = tile(experts)
        with launch.on(mu.device):
            product_kernel[(triton.cdiv(values, shape["N"]),)](
                mu.contiguous(), logvar.contiguous(), present.contiguous(), mean, lv, values, dim,
                EXPERTS=experts, PRIOR=prior, **shape, num_warps=4, **launch.OPTIONS,
            )  # fmt: skip
    return mean, lv


def product_of_experts_backward(
    g_mu: Tensor, g_logvar: Tensor, mu: Tensor, logvar: Tensor, present: Tensor, prior: str
) -> tuple[Tensor, Tensor]:
    """The gradient of sum(g_mu mu + g_logvar logvar) in the experts' mu and logvar [M, B, d]."""
    experts, rows, dim = mu.shape
    d_mu, d_logvar = mu.new_empty(mu.shape), mu.new_empty(mu.shape)
    if values := rows * dim:
        shape = tile(experts)
        with launch.on(mu.device):
            product_backward_kernel[(triton.cdiv(values, shape["N"]),)](
                g_mu.contiguous(), g_logvar.contiguous(), mu.contiguous(), logvar.contiguous(), present.contiguous(),
                d_mu, d_logvar, values, dim, EXPERTS=experts, PRIOR=prior, **shape, num_warps=4, **launch.OPTIONS,
            )  # fmt: skip
    return d_mu, d_logvar
