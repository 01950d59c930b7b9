"""MVAE (Wu and Goodman, NeurIPS 2018): a product of experts, trained on sums of ELBOs of subsets of modalities.

    q(z|X_S) ∝ p_0(z) prod_{m in S} q_m(z|x_m)
    L(X) = sum over S in {X, {x_1}, .., {x_M}, k random subsets} of
           E_{q_S} sum_{m in S} lambda_m log p(x_m|z) - beta KL(q_S || p)

With an energy prior KL(q_S || p_alpha) = KL(q_S || p_0) + E_{q_S}[E] + const in every term. `random_subsets` is k, of 2
to M - 1 modalities, drawn anew in every step (MultiVae 1.0.3's k, 0 by default as there); `prior_expert` says when p_0
is one of the factors: "always" (the paper's, MultiVae's), "full" or "never". Where modalities are missing, a row's
subsets are cut down to what it has, and those left empty drop out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmebm.posteriors import MixtureOfExperts, bitmask
from mmebm.priors import EnergyPrior, Prior
from mmebm.sampling.streams import Stream, choose

from .base import Objective, SubsetDraws
from .masks import Masks
from .normal import PRIOR_EXPERTS, NormalVAE, checked, joined, mixture


class MVAE(NormalVAE):
    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        prior: Prior | EnergyPrior,
        *,
        random_subsets: int = 0,
        prior_expert: str = "always",
        **options: Any,
    ) -> None:
        if random_subsets < 0:
            raise ValueError(f"random_subsets: expected k >= 0, got {random_subsets}")
        self.random_subsets = random_subsets
        self.prior_expert = checked("prior_expert", prior_expert, PRIOR_EXPERTS)
        super().__init__(shapes, prior, **options)

    def posterior(self, inputs: Mapping[str, Tensor], masks: Masks = None) -> MixtureOfExperts:
        mu, logvar, present = self.moments(inputs, masks)
        return joined(*self.product(mu, logvar, present, self.prior_expert), present)

    @torch.no_grad()
    def subset_draws(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[int], stream: Stream, masks: Masks = None
    ) -> SubsetDraws:
        return self.product_draws(inputs, subsets, stream, masks, self.prior_expert)

    def subsets(self, stream: Stream) -> list[int]:
        """The bitmasks whose ELBOs are summed: all modalities, each alone, and k drawn ones."""
        count = len(self.modalities)
        found = [(1 << count) - 1] + ([1 << m for m in range(count)] if count > 1 else [])
        between = [s for s in range(1 << count) if 1 < s.bit_count() < count]
        if self.random_subsets and between:
            found += [between[int(i)] for i in choose(stream.take(1), self.random_subsets, len(between))]
        return found

    def _posteriors(
        self, inputs: Mapping[str, Tensor], masks: Masks, subsets: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """mu and logvar [S, B, d] of q(z | X_S), and the subsets [S, B] cut down to what each row has."""
        mu, logvar, present = self.moments(inputs, masks)
        experts, rows, dim = mu.shape
        each = torch.tensor(subsets, device=mu.device).unsqueeze(-1).expand(-1, rows)
        each = each if present is None else each & bitmask(present)
        wide = (experts, len(subsets), rows, dim)
        mu, logvar = (t.unsqueeze(1).expand(wide).flatten(1, 2) for t in (mu, logvar))
        mean, lv = self.product(mu, logvar, each.flatten(), self.prior_expert)
        return mean.view(wide[1:]), lv.view(wide[1:]), each

    def objective(
        self, inputs: Mapping[str, Tensor], stream: Stream, *, masks: Masks = None, energy_weight: float = 1.0
    ) -> Objective:
        self.check_batch(inputs, masks, complete=True)
        subsets = self.subsets(stream)
        mu, logvar, each = self._posteriors(inputs, masks, subsets)
        terms = None if masks is None else each > 0  # [S, B]
        q = mixture(mu, logvar, terms)
        z = q.rsample(self.samples, stream)  # [K, S, B, d]
        kl, energy = self.kl_reference(mu, logvar), self.energy(z)  # [S, B], [K, S, B]
        elbo = -self.beta * (kl + energy_weight * energy.mean(0))
        log_x, wheres = {}, {}
        total = (elbo if terms is None else torch.where(terms, elbo, 0.0)).sum(0)  # [B]
        for m, name in enumerate(self.modalities):
            if name not in inputs:
                continue
            holding = [i for i, s in enumerate(subsets) if s >> m & 1]
            within = z[:, holding]  # [K, S_m, B, d]
            wheres[name] = None if terms is None else (each[holding] >> m & 1).bool()
            lead = within.shape[:3]
            log_x[name] = self.log_likelihood(name, inputs[name], within.flatten(0, 2), lead, wheres[name])
            total = total + self.rescale[name] * log_x[name].mean(0).sum(0)
        rows = total.numel() if terms is None else terms.any(0).sum()
        return Objective(
            loss=-total.sum() / rows,
            value=total.detach().sum() / rows,
            z=z.detach(),
            weights=self._weights(q, z),
            metrics=self.measured(q, log_x, kl, energy, wheres),
        )

    def _weights(self, q: MixtureOfExperts, z: Tensor) -> Tensor:
        """Every term of every row weighs the same: [K, S, B]."""
        terms = torch.ones_like(z[0, ..., 0]) if q.present is None else q.present.to(z.dtype)
        return (terms / (terms.sum() * self.samples)).expand(z.shape[:-1])

    @torch.no_grad()
    def positives(
        self, inputs: Mapping[str, Tensor], stream: Stream, *, masks: Masks = None
    ) -> tuple[Tensor, Tensor | None]:
        mu, logvar, each = self._posteriors(inputs, masks, self.subsets(stream))
        q = mixture(mu, logvar, None if masks is None else each > 0)
        z = q.rsample(self.samples, stream)
        return z, self._weights(q, z)
