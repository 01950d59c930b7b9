"""Mixtures and products of experts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks, dispatch
from ..reference import choose_subset
from .register import differentiable_once, fake, gradient, operator


def _all_present(experts: Tensor) -> Tensor:
    """The bitmask [B] of rows that have all of [M, B, d]."""
    return torch.full(experts.shape[1:2], (1 << len(experts)) - 1, dtype=torch.int64, device=experts.device)


# mixture_log_prob ----------------------------------------------------------------------------------------------------


@operator("mixture_log_prob", "(Tensor z, Tensor loc, Tensor scale, Tensor present, str law, str backend) -> Tensor")
def _mixture_log_prob(z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, backend: str) -> Tensor:
    checks.experts(z, loc, scale, present, law)
    implementation = dispatch.select(backend, "mixture_log_prob", z.device, z.dtype)
    return implementation.mixture_log_prob(z.contiguous(), loc.contiguous(), scale.contiguous(), present, law)


@fake("mixture_log_prob")
def _(z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, backend: str) -> Tensor:
    checks.experts(z, loc, scale, present, law)
    return z.new_empty(z.shape[:-1])


@operator(
    "mixture_log_prob_backward",
    (
        "(Tensor g, Tensor z, Tensor loc, Tensor scale, Tensor present, str law, bool parameters, str backend)"
        " -> (Tensor, Tensor, Tensor)"
    ),
)
def _mixture_log_prob_backward(
    g: Tensor, z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, parameters: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    checks.experts(z, loc, scale, present, law)
    checks.tensor("g", g, z.shape[:-1], z)
    implementation = dispatch.select(backend, "mixture_log_prob_backward", z.device, z.dtype)
    dense = (t.contiguous() for t in (g, z, loc, scale))
    return implementation.mixture_log_prob_backward(*dense, present, law, parameters)


@fake("mixture_log_prob_backward")
def _(
    g: Tensor, z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, parameters: bool, backend: str
) -> Any:
    shape = loc.shape if parameters else (0,)
    return z.new_empty(z.shape), z.new_empty(shape), z.new_empty(shape)


def _save_mixture(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.law, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _mixture_gradient(ctx: Any, g: Tensor) -> Any:
    parameters = any(ctx.needs_input_grad[1:3])
    dz, d_loc, d_scale = torch.ops.mmebm.mixture_log_prob_backward(
        g.contiguous(), *ctx.saved_tensors, ctx.law, parameters, ctx.backend
    )
    return dz, d_loc if parameters else None, d_scale if parameters else None, None, None, None


gradient("mixture_log_prob", _mixture_gradient, _save_mixture)
differentiable_once("mixture_log_prob")


def mixture_log_prob(
    z: Tensor, loc: Tensor, scale: Tensor, present: Tensor | None = None, *, law: str, backend: str = "auto"
) -> Tensor:
    """log (1/n) sum of q_m(z) over a row's n present experts: z [.., B, d], loc and scale [M, B, d] -> [.., B].

    `present` is an int64 bitmask [B] (bit m for expert m; default all); a row with none has the standard law.
    Differentiable once in z, loc and scale.
    """
    present = _all_present(loc) if present is None else present
    return torch.ops.mmebm.mixture_log_prob(z, loc, scale, present, law, backend)


# product_of_experts --------------------------------------------------------------------------------------------------


@operator(
    "product_of_experts", "(Tensor mu, Tensor logvar, Tensor present, str prior, str backend) -> (Tensor, Tensor)"
)
def _product_of_experts(mu: Tensor, logvar: Tensor, present: Tensor, prior: str, backend: str) -> tuple[Tensor, Tensor]:
    checks.gaussian_experts(mu, logvar, present, prior)
    implementation = dispatch.select(backend, "product_of_experts", mu.device, mu.dtype)
    return implementation.product_of_experts(mu.contiguous(), logvar.contiguous(), present.contiguous(), prior)


@fake("product_of_experts")
def _(mu: Tensor, logvar: Tensor, present: Tensor, prior: str, backend: str) -> tuple[Tensor, Tensor]:
    checks.gaussian_experts(mu, logvar, present, prior)
    return mu.new_empty(mu.shape[1:]), mu.new_empty(mu.shape[1:])


@operator(
    "product_of_experts_backward",
    (
        "(Tensor g_mu, Tensor g_logvar, Tensor mu, Tensor logvar, Tensor present, str prior, str backend)"
        " -> (Tensor, Tensor)"
    ),
)
def _product_of_experts_backward(
    g_mu: Tensor, g_logvar: Tensor, mu: Tensor, logvar: Tensor, present: Tensor, prior: str, backend: str
) -> tuple[Tensor, Tensor]:
    checks.gaussian_experts(mu, logvar, present, prior)
    checks.tensor("g_mu", g_mu, mu.shape[1:], mu)
    checks.tensor("g_logvar", g_logvar, mu.shape[1:], mu)
    implementation = dispatch.select(backend, "product_of_experts_backward", mu.device, mu.dtype)
    dense = (t.contiguous() for t in (g_mu, g_logvar, mu, logvar, present))
    return implementation.product_of_experts_backward(*dense, prior)


@fake("product_of_experts_backward")
def _(g_mu: Tensor, g_logvar: Tensor, mu: Tensor, logvar: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return mu.new_empty(mu.shape), mu.new_empty(mu.shape)


def _save_product(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.prior, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _product_gradient(ctx: Any, g_mu: Tensor, g_logvar: Tensor) -> Any:
    grads = torch.ops.mmebm.product_of_experts_backward(g_mu, g_logvar, *ctx.saved_tensors, ctx.prior, ctx.backend)
    return *grads, None, None, None


gradient("product_of_experts", _product_gradient, _save_product)
differentiable_once("product_of_experts")


def product_of_experts(
    mu: Tensor, logvar: Tensor, present: Tensor | None = None, *, prior: str = "never", backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """mu and logvar [B, d] of the normalised product of a row's present normal experts mu, logvar [M, B, d].

    `present` is an int64 bitmask [B] (bit m for expert m; default all). `prior` counts the standard normal in as one
    more expert "never", "always", or where the row has all M ("full"); a row with nothing present is the standard
    normal. The log precision is logsumexp(-logvar), without an epsilon. Differentiable once in mu and logvar.
    """
    present = _all_present(mu) if present is None else present
    return torch.ops.mmebm.product_of_experts(mu, logvar, present, prior, backend)


# subset_experts ------------------------------------------------------------------------------------------------------


class Subsets(NamedTuple):
    """What `subset_experts` was asked for; the rest is empty. S = 2^M - 1, row s - 1 belongs to bitmask s."""

    mu: Tensor  # [S, B, d] of "all", [B, d] of "one"
    logvar: Tensor  # as mu
    subset: Tensor  # int64 [B] of "one"
    kl: Tensor  # [S, B] of "kl"


@operator(
    "subset_experts",
    (
        "(Tensor mu, Tensor logvar, Tensor present, Tensor? subset, Tensor? rng, str mode, str prior, str backend)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    ),
)
def _subset_experts(
    mu: Tensor,
    logvar: Tensor,
    present: Tensor,
    subset: Tensor | None,
    rng: Tensor | None,
    mode: str,
    prior: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checks.gaussian_experts(mu, logvar, present, prior)
    checks.subset_mode(mu, mode, subset, rng)
    mu, logvar, present = mu.contiguous(), logvar.contiguous(), present.contiguous()
    if rng is not None:
        subset = choose_subset(present, len(mu), rng)
    elif subset is not None:
        subset = subset & present & ((1 << len(mu)) - 1)
    if subset is not None:  # "one" is a product, now that it is known of which experts
        implementation = dispatch.select(backend, "product_of_experts", mu.device, mu.dtype)
        return *implementation.product_of_experts(mu, logvar, subset, prior), subset, mu.new_empty(0)
    implementation = dispatch.select(backend, "subset_experts", mu.device, mu.dtype)
    means, logvars, kl = implementation.subset_experts(mu, logvar, present, prior, mode)
    return means, logvars, present.new_empty(0), kl


@fake("subset_experts")
def _(
    mu: Tensor, logvar: Tensor, present: Tensor, subset: Any, rng: Any, mode: str, prior: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checks.gaussian_experts(mu, logvar, present, prior)
    checks.subset_mode(mu, mode, subset, rng)
    experts, rows, dim = mu.shape
    shape = {"all": ((1 << experts) - 1, rows, dim), "one": (rows, dim), "kl": (0,)}[mode]
    kl = ((1 << experts) - 1, rows) if mode == "kl" else (0,)
    chosen = present.new_empty(rows if mode == "one" else 0)
    return mu.new_empty(shape), mu.new_empty(shape), chosen, mu.new_empty(kl)


@operator(
    "subset_experts_backward",
    (
        "(Tensor g_mu, Tensor g_logvar, Tensor g_kl, Tensor mu, Tensor logvar, Tensor present, str mode, str prior,"
        " str backend) -> (Tensor, Tensor)"
    ),
)
def _subset_experts_backward(
    g_mu: Tensor,
    g_logvar: Tensor,
    g_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    present: Tensor,
    mode: str,
    prior: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Modes "all" and "kl": the gradient of "one" is that of its product."""
    checks.gaussian_experts(mu, logvar, present, prior)
    checks.subset_gradients(g_mu, g_logvar, g_kl, mu, mode)
    implementation = dispatch.select(backend, "subset_experts_backward", mu.device, mu.dtype)
    dense = (t.contiguous() for t in (g_mu, g_logvar, g_kl, mu, logvar, present))
    return implementation.subset_experts_backward(*dense, prior, mode)


