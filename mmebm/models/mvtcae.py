"""MVTCAE (Hwang, Kim, Hong and Kim, NeurIPS 2021): a product of experts, bounded by the total correlation of the views.

    q(z|X) ∝ prod_m q_m(z|x_m)
    L(X) = (M - a)/M sum_m lambda_m E_q log p(x_m|z) - beta [ (a/M) sum_m KL(q || q_m) + (1 - a) KL(q || p) ]

The prior is no factor; `alpha` is a, the paper's 5/6 by default (MultiVae 1.0.3: 0.1). With an energy prior
KL(q || p_alpha) = KL(q || p_0) + E_q[E] + const: E reaches the encoders with beta (1 - a), the energy's update with 1.
p_0 may be Laplace. M and the sums are over the modalities that a row has (MultiVae 1.0.3 keeps all M in the weights).
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
from .normal import NormalVAE, joined, kl_normal


class MVTCAE(NormalVAE):
    reference_laws = ("normal", "laplace")

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        prior: Prior | EnergyPrior,
        *,
        alpha: float = 5.0 / 6.0,
        **options: Any,
    ) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha: expected a number in [0, 1], got {alpha}")
        self.alpha = alpha
        super().__init__(shapes, prior, **options)

    def posterior(self, inputs: Mapping[str, Tensor], masks: Masks = None) -> MixtureOfExperts:
        mu, logvar, present = self.moments(inputs, masks)
        return joined(*self.product(mu, logvar, present, "never"), present)

    @torch.no_grad()
    def subset_draws(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[int], stream: Stream, masks: Masks = None
    ) -> SubsetDraws:
        return self.product_draws(inputs, subsets, stream, masks, "never")

    def objective(
        self, inputs: Mapping[str, Tensor], stream: Stream, *, masks: Masks = None, energy_weight: float = 1.0
    ) -> Objective:
        self.check_batch(inputs, masks, complete=True)
        each_mu, each_logvar, present = self.moments(inputs, masks)  # [M, B, d]
        mu, logvar = self.product(each_mu, each_logvar, present, "never")  # [B, d]
        q = joined(mu, logvar, present)
        z = q.rsample(self.samples, stream)  # [K, 1, B, d]
        kl, energy = self.kl_reference(mu, logvar), self.energy(z)  # [B], [K, 1, B]
        wheres = self.seen(inputs, masks)
        log_x = {m: self.log_likelihood(m, inputs[m], z.flatten(0, 2), z.shape[:3], at) for m, at in wheres.items()}
        a, divergences = self.alpha, kl_normal(mu, logvar, each_mu, each_logvar)  # KL(q || q_m) [M, B]
        if present is None:
            views: Tensor | int = len(divergences)
        else:
            views, divergences = present.sum(0).clamp_min(1).to(mu.dtype), torch.where(present, divergences, 0.0)
        conditional = divergences.sum(0) / views  # [B]
        likelihood = self.likelihood(log_x).mean((0, 1))
        total = (views - a) / views * likelihood
        total = total - self.beta * (a * conditional + (1.0 - a) * (kl + energy_weight * energy.mean((0, 1))))
        share = q.shares()[0]  # [B]
        return Objective(
            loss=-(share * total).sum(),
            value=(share * total).sum().detach(),
            z=z.detach(),
            weights=(share / self.samples).expand(energy.shape),
            metrics=self.measured(q, log_x, kl, energy, wheres)
            | {"kl_views": mean_over(conditional.detach(), None if q.present is None else q.present[0])},
        )
