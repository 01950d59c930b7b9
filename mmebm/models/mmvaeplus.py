"""MMVAE+ (Palumbo et al., ICLR 2023), the generalised version of Yuan et al. (ECCV 2024) when the prior is an energy.

    L(X) = (1/M) sum_m E_{z^k ~ q_m(z|x_m), w_m^k ~ q_m(w|x_m), w~_n^k ~ r_n} log (1/K) sum_k exp lw_m^k
    lw_m^k = lambda_m log p(x_m | w_m^k, z^k) + sum_{n != m} lambda_n log p(x_n | w~_n^k, z^k)
             + beta [ log p(z^k) + log p(w_m^k) - log (1/M) sum_j q_j(z^k | x_j) - log q_m(w_m^k | x_m) ]

p(w) is the standard law; r_n(w~) has mean 0 and a learned scale and serves the cross terms of training. What is
generated takes w from `test_private` = "prior", p(w) (the authors'; MultiVae's "joint_prior"), or "auxiliary", r_n
(MultiVae's "single_prior").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmebm.kernels import ops
from mmebm.kernels.reference.noise import REPARAMETERISATION
from mmebm.posteriors import Diagonal, scale_from
from mmebm.priors import EnergyPrior, Prior, log_density
from mmebm.sampling.streams import Stream

from .base import MultimodalVAE, Objective
from .estimators import estimate
from .masks import Masks, mean_over


class MMVAEPlus(MultimodalVAE):
    """`private_dim` is the size of every w_m; `private_encoders` give its (loc, raw scale) as `encoders` give z's."""

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        prior: Prior | EnergyPrior,
        *,
        private_dim: int,
        test_private: str = "prior",
        private_encoders: Mapping[str, nn.Module] | None = None,
        **options: Any,
    ) -> None:
        if private_dim < 1:
            raise ValueError(f"private_dim: expected >= 1, got {private_dim}; without private latents use MMVAE")
        if test_private not in ("prior", "auxiliary"):
            raise ValueError(f"test_private: expected prior or auxiliary, got {test_private!r}")
        self._private_dim, self.test_private = private_dim, test_private
        super().__init__(shapes, prior, **options)
        self.private_encoders = nn.ModuleDict(private_encoders or self._new_encoders(private_dim, private=True))
        self.auxiliary = nn.Parameter(torch.zeros(len(self.modalities), private_dim))  # raw scales of r_n

    @property
    def private_dim(self) -> int:
        return self._private_dim

    def private_posterior(self, inputs: Mapping[str, Tensor], masks: Masks = None) -> Diagonal:
        """q_m(w_m | x_m) for every modality given: [M, B, d_w], standard where it is missing."""
        return self.experts(self.private_encoders, inputs, masks)[0]

    def auxiliary_scale(self) -> Tensor:
        """The scales of r_n: [M, d_w]."""
        return scale_from(self.posterior_law, self.auxiliary)

    def _private_noise(self, steps: int, rows: int, rng: Tensor) -> Tensor:
        """Standard draws [steps, rows, d_w] of the private latents' law."""
        return ops.draw(rng, steps, rows, self._private_dim, law=self.posterior_law, purpose=REPARAMETERISATION)

    @torch.no_grad()
    def own_latents(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = [m for m in self.modalities if m in inputs]
        return dict(zip(names, self.private_posterior(inputs).loc, strict=True))

    def decoder_inputs(self, z: Tensor, seed: int, first_row: int = 0) -> dict[str, Tensor]:
        count = len(self.modalities)
        # `encode` with the same seed has used the first M steps for z: w must not repeat its noise.
        stream = Stream(seed, count, z.device, first_row)
        w = self._private_noise(count, len(z), stream.take(count))  # p(w): [M, N, d_w]
        if self.test_private == "auxiliary":
            w = w * self.auxiliary_scale().unsqueeze(1)
        return {m: torch.cat((w[i], z), -1) for i, m in enumerate(self.modalities)}

    def objective(
        self, inputs: Mapping[str, Tensor], stream: Stream, *, masks: Masks = None, energy_weight: float = 1.0
    ) -> Objective:
        rows, samples = self.check_batch(inputs, masks, complete=True), self.samples
        q, q_w = self.posterior(inputs, masks), self.private_posterior(inputs, masks)
        wheres = self.pairs(inputs, q.present)
        experts = len(wheres)
        z = q.rsample(samples, stream)  # [K, M, B, d_z]
        w = q_w.rsample(samples, stream)  # [K, M, B, d_w]
        cross = experts * samples * experts
        noise = self._private_noise(cross, rows, stream.take(cross)).view(experts, samples, experts, rows, -1)

        held_q, held_q_w = (q.detach(), q_w.detach()) if self.estimator == "dreg" else (q, q_w)
        log_q, log_q_w = held_q.log_prob(z), held_q_w.log_prob(w)  # [K, M, B]
        log_p, energy = self.log_prior(z, energy_weight)
        log_p_w = log_density(self.posterior_law, w, 0.0, torch.ones_like(w[0, 0, 0]))

        log_x, auxiliary = {}, self.auxiliary_scale()
        for n, (name, where) in enumerate(wheres.items()):
            own = (torch.arange(experts, device=z.device) == n).view(-1, 1, 1)
            w_n = torch.where(own, w, noise[n] * auxiliary[self.modalities.index(name)])  # w_n for m = n, else w~_n
            u = torch.cat((w_n, z), -1).flatten(0, 2)
            log_x[name] = self.log_likelihood(name, inputs[name], u, z.shape[:3], where)

        kl = log_q - log_p + log_q_w - log_p_w
        log_w = sum(self.rescale[n] * log_x[n] for n in log_x) - self.beta * kl
        surrogate, value, weights = estimate(log_w, self.estimator, [z, w])
        metrics = self.measured(q, log_x, log_q - log_p - energy_weight * energy, energy, wheres)
        share = q.shares()  # [M, B]
        return Objective(
            loss=-(share * surrogate).sum(),
            value=(share * value).sum(),
            z=z.detach(),
            weights=share * weights,
            metrics=metrics | {"kl_private": mean_over((log_q_w - log_p_w).detach(), q.present)},
        )
