"""MoPoE (Sutter, Daunhawer and Vogt, ICLR 2021): a mixture over all subsets of products of their experts.

    q(z|X) = (1/S) sum_S q_S(z|X_S),  q_S ∝ prod_{m in S} q_m(z|x_m),  S running over the 2^M - 1 nonempty subsets
    L(X) = E_q sum_m lambda_m log p(x_m|z) - beta (1/S) sum_S KL(q_S || p)

The last term bounds the mixture's divergence from above (the paper's lemma). With an energy prior KL(q_S || p_alpha) =
KL(q_S || p_0) + E_{q_S}[E] + const by subset. Each row is decoded from one component: `choice` = "slices" (the authors'
code cuts the batch in parts; here parts are even and start at random, so that batches smaller than S have every subset
in turn) or "categorical" (MultiVae 1.0.3's with masks). `prior_expert` says when p_0 is one of the factors: "full", in
the product of all modalities alone (the authors', MultiVae's), "always" or "never".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmebm.kernels import ops
from mmebm.posteriors import MixtureOfExperts
from mmebm.priors import EnergyPrior, Prior
from mmebm.sampling.streams import Stream

from .base import Objective
from .normal import CHOICES, PRIOR_EXPERTS, NormalVAE, checked, mixture


class MoPoE(NormalVAE):
    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        prior: Prior | EnergyPrior,
        *,
        choice: str = "slices",
        prior_expert: str = "full",
        **options: Any,
    ) -> None:
        self.choice = checked("choice", choice, CHOICES)
        self.prior_expert = checked("prior_expert", prior_expert, PRIOR_EXPERTS)
        super().__init__(shapes, prior, **options)

    def posterior(self, inputs: Mapping[str, Tensor]) -> MixtureOfExperts:
        """One component for every nonempty subset of the given modalities."""
        mu, logvar, present = self.moments(inputs)
        given = int(present[0]) if len(present) else (1 << len(self.modalities)) - 1
        scale = self.reference_scale()
        out = ops.subset_experts(mu / scale, logvar - 2.0 * scale.log(), present, mode="all", prior=self.prior_expert)
        kept = [s - 1 for s in range(1, 1 << len(self.modalities)) if s & given == s]
        means, logvars = out.mu * scale, out.logvar + 2.0 * scale.log()
        return mixture(means, logvars) if len(kept) == len(means) else mixture(means[kept], logvars[kept])

    def objective(self, inputs: Mapping[str, Tensor], stream: Stream, *, energy_weight: float = 1.0) -> Objective:
        rows = self.check_batch(inputs, complete=True)
        q = self.posterior(inputs)
        mu, logvar = q.experts.loc, 2.0 * q.experts.scale.log()  # [S, B, d]
        samples = q.rsample(self.samples, stream)  # [K, S, B, d]: each subset has its own, for its energy
        subset = self.components(len(mu), rows, stream, self.choice)  # [B]
        z = samples[:, subset, torch.arange(rows, device=mu.device)]  # [K, B, d]
        kl, energy = self.kl_reference(mu, logvar), self.energy(samples)  # [S, B], [K, S, B]
        divergence = kl.mean(0) + energy_weight * energy.mean((0, 1))  # [B]
        log_x = {m: self.log_likelihood(m, inputs[m], z.flatten(0, 1), z.shape[:2]) for m in self.modalities}
        total = self.likelihood(log_x).mean(0) - self.beta * divergence
        return Objective(
            loss=-total.mean(),
            value=total.detach().mean(),
            z=samples.detach(),
            weights=torch.full_like(energy, 1.0 / energy.numel(), requires_grad=False),
            metrics=self.measured(q, log_x, kl, energy),
        )
