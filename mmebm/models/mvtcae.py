"""MVTCAE (Hwang, Kim, Hong and Kim, NeurIPS 2021): a product of experts, bounded by the total correlation of the views.

    q(z|X) ∝ prod_m q_m(z|x_m)
    L(X) = (M - a)/M sum_m lambda_m E_q log p(x_m|z) - beta [ (a/M) sum_m KL(q || q_m) + (1 - a) KL(q || p) ]

The prior is no factor; `alpha` is a, the paper's 5/6 by default (MultiVae 1.0.3: 0.1). With an energy prior
KL(q || p_alpha) = KL(q || p_0) + E_q[E] + const: E reaches the encoders with beta (1 - a), the energy's update with 1.
p_0 may be Laplace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmebm.posteriors import MixtureOfExperts
from mmebm.priors import EnergyPrior, Prior
from mmebm.sampling.streams import Stream

from .base import Objective
from .normal import NormalVAE, kl_normal, mixture


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

    def posterior(self, inputs: Mapping[str, Tensor]) -> MixtureOfExperts:
        mu, logvar = self.product(*self.moments(inputs), "never")
        return mixture(mu.unsqueeze(0), logvar.unsqueeze(0))

    def objective(self, inputs: Mapping[str, Tensor], stream: Stream, *, energy_weight: float = 1.0) -> Objective:
        self.check_batch(inputs, complete=True)
        each_mu, each_logvar, present = self.moments(inputs)  # [M, B, d]
        mu, logvar = self.product(each_mu, each_logvar, present, "never")  # [B, d]
        q = mixture(mu.unsqueeze(0), logvar.unsqueeze(0))
        z = q.rsample(self.samples, stream)  # [K, 1, B, d]
        kl, energy = self.kl_reference(mu, logvar), self.energy(z)  # [B], [K, 1, B]
        log_x = {m: self.log_likelihood(m, inputs[m], z.flatten(0, 2), z.shape[:3]) for m in self.modalities}
        views, a = len(self.modalities), self.alpha
        conditional = kl_normal(mu, logvar, each_mu, each_logvar).mean(0)  # (1/M) sum_m KL(q || q_m) [B]
        likelihood = self.likelihood(log_x).mean((0, 1))
        total = (views - a) / views * likelihood
        total = total - self.beta * (a * conditional + (1.0 - a) * (kl + energy_weight * energy.mean((0, 1))))
        metrics = self.measured(q, log_x, kl, energy)
        return Objective(
            loss=-total.mean(),
            value=total.detach().mean(),
            z=z.detach(),
            weights=torch.full_like(energy, 1.0 / energy.numel(), requires_grad=False),
            metrics=metrics | {"kl_views": conditional.detach().mean()},
        )
