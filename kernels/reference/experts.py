"""Products of M diagonal normal experts, over a row's present ones or over every subset of them.

Log-space: the log precision of a product is logsumexp(-logvar), and its mean weighs experts by softmax(-logvar). The
standard normal is one more expert where the prior is counted in, and alone where nothing is present.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .mixture import by_expert, observed
from .noise import choose

# Subsets are taken as many at once as keep an intermediate within this many values.
_SUBSET_VALUES = 1 << 22


def _weights(logvar: Tensor, present: Tensor, prior: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of the product over `present` [.., B]: log precision [.., B, d], softmax [M, .., B, d], who is absent [.., 1]."""
    experts = len(logvar)
    held = observed(present, experts)
    count = held.sum(0)
    counted = count == 0
    if prior == "always":
        counted = torch.ones_like(counted)
    elif prior == "full":
        counted = counted | (count == experts)
    absent = ~torch.cat((held, counted.unsqueeze(0))).unsqueeze(-1)
    logits = torch.cat((-logvar, torch.zeros_like(logvar[:1])))
    # Selected, not weighted by zero: an absent expert may hold anything, NaN too.
    logits = by_expert(present.unsqueeze(-1), logits).masked_fill(absent, -math.inf)
    return torch.logsumexp(logits, 0), torch.softmax(logits, 0)[:-1], absent[:-1]


def _mean(weight: Tensor, mu: Tensor, absent: Tensor) -> Tensor:
    return (weight * by_expert(weight[0], mu)).masked_fill(absent, 0.0).sum(0)


def product_of_experts(mu: Tensor, logvar: Tensor, present: Tensor, prior: str) -> tuple[Tensor, Tensor]:
    """mu and logvar [M, B, d], present int64 [.., B] -> mu and logvar [.., B, d] of the product."""
    precision, weight, absent = _weights(logvar, present, prior)
    return _mean(weight, mu, absent), -precision


def product_of_experts_backward(
    g_mu: Tensor, g_logvar: Tensor, mu: Tensor, logvar: Tensor, present: Tensor, prior: str
) -> tuple[Tensor, Tensor]:
    """The gradient of sum(g_mu mu + g_logvar logvar) in the experts' mu and logvar [M, B, d]."""
    _, weight, absent = _weights(logvar, present, prior)
    away = by_expert(weight[0], mu) - _mean(weight, mu, absent)
    d_mu = weight * g_mu
    d_logvar = (weight * (g_logvar - g_mu * away)).masked_fill(absent, 0.0)
    lead = tuple(range(1, weight.dim() - 2))
    return (d_mu.sum(lead), d_logvar.sum(lead)) if lead else (d_mu, d_logvar)


def choose_subset(present: Tensor, experts: int, rng: Tensor) -> Tensor:
    """One of a row's nonempty subsets of its present experts, uniformly; 0 where it has none: int64 [B]."""
    held = observed(present, experts)
    code = choose(rng, len(present), (1 << held.sum(0)) - 1) + 1  # its bits go to the set bits of `present` in order
    rank = held.cumsum(0) - 1
    bits = torch.arange(experts, device=present.device).unsqueeze(1)
    return torch.where(held, (code >> rank.clamp_min(0) & 1) << bits, 0).sum(0)


def _blocks(mu: Tensor, present: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows s - 1 of the result and the masks s & present [c, B] of every subset s = 1..2^M - 1, a block at a time."""
    subsets = (1 << len(mu)) - 1
    at_once = max(1, _SUBSET_VALUES // max(1, mu.numel()))
    for start in range(0, subsets, at_once):
        rows = slice(start, min(start + at_once, subsets))
        yield rows, torch.arange(rows.start + 1, rows.stop + 1, device=mu.device).unsqueeze(1) & present


def subset_experts(mu: Tensor, logvar: Tensor, present: Tensor, prior: str, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """Over every subset: mu, logvar [S, B, d] (mode "all") and KL(q_s || N(0, I)) [S, B] (mode "kl"), else empty."""
    subsets, empty = (1 << len(mu)) - 1, mu.new_empty(0)
    everywhere = mode == "all"
    means = mu.new_empty(subsets, *mu.shape[1:]) if everywhere else empty
    logvars = torch.empty_like(means)
    kl = empty if everywhere else mu.new_empty(subsets, mu.shape[1])
    for rows, masks in _blocks(mu, present):
        mean, lv = product_of_experts(mu, logvar, masks, prior)
        if everywhere:
            means[rows], logvars[rows] = mean, lv
        else:
            kl[rows] = 0.5 * (mean * mean + (torch.expm1(lv) - lv)).sum(-1)
    return means, logvars, kl


def subset_experts_backward(
    g_mu: Tensor, g_logvar: Tensor, g_kl: Tensor, mu: Tensor, logvar: Tensor, present: Tensor, prior: str, mode: str
) -> tuple[Tensor, Tensor]:
    """The gradient of sum(g_mu mu + g_logvar logvar) (mode "all") or sum(g_kl kl) (mode "kl") in the experts."""
    d_mu, d_logvar = torch.zeros_like(mu), torch.zeros_like(logvar)
    for rows, masks in _blocks(mu, present):
        if mode == "all":
            g_mean, g_lv = g_mu[rows], g_logvar[rows]
        else:
            mean, lv = product_of_experts(mu, logvar, masks, prior)
            g = g_kl[rows].unsqueeze(-1)
            g_mean, g_lv = g * mean, 0.5 * g * torch.expm1(lv)
        each = product_of_experts_backward(g_mean, g_lv, mu, logvar, masks, prior)
        d_mu += each[0]
        d_logvar += each[1]
    return d_mu, d_logvar
