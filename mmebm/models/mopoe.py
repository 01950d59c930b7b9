"""MoPoE (Sutter, Daunhawer and Vogt, ICLR 2021): a mixture over all subsets of products of their experts.

    q(z|X) = (1/S) sum_S q_S(z|X_S),  q_S ∝ prod_{m in S} q_m(z|x_m),  S running over the 2^M - 1 nonempty subsets
    L(X) = E_q sum_m lambda_m log p(x_m|z) - beta (1/S) sum_S KL(q_S || p)

The last term bounds the mixture's divergence from above (the paper's lemma). With an energy prior KL(q_S || p_alpha) =
KL(q_S || p_0) + E_{q_S}[E] + const by subset. Each row is decoded from one component: `choice` = "slices" (the authors'
code cuts the batch in parts; here parts are even and start at random, so that batches smaller than S have every subset
in turn) or "categorical" (MultiVae 1.0.3's with masks). `prior_expert` says when p_0 is one of the factors: "full", in
the product of all modalities alone (the authors', MultiVae's), "always" or "never". Given some modalities, others are
generated from `conditional` = "product", q_S of those given (the authors'), or "mixture", over their subsets. Where
modalities are missing, S runs over the subsets of what a row has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmebm.kernels import ops
from mmebm.posteriors import MixtureOfExperts, bitmask
from mmebm.priors import EnergyPrior, Prior
from mmebm.sampling.streams import Stream

from .base import Objective, SubsetDraws
from .masks import Masks
from .normal import CHOICES, PRIOR_EXPERTS, NormalVAE, checked, joined, mixture


class MoPoE(NormalVAE):
    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        prior: Prior | EnergyPrior,
        *,
        choice: str = "slices",
        prior_expert: str = "full",
        conditional: str = "product",
        **options: Any,
    ) -> None:
        self.choice = checked("choice", choice, CHOICES)
        self.prior_expert = checked("prior_expert", prior_expert, PRIOR_EXPERTS)
        self.conditional_law = checked("conditional", conditional, ("product", "mixture"))
        super().__init__(shapes, prior, **options)

    def posterior(self, inputs: Mapping[str, Tensor], masks: Masks = None) -> MixtureOfExperts:
        """One component for every nonempty subset of the given modalities."""
        mu, logvar, present = self.moments(inputs, masks)
        given = sum(1 << i for i, m in enumerate(self.modalities) if m in inputs)
        kept = torch.tensor([s for s in range(1, 1 << len(mu)) if s & given == s], device=mu.device)
        bits = None if present is None else bitmask(present)
        means, logvars = self.products(mu, logvar, self.prior_expert, bits)
        if len(kept) < len(means):
            means, logvars = means[kept - 1], logvars[kept - 1]
        if masks is None or bits is None:
            return mixture(means, logvars)
        return mixture(means, logvars, kept.unsqueeze(-1) & bits == kept.unsqueeze(-1))

    def conditional(self, inputs: Mapping[str, Tensor], masks: Masks = None) -> MixtureOfExperts:
        if self.conditional_law == "mixture":
            return self.posterior(inputs, masks)
        mu, logvar, present = self.moments(inputs, masks)
        return joined(*self.product(mu, logvar, present, self.prior_expert), present)

    @torch.no_grad()
    def subset_draws(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[int], stream: Stream, masks: Masks = None
    ) -> SubsetDraws:
        if self.conditional_law == "product":
            return self.product_draws(inputs, subsets, stream, masks, self.prior_expert)
        q = self.posterior(inputs, masks)
        every = range(1, len(q.experts.loc) + 1)
        members = [[part & s == part for part in every] for s in subsets]
        return SubsetDraws(q.rsample(1, stream)[0], self._one_of_each(q, members, stream))

    def objective(
        self, inputs: Mapping[str, Tensor], stream: Stream, *, masks: Masks = None, energy_weight: float = 1.0
    ) -> Objective:
        rows = self.check_batch(inputs, masks, complete=True)
        if not isinstance(self.prior, EnergyPrior):
            return self._without_energy(inputs, stream, masks)
        q = self.posterior(inputs, masks)
        mu, logvar = q.experts.loc, 2.0 * q.experts.scale.log()  # [S, B, d]
        samples = q.rsample(self.samples, stream)  # [K, S, B, d]: each subset has its own, for its energy
        subset = self.components(len(mu), rows, q.present, stream, self.choice)  # [B]
        z = samples[:, subset, torch.arange(rows, device=mu.device)]  # [K, B, d]
        kl, energy = self.kl_reference(mu, logvar), self.energy(samples)  # [S, B], [K, S, B]
        share = q.shares()  # [S, B]
        divergence = (share * (kl + energy_weight * energy.mean(0))).sum()
        wheres = self.seen(inputs, masks)
        log_x = {m: self.log_likelihood(m, inputs[m], z.flatten(0, 1), z.shape[:2], at) for m, at in wheres.items()}
        total = (share.sum(0) * self.likelihood(log_x).mean(0)).sum() - self.beta * divergence
        return Objective(
            loss=-total,
            value=total.detach(),
            z=samples.detach(),
            weights=(share / self.samples).expand(energy.shape),
            metrics=self.measured(q, log_x, kl, energy, wheres),
        )

    def _without_energy(self, inputs: Mapping[str, Tensor], stream: Stream, masks: Masks) -> Objective:
        """The same objective, where no subset needs a draw but the one that a row is decoded from."""
        mu, logvar, present = self.moments(inputs, masks)
        bits, scale = None if present is None else bitmask(present), self.reference_scale()
        standard = mu / scale, logvar - 2.0 * scale.log()  # in which p_0 is the standard normal
        kl = ops.subset_experts(*standard, bits, mode="kl", prior=self.prior_expert).kl  # [S, B]
        every = torch.arange(1, len(kl) + 1, device=mu.device).unsqueeze(-1)
        valid = None if bits is None else every & bits == every
        subset = self.components(len(kl), kl.shape[1], valid, stream, self.choice) + 1
        some = None if bits is None else bits > 0
        mean, lv = self.product(mu, logvar, subset if some is None else torch.where(some, subset, 0), self.prior_expert)
        q = mixture(mean.unsqueeze(0), lv.unsqueeze(0), None if some is None else some.unsqueeze(0))
        z = q.rsample(self.samples, stream)  # [K, 1, B, d]
        count = len(kl) if valid is None else valid.sum(0).clamp_min(1)
        divergence = (kl if valid is None else torch.where(valid, kl, 0.0)).sum(0) / count  # [B]
        wheres = self.seen(inputs, masks)
        log_x = {m: self.log_likelihood(m, inputs[m], z.flatten(0, 2), z.shape[:3], at) for m, at in wheres.items()}
        share = q.shares()  # [1, B]
        total = (share[0] * (self.likelihood(log_x).mean((0, 1)) - self.beta * divergence)).sum()
        return Objective(
            loss=-total,
            value=total.detach(),
            z=z.detach(),
            weights=(share / self.samples).expand(z.shape[:-1]),
            metrics=self.measured(q, log_x, divergence, z.new_zeros(z.shape[:-1]), wheres),
        )
