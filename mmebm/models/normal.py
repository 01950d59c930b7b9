"""What the models with Normal experts and closed divergences share: MVAE, MoPoE, MVTCAE, mmJSD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmebm.kernels import ops
from mmebm.posteriors import Diagonal, MixtureOfExperts, bitmask
from mmebm.priors import EnergyPrior, Prior
from mmebm.sampling.streams import Stream, choose

from .base import MultimodalVAE, SubsetDraws
from .masks import Masks, ranked

PRIOR_EXPERTS = ("never", "full", "always")
CHOICES = ("slices", "categorical")


class NormalVAE(MultimodalVAE):
    """Experts q_m(z|x_m) = N(mu_m, exp(logvar_m)), their products; KL(q || p_alpha) = KL(q || p_0) + E_q[E] + const.

    `reference_laws` are those of p_0 that the model's formula allows.
    """

    reference_laws: tuple[str, ...] = ("normal",)

    def __init__(self, shapes: Mapping[str, Sequence[int]], prior: Prior | EnergyPrior, **options: Any) -> None:
        name = type(self).__name__
        for option, only in (("posterior", "normal"), ("estimator", "elbo")):
            if options.setdefault(option, only) != only:
                raise ValueError(f"{option}: {name} takes {only!r}, got {options[option]!r}")
        super().__init__(shapes, prior, **options)
        self._check_reference(prior)

    def _check_reference(self, prior: Prior | EnergyPrior) -> None:
        law = _law(prior)
        if law not in self.reference_laws:
            raise ValueError(
                f"prior: {type(self).__name__} multiplies p_0 or needs its divergence in closed form: expected a "
                f"{' or '.join(self.reference_laws)} p_0, got {law}"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "prior" and "prior" in self._modules:  # another one in its place
            self._check_reference(value)
        super().__setattr__(name, value)

    def reference_scale(self) -> Tensor:
        """The scale of p_0 [d], held fixed."""
        scale = self.prior.reference_scale if isinstance(self.prior, EnergyPrior) else self.prior.scale
        return scale.detach().to(next(self.encoders.parameters()).dtype)

    def energy(self, z: Tensor) -> Tensor:
        """E(z) of the energy prior, its parameters held fixed, or zeros: [.., d] -> [..]."""
        return self.log_prior(z, 0.0)[1] if isinstance(self.prior, EnergyPrior) else z.new_zeros(z.shape[:-1])

    def likelihood(self, log_x: Mapping[str, Tensor]) -> Tensor:
        """sum_m lambda_m log p(x_m|z) of equally shaped terms."""
        return torch.stack([self.rescale[m] * value for m, value in log_x.items()]).sum(0)

    def moments(self, inputs: Mapping[str, Tensor], masks: Masks = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """mu and logvar [M, B, d] of every modality's expert, zeros where missing, and who is there: bool [M, B].

        The last is None where every row has every modality.
        """
        self.check_batch(inputs, masks)
        given, seen = self.experts(self.encoders, inputs, masks)
        mu, logvar = given.loc, 2.0 * given.scale.log()
        if len(mu) < len(self.modalities):
            seen = torch.ones(mu.shape[:2], dtype=torch.bool, device=mu.device) if seen is None else seen
            at = torch.tensor([i for i, m in enumerate(self.modalities) if m in inputs], device=mu.device)
            mu, logvar, seen = (
                t.new_zeros((len(self.modalities), *t.shape[1:])).index_copy(0, at, t) for t in (mu, logvar, seen)
            )
        return mu, logvar, seen

    def seen(self, inputs: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor | None]:
        """For each modality among the inputs, which rows have it: bool [B], None for all."""
        return {m: (masks or {}).get(m) for m in self.modalities if m in inputs}

    def product(self, mu: Tensor, logvar: Tensor, present: Tensor | None, prior: str) -> tuple[Tensor, Tensor]:
        """The product of a row's present experts, with p_0 among them as `prior` says: mu and logvar [B, d].

        `present` is bool [M, B], an int64 bitmask [B], or None for all.
        """
        scale = self.reference_scale()
        bits = bitmask(present) if present is not None and present.dtype == torch.bool else present
        mean, lv = ops.product_of_experts(mu / scale, logvar - 2.0 * scale.log(), bits, prior=prior)
        return mean * scale, lv + 2.0 * scale.log()

    def product_draws(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[int], stream: Stream, masks: Masks, prior: str
    ) -> SubsetDraws:
        """A draw of each subset's product of experts, of which one operator makes all."""
        mu, logvar, _ = self.moments(inputs, masks)
        return self.drawn(*self.products(mu, logvar, prior), subsets, stream)

    def products(self, mu: Tensor, logvar: Tensor, prior: str, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """mu and logvar [2^M - 1, B, d] of every subset's product, at index s - 1; `present` int64 [B]."""
        scale = self.reference_scale()
        out = ops.subset_experts(mu / scale, logvar - 2.0 * scale.log(), present, mode="all", prior=prior)
        return out.mu * scale, out.logvar + 2.0 * scale.log()

    def drawn(self, mean: Tensor, logvar: Tensor, subsets: Sequence[int], stream: Stream) -> SubsetDraws:
        at = torch.tensor(subsets, device=mean.device) - 1
        z = mixture(mean[at], logvar[at]).rsample(1, stream)[0]  # [S, B, d]
        return SubsetDraws(z, torch.arange(len(at), device=at.device).unsqueeze(-1).expand(z.shape[:2]))

    def kl_reference(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """KL(N(mu, exp(logvar)) || p_0): [.., d] -> [..]."""
        scale = self.reference_scale()
        if _law(self.prior) == "normal":
            return kl_normal(mu, logvar, torch.zeros_like(mu), (2.0 * scale.log()).expand_as(logvar))
        # E|z| of a Normal (folded), and its entropy.
        deviation = (0.5 * logvar).exp()
        u = mu / (deviation * math.sqrt(2.0))
        folded = deviation * math.sqrt(2.0 / math.pi) * (-u * u).exp() + mu * torch.erf(u)
        entropy = 0.5 * (logvar + math.log(2.0 * math.pi) + 1.0)
        return (folded / scale + (2.0 * scale).log() - entropy).sum(-1)

    def components(self, count: int, rows: int, present: Tensor | None, stream: Stream, choice: str) -> Tensor:
        """Which of `count` components of a mixture each row is decoded from, int64 [B]; `present` bool [count, B].

        "slices" cuts the batch in consecutive parts, as even as they can be, from a random start (systematic
        sampling: each of C components has B / C rows on average, in batches of any size); "categorical" draws for
        every row. Both choose among the components that a row has.
        """
        if choice == "categorical" and present is None:
            return choose(stream.take(1), rows, count)
        if choice == "categorical":
            unit = choose(stream.take(1), rows, 1 << 24).double() / (1 << 24)
        else:
            start = choose(stream.take(1), 1, 1 << 24).double() / (1 << 24)
            unit = (torch.arange(rows, device=start.device) + start) / rows
        if present is None:
            return (unit * count).long().clamp_max(count - 1)
        return ranked(present, (unit * present.sum(0)).long())


def _law(prior: Prior | EnergyPrior) -> str:
    return prior.reference if isinstance(prior, EnergyPrior) else prior.law


def kl_normal(mu: Tensor, logvar: Tensor, other_mu: Tensor, other_logvar: Tensor) -> Tensor:
    """KL(N(mu, e^logvar) || N(other_mu, e^other_logvar)): [.., d] -> [..]."""
    difference = logvar - other_logvar
    away = (mu - other_mu).square() * (-other_logvar).exp()
    return 0.5 * (away + torch.expm1(difference) - difference).sum(-1)


def mixture(mu: Tensor, logvar: Tensor, present: Tensor | None = None) -> MixtureOfExperts:
    """The uniform mixture of Normals [C, B, d]."""
    return MixtureOfExperts(Diagonal(mu, (0.5 * logvar).exp(), "normal"), present)


def joined(mu: Tensor, logvar: Tensor, present: Tensor | None) -> MixtureOfExperts:
    """A product of a row's experts as a mixture of one, for the rows that have any: mu, logvar [B, d]."""
    some = None if present is None or bool(present.any(0).all()) else present.any(0, keepdim=True)
    return mixture(mu.unsqueeze(0), logvar.unsqueeze(0), some)


def checked(name: str, value: str, known: Sequence[str]) -> str:
    """`value`, if it is known. Errors: ValueError."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return value
