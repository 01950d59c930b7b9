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

`choice` of the component a row is decoded from: as in MoPoE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmebm.posteriors import MixtureOfExperts
from mmebm.priors import EnergyPrior, Prior
from mmebm.sampling.streams import Stream

from .base import Objective
from .normal import CHOICES, NormalVAE, checked, kl_normal, mixture

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

    def dynamic_prior(self, mu: Tensor, logvar: Tensor, present: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The geometric mean of `count` present experts and p_0: mu and logvar [B, d]."""
        mean, lv = self.product(mu, logvar, present, "always")
        return mean, lv + math.log(count + 1.0)  # each precision counts 1 / (count + 1)

    def posterior(self, inputs: Mapping[str, Tensor]) -> MixtureOfExperts:
        if self.variant == "mmjsd" or len(inputs) == 1:
            return super().posterior(inputs)
        mu, logvar = self.dynamic_prior(*self.moments(inputs), len(inputs))
        return mixture(mu.unsqueeze(0), logvar.unsqueeze(0))

    def decoded(self, mu: Tensor, logvar: Tensor) -> MixtureOfExperts:
        """q, given all experts' moments [M, B, d]: its components, p_0 the last where it is one."""
        if self.variant == "mmjsd":
            return mixture(mu, logvar)
        scale = 2.0 * self.reference_scale().log()
        last = torch.zeros_like(mu[:1]), scale.expand_as(mu[:1])
        return mixture(torch.cat((mu, last[0])), torch.cat((logvar, last[1])))

    def objective(self, inputs: Mapping[str, Tensor], stream: Stream, *, energy_weight: float = 1.0) -> Objective:
        rows = self.check_batch(inputs, complete=True)
        mu, logvar, present = self.moments(inputs)  # [M, B, d]
        views = len(self.modalities)
        f_mu, f_logvar = self.dynamic_prior(mu, logvar, present, views)
        q = self.decoded(mu, logvar)
        samples = q.rsample(self.samples, stream)  # [K, C, B, d]: each component has its own, for its energy
        component = self.components(samples.shape[1], rows, stream, self.choice)
        z = samples[:, component, torch.arange(rows, device=mu.device)]  # [K, B, d]
        divergence = kl_normal(mu, logvar, f_mu, f_logvar).sum(0)  # [B]
        if self.variant != "multiviewae":
            scale = (2.0 * self.reference_scale().log()).expand_as(f_mu)
            divergence = divergence + kl_normal(torch.zeros_like(f_mu), scale, f_mu, f_logvar)
        jensen_shannon, energy = divergence / (views + 1.0), self.energy(samples)  # [B], [K, C, B]
        log_x = {m: self.log_likelihood(m, inputs[m], z.flatten(0, 1), z.shape[:2]) for m in self.modalities}
        total = self.likelihood(log_x).mean(0)
        total = total - self.beta * (jensen_shannon + energy_weight * energy.mean((0, 1)))
        metrics = self.measured(q, log_x, self.kl_reference(mu, logvar), energy)
        return Objective(
            loss=-total.mean(),
            value=total.detach().mean(),
            z=samples.detach(),
            weights=torch.full_like(energy, 1.0 / energy.numel(), requires_grad=False),
            metrics=metrics | {"jensen_shannon": jensen_shannon.detach().mean()},
        )

    @torch.no_grad()
    def positives(self, inputs: Mapping[str, Tensor], stream: Stream) -> tuple[Tensor, Tensor | None]:
        mu, logvar, _ = self.moments(inputs)
        return self.decoded(mu, logvar).rsample(self.samples, stream), None
