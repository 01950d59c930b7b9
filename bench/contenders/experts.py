"""Products of normal experts as people write them. Functions of (mu, logvar) [M, B, d], made for a case's inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contenders import mlp

if TYPE_CHECKING:
    from bench.cases.experts import Experts, Mixture

Function = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def observed(present: Tensor, experts: int) -> Tensor:
    """Bitmask [B] -> bool [M, B, 1]."""
    return (present >> torch.arange(experts).unsqueeze(1) & 1).bool().unsqueeze(-1)


def _product(mu: Tensor, logvar: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """With the prior always in it, so that no row is without an expert."""
    precision = torch.where(mask, torch.exp(-logvar), 0.0)
    total = 1.0 + precision.sum(0)
    return (precision * mu).sum(0) / total, -total.log()


def product(x: Experts) -> Function:
    mask = observed(x.present, len(x.mu))
    return lambda mu, logvar: _product(mu, logvar, mask)


def compiled_product(x: Experts) -> Function:
    mask = observed(x.present, len(x.mu))
    whole = mlp.compiled(_product)
    return lambda mu, logvar: whole(mu, logvar, mask)


PRODUCTS: dict[str, Callable[[Experts], Function]] = {"eager": product, "torch.compile": compiled_product}


def _members(experts: int) -> Tensor:
    """Which experts are in subset s = 1..2^M - 1: float [S, M]."""
    return (torch.arange(1, 1 << experts).unsqueeze(1) >> torch.arange(experts) & 1).float()


def _subset_loop(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """All experts present, the prior in the full subset, as MoPoE has it."""
    experts = len(mu)
    precision = torch.exp(-logvar)
    means, logvars = [], []
    for s in range(1, 1 << experts):
        members = [m for m in range(experts) if s >> m & 1]
        total = precision[members].sum(0) + (1.0 if len(members) == experts else 0.0)
        means.append((precision[members] * mu[members]).sum(0) / total)
        logvars.append(-total.log())
    return torch.stack(means), torch.stack(logvars)


def _subset_matmul(mu: Tensor, logvar: Tensor, members: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    precision = torch.exp(-logvar).flatten(1)
    total = torch.addmm(prior, members, precision)
    mean = (members @ (precision * mu.flatten(1))) / total
    shape = (len(members), *mu.shape[1:])
    return mean.view(shape), -total.log().view(shape)


def _matmul_form(x: Experts) -> tuple[Tensor, Tensor]:
    members = _members(len(x.mu))
    return members, F.one_hot(torch.tensor(len(members) - 1), len(members)).float().unsqueeze(1)


def subset_loop(_: Experts) -> Function:
    return _subset_loop


def subset_matmul(x: Experts) -> Function:
    members, prior = _matmul_form(x)
    return lambda mu, logvar: _subset_matmul(mu, logvar, members, prior)


def compiled_loop(_: Experts) -> Function:
    return mlp.compiled(_subset_loop)


def compiled_matmul(x: Experts) -> Function:
    members, prior = _matmul_form(x)
    whole = mlp.compiled(_subset_matmul)
    return lambda mu, logvar: whole(mu, logvar, members, prior)


SUBSETS: dict[str, Callable[[Experts], Function]] = {
    "eager loop": subset_loop,
    "eager matmul": subset_matmul,
    "torch.compile loop": compiled_loop,
    "torch.compile matmul": compiled_matmul,
}


def with_kl(make: Callable[[Experts], Function]) -> Callable[[Experts], Function]:
    """KL to the standard normal [S, B] of what `make`'s function gives."""

    def made(x: Experts) -> Function:
        subsets = make(x)

        def kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor]:
            mean, lv = subsets(mu, logvar)
            return (0.5 * (mean.square() + lv.exp() - lv - 1.0).sum(-1),)

        return kl

    return made


def _one_masked(mu: Tensor, logvar: Tensor, mask: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
    precision = torch.where(mask, torch.exp(-logvar), 0.0)
    total = full + precision.sum(0)
    return (precision * mu).sum(0) / total, -total.log()


def one_masked(x: Experts) -> Function:
    def one(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        mask = observed(x.subset, len(mu))
        return _one_masked(mu, logvar, mask, mask.all(0).float())

    return one


def compiled_one(x: Experts) -> Function:
    return mlp.compiled(one_masked(x))


def one_of_all(make: Callable[[Experts], Function]) -> Callable[[Experts], Function]:
    """All subsets, of which each row takes its own: the way of MoPoE's code."""

    def made(x: Experts) -> Function:
        subsets, rows = make(x), torch.arange(len(x.subset))

        def one(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
            mean, lv = subsets(mu, logvar)
            return mean[x.subset - 1, rows], lv[x.subset - 1, rows]

        return one

    return made


def mixture(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log of the uniform mixture of M Laplace experts: z [K, B, d], loc and scale [M, B, d] -> [K, B]."""
    u = (z.unsqueeze(1) - loc).abs() / scale
    each = -(u + (2.0 * scale).log()).sum(-1)
    return torch.logsumexp(each, 1) - torch.log(torch.tensor(float(len(loc))))


def mixture_by_distributions(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """The same as models write it: one torch.distributions object per expert, stacked."""
    laplace = torch.distributions.Laplace
    each = [laplace(m, s, validate_args=False).log_prob(z).sum(-1) for m, s in zip(loc, scale, strict=True)]
    return torch.logsumexp(torch.stack(each), 0) - torch.log(torch.tensor(float(len(loc))))


MIXTURES: dict[str, Callable[[Mixture], Callable[..., Tensor]]] = {
    "eager": lambda _: mixture,
    "eager distributions": lambda _: mixture_by_distributions,
    "torch.compile": lambda _: mlp.compiled(mixture),
}
