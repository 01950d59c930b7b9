"""mmJSD (Sutter, Daunhawer and Vogt, NeurIPS 2020): the Jensen-Shannon divergence to a dynamic prior.

    f(z|X) ∝ prod_{j=0}^{M} q_j(z)^{1/(M+1)},  q_0 = p_0
    L(X) = E_{q} sum_m lambda_m log p(x_m|z) - beta (1/(M+1)) sum_{j=0}^{M} KL(q_j || f)

q is a mixture of experts. With an energy prior p_0 stays the component of the geometric mean, and E enters once, as
beta sum_j w_j E_{q_j}[E] over the components j of q with their weights w_j. `variant`, three things of that name in the
wild:

- "mmjsd": the authors' code of 2020. q has the M modalities; a subset's posterior is their mixture.
- "with_prior": the MoPoE and MVTCAE repositories. q has p_0 as a component too: 1/(M+1) of the rows are decoded from
  it; a subset of two or more has the geometric mean with p_0 as its posterior.
- "multiviewae": as "with_prior", and the sum of divergences leaves p_0's own out.

`choice` of the component a row is decoded from: as in MoPoE. M is the number of modalities that a row has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmebm.posteriors import MixtureOfExperts
from mmebm.priors import EnergyPrior, Prior
from mmebm.sampling.streams import Stream

from .base import Objective, SubsetDraws
from .masks import Masks, mean_over
from .normal import CHOICES, NormalVAE, checked, joined, kl_normal, mixture

VARIANTS = ("mmjsd", "with_prior", "multiviewae")


class MMJSD(NormalVAE):
    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        prior: Prior | EnergyPrior,
        *,
        variant: str = "mmjsd",
        choice: str = "slices",
        **options: Any,
    ) -> None:
        self.variant = checked("variant", variant, VARIANTS)
        self.choice = checked("choice", choice, CHOICES)
        super().__init__(shapes, prior, **options)

    def dynamic_prior(self, mu: Tensor, logvar: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The geometric mean of a row's experts and p_0, mu and logvar [B, d], and the number of the experts, [B]."""
        mean, lv = self.product(mu, logvar, present, "always")
        count = torch.full_like(mean[:, 0], len(mu)) if present is None else present.sum(0).to(mean.dtype)
        return mean, lv + (count + 1.0).log().unsqueeze(-1), count  # each precision counts 1 / (count + 1)

    def posterior(self, inputs: Mapping[str, Tensor], masks: Masks = None) -> MixtureOfExperts:
        if self.variant == "mmjsd":
            return super().posterior(inputs, masks)
        mu, logvar, present = self.moments(inputs, masks)
        mean, lv, count = self.dynamic_prior(mu, logvar, present)
        alone_mu, alone_lv = self.product(mu, logvar, present, "never")  # of one expert: itself
        several = (count > 1.0).unsqueeze(-1)
        return joined(torch.where(several, mean, alone_mu), torch.where(several, lv, alone_lv), present)

    @torch.no_grad()
    def subset_draws(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[int], stream: Stream, masks: Masks = None
    ) -> SubsetDraws:
        if self.variant == "mmjsd":
            return super().subset_draws(inputs, subsets, stream, masks)
        mu, logvar, _ = self.moments(inputs, masks)
        mean, lv = self.products(mu, logvar, "always")
        sizes = torch.tensor([float(s.bit_count()) for s in range(1, len(mean) + 1)], device=mu.device, dtype=mu.dtype)
        lv = lv + (sizes + 1.0).log().view(-1, 1, 1)
        for m in range(len(mu)):
            mean[(1 << m) - 1], lv[(1 << m) - 1] = mu[m], logvar[m]
        return self.drawn(mean, lv, subsets, stream)

    def decoded(self, mu: Tensor, logvar: Tensor, present: Tensor | None) -> MixtureOfExperts:
        """q, given all experts' moments [M, B, d]: its components, p_0 the last where it is one."""
        if self.variant == "mmjsd":
            return mixture(mu, logvar, present)
        scale = 2.0 * self.reference_scale().log()
        last = torch.zeros_like(mu[:1]), scale.expand_as(mu[:1])
        present = None if present is None else torch.cat((present, present.any(0, keepdim=True)))
        return mixture(torch.cat((mu, last[0])), torch.cat((logvar, last[1])), present)

    def objective(
        self, inputs: Mapping[str, Tensor], stream: Stream, *, masks: Masks = None, energy_weight: float = 1.0
    ) -> Objective:
        rows = self.check_batch(inputs, masks, complete=True)
        mu, logvar, present = self.moments(inputs, masks)  # [M, B, d]
        f_mu, f_logvar, views = self.dynamic_prior(mu, logvar, present)
        q = self.decoded(mu, logvar, present)
        samples = q.rsample(self.samples, stream)  # [K, C, B, d]: each component has its own, for its energy
        component = self.components(samples.shape[1], rows, q.present, stream, self.choice)
        z = samples[:, component, torch.arange(rows, device=mu.device)]  # [K, B, d]
        divergence = kl_normal(mu, logvar, f_mu, f_logvar)  # [M, B]
        divergence = (divergence if present is None else torch.where(present, divergence, 0.0)).sum(0)
        if self.variant != "multiviewae":
            scale = (2.0 * self.reference_scale().log()).expand_as(f_mu)
            divergence = divergence + kl_normal(torch.zeros_like(f_mu), scale, f_mu, f_logvar)
        jensen_shannon, energy = divergence / (views + 1.0), self.energy(samples)  # [B], [K, C, B]
        wheres = self.seen(inputs, masks)
        log_x = {m: self.log_likelihood(m, inputs[m], z.flatten(0, 1), z.shape[:2], at) for m, at in wheres.items()}
        share = q.shares()  # [C, B]
        row = share.sum(0)  # 1 / B
        total = (row * (self.likelihood(log_x).mean(0) - self.beta * jensen_shannon)).sum()
        total = total - self.beta * energy_weight * (share * energy.mean(0)).sum()
        metrics = self.measured(q, log_x, mean_over(self.kl_reference(mu, logvar), present), energy, wheres)
        return Objective(
            loss=-total,
            value=total.detach(),
            z=samples.detach(),
            weights=(share / self.samples).expand(energy.shape),
            metrics=metrics | {"jensen_shannon": (row * jensen_shannon).sum().detach()},
        )

    @torch.no_grad()
    def positives(
        self, inputs: Mapping[str, Tensor], stream: Stream, *, masks: Masks = None
    ) -> tuple[Tensor, Tensor | None]:
        q = self.decoded(*self.moments(inputs, masks))
        z = q.rsample(self.samples, stream)
        return z, (q.shares() / self.samples).expand(z.shape[:-1])