@fake("subset_experts_backward")
def _(g_mu: Tensor, g_logvar: Tensor, g_kl: Tensor, mu: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return mu.new_empty(mu.shape), mu.new_empty(mu.shape)


def _save_subsets(ctx: Any, inputs: Any, output: Any) -> None:
    mu, logvar, present, _, _, ctx.mode, ctx.prior, ctx.backend = inputs
    _, _, chosen, _ = output
    ctx.mark_non_differentiable(chosen)
    ctx.save_for_backward(mu, logvar, chosen if ctx.mode == "one" else present)


def _subsets_gradient(ctx: Any, g_mu: Tensor, g_logvar: Tensor, _: Any, g_kl: Tensor) -> Any:
    saved, where = ctx.saved_tensors, (ctx.prior, ctx.backend)
    if ctx.mode == "one":
        grads = torch.ops.mmebm.product_of_experts_backward(g_mu, g_logvar, *saved, *where)
    else:
        grads = torch.ops.mmebm.subset_experts_backward(g_mu, g_logvar, g_kl, *saved, ctx.mode, *where)
    return *grads, None, None, None, None, None, None


gradient("subset_experts", _subsets_gradient, _save_subsets)
differentiable_once("subset_experts")


def subset_experts(
    mu: Tensor,
    logvar: Tensor,
    present: Tensor | None = None,
    *,
    mode: str = "all",
    prior: str = "never",
    subset: Tensor | None = None,
    rng: Tensor | None = None,
    backend: str = "auto",
) -> Subsets:
    """Products of experts over subsets of a row's present experts; mu, logvar, `present`, `prior` as for the product.

    A subset is a bitmask s, and in row b the experts of s & present_b are multiplied. `mode`:
    - "all": mu and logvar [S, B, d] for every s = 1..S, S = 2^M - 1, at index s - 1; at most 16 experts;
    - "one": mu and logvar [B, d] for one subset per row, and that subset: `subset` int64 [B], and-ed with `present`,
      or one chosen uniformly among the nonempty subsets of the row's present experts with `rng` (purpose 3);
    - "kl": only KL(q_s || N(0, I)) [S, B], summed over d.
    An empty subset gives the standard normal. Differentiable once in mu and logvar.
    """
    present = _all_present(mu) if present is None else present
    return Subsets(*torch.ops.mmebm.subset_experts(mu, logvar, present, subset, rng, mode, prior, backend))
