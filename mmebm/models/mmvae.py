"""MMVAE (Shi et al., NeurIPS 2019), the base version of Yuan et al. (ECCV 2024) when the prior is an energy.

L(X) = (1/M) sum_m E_{z^k ~ q_m} log (1/K) sum_k exp lw_m^k
lw_m^k = sum_n lambda_n log p(x_n | z^k) + beta [ log p(z^k) - log (1/M) sum_j q_j(z^k | x_j) ]
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmebm.sampling.streams import Stream

from .base import MultimodalVAE, Objective
from .estimators import estimate
from .masks import Masks


class MMVAE(MultimodalVAE):
    def objective(
        self, inputs: Mapping[str, Tensor], stream: Stream, *, masks: Masks = None, energy_weight: float = 1.0
    ) -> Objective:
        self.check_batch(inputs, masks, complete=True)
        q = self.posterior(inputs, masks)
        z = q.rsample(self.samples, stream)  # [K, M, B, d]
        log_q = (q.detach() if self.estimator == "dreg" else q).log_prob(z)  # [K, M, B]
        log_p, energy = self.log_prior(z, energy_weight)
        u, wheres = z.flatten(0, 2), self.pairs(inputs, q.present)
        log_x = {n: self.log_likelihood(n, inputs[n], u, z.shape[:3], where) for n, where in wheres.items()}
        log_w = sum(self.rescale[n] * log_x[n] for n in log_x) + self.beta * (log_p - log_q)
        surrogate, value, weights = estimate(log_w, self.estimator, [z])
        share = q.shares()  # [M, B]
        return Objective(
            loss=-(share * surrogate).sum(),
            value=(share * value).sum(),
            z=z.detach(),
            weights=share * weights,
            metrics=self.measured(q, log_x, log_q - log_p - energy_weight * energy, energy, wheres),
        )
