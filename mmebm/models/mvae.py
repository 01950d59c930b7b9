"""MVAE (Wu and Goodman, NeurIPS 2018): a product of experts, trained on sums of ELBOs of subsets of modalities.

    q(z|X_S) ∝ p_0(z) prod_{m in S} q_m(z|x_m)
    L(X) = sum over S in {X, {x_1}, .., {x_M}, k random subsets} of
           E_{q_S} sum_{m in S} lambda_m log p(x_m|z) - beta KL(q_S || p)

With an energy prior KL(q_S || p_alpha) = KL(q_S || p_0) + E_{q_S}[E] + const in every term. `random_subsets` is k, of 2
to M - 1 modalities, drawn anew in every step (MultiVae 1.0.3's k, 0 by default as there); `prior_expert` says when p_0
is one of the factors: "always" (the paper's, MultiVae's), "full" or "never".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmebm.posteriors import MixtureOfExperts
from mmebm.priors import EnergyPrior, Prior
from mmebm.sampling.streams import Stream, choose

from .base import Objective
from .normal import PRIOR_EXPERTS, NormalVAE, checked, mixture


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

    def posterior(self, inputs: Mapping[str, Tensor]) -> MixtureOfExperts:
        mu, logvar = self.product(*self.moments(inputs), self.prior_expert)
        return mixture(mu.unsqueeze(0), logvar.unsqueeze(0))

    def subsets(self, stream: Stream) -> list[int]:
        """The bitmasks whose ELBOs are summed: all modalities, each alone, and k drawn ones."""
        count = len(self.modalities)
        found = [(1 << count) - 1] + ([1 << m for m in range(count)] if count > 1 else [])
        between = [s for s in range(1 << count) if 1 < s.bit_count() < count]
        if self.random_subsets and between:
            found += [between[int(i)] for i in choose(stream.take(1), self.random_subsets, len(between))]
        return found

    def _posteriors(self, inputs: Mapping[str, Tensor], subsets: list[int]) -> tuple[Tensor, Tensor]:
        """mu and logvar [S, B, d] of q(z | X_S)."""
        mu, logvar, present = self.moments(inputs)
        experts, rows, dim = mu.shape
        each = torch.tensor(subsets, device=mu.device).repeat_interleave(rows) & present.repeat(len(subsets))
        wide = (experts, len(subsets), rows, dim)
        mu, logvar = (t.unsqueeze(1).expand(wide).flatten(1, 2) for t in (mu, logvar))
        mean, lv = self.product(mu, logvar, each, self.prior_expert)
        return mean.view(wide[1:]), lv.view(wide[1:])

    def objective(self, inputs: Mapping[str, Tensor], stream: Stream, *, energy_weight: float = 1.0) -> Objective:
        rows = self.check_batch(inputs, complete=True)
        subsets = self.subsets(stream)
        mu, logvar = self._posteriors(inputs, subsets)
        q = mixture(mu, logvar)
        z = q.rsample(self.samples, stream)  # [K, S, B, d]
        kl, energy = self.kl_reference(mu, logvar), self.energy(z)  # [S, B], [K, S, B]
        elbo = -self.beta * (kl + energy_weight * energy.mean(0))
        log_x, total = {}, elbo.sum(0)  # [B]
        for m, name in enumerate(self.modalities):
            within = z[:, [i for i, s in enumerate(subsets) if s >> m & 1]]  # [K, S_m, B, d]
            log_x[name] = self.log_likelihood(name, inputs[name], within.flatten(0, 2), within.shape[:3])
            total = total + self.rescale[name] * log_x[name].mean(0).sum(0)
        return Objective(
            loss=-total.mean(),
            value=total.detach().mean(),
            z=z.detach(),
            weights=torch.full_like(energy, 1.0 / (self.samples * len(subsets) * rows), requires_grad=False),
            metrics=self.measured(q, log_x, kl, energy),
        )

    @torch.no_grad()
    def positives(self, inputs: Mapping[str, Tensor], stream: Stream) -> tuple[Tensor, Tensor | None]:
        return mixture(*self._posteriors(inputs, self.subsets(stream))).rsample(self.samples, stream), None
