"""What the models with Normal experts and closed divergences share: MVAE, MoPoE, MVTCAE, mmJSD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmebm.kernels import ops
from mmebm.posteriors import Diagonal, MixtureOfExperts
from mmebm.priors import EnergyPrior, Prior
from mmebm.sampling.streams import Stream, choose

from .base import MultimodalVAE

PRIOR_EXPERTS = ("never", "full", "always")
CHOICES = ("slices", "categorical")


class NormalVAE(MultimodalVAE):
    """Experts q_m(z|x_m) = N(mu_m, exp(logvar_m)), their products; KL(q || p_alpha) = KL(q || p_0) + E_q[E] + const.

    `reference_laws` are those of p_0 that the model's formula allows.
    """

    reference_laws: tuple[str, ...] = ("normal",)

    def __init__(self, shapes: Mapping[str, Sequence[int]], prior: Prior | EnergyPrior, **options: Any) -> None:
        name = type(self).__name__
        for option, only in (("posterior", "normal"), ("estimator", "elbo")):
            if options.setdefault(option, only) != only:
                raise ValueError(f"{option}: {name} takes {only!r}, got {options[option]!r}")
        super().__init__(shapes, prior, **options)
        self._check_reference(prior)

    def _check_reference(self, prior: Prior | EnergyPrior) -> None:
        law = _law(prior)
        if law not in self.reference_laws:
            raise ValueError(
                f"prior: {type(self).__name__} multiplies p_0 or needs its divergence in closed form: expected a "
                f"{' or '.join(self.reference_laws)} p_0, got {law}"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "prior" and "prior" in self._modules:  # another one in its place
            self._check_reference(value)
        super().__setattr__(name, value)

    def reference_scale(self) -> Tensor:
        """The scale of p_0 [d], held fixed."""
        scale = self.prior.reference_scale if isinstance(self.prior, EnergyPrior) else self.prior.scale
        return scale.detach().to(next(self.encoders.parameters()).dtype)

    def energy(self, z: Tensor) -> Tensor:
        """E(z) of the energy prior, its parameters held fixed, or zeros: [.., d] -> [..]."""
        return self.log_prior(z, 0.0)[1]

    def likelihood(self, log_x: Mapping[str, Tensor]) -> Tensor:
        """sum_m lambda_m log p(x_m|z) of equally shaped terms."""
        return torch.stack([self.rescale[m] * log_x[m] for m in self.modalities]).sum(0)

    def moments(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """mu and logvar [M, B, d] of every modality's expert, zeros where not given, and who is given: int64 [B]."""
        given = super().posterior(inputs).experts
        names = [m for m in self.modalities if m in inputs]
        rows, device = given.loc.shape[1], given.loc.device
        mask = sum(1 << i for i, m in enumerate(self.modalities) if m in inputs)
        present = torch.full((rows,), mask, dtype=torch.int64, device=device)
        mu, logvar = given.loc, 2.0 * given.scale.log()
        if len(names) < len(self.modalities):
            at = torch.tensor([self.modalities.index(m) for m in names], device=device)
            shape = (len(self.modalities), *mu.shape[1:])
            mu, logvar = (t.new_zeros(shape).index_copy(0, at, t) for t in (mu, logvar))
        return mu, logvar, present

    def product(self, mu: Tensor, logvar: Tensor, present: Tensor, prior: str) -> tuple[Tensor, Tensor]:
        """The product of a row's present experts, with p_0 among them as `prior` says: mu and logvar [B, d]."""
        scale = self.reference_scale()
        mean, lv = ops.product_of_experts(mu / scale, logvar - 2.0 * scale.log(), present, prior=prior)
        return mean * scale, lv + 2.0 * scale.log()

    def kl_reference(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """KL(N(mu, exp(logvar)) || p_0): [.., d] -> [..]."""
        scale = self.reference_scale()
        if _law(self.prior) == "normal":
            return kl_normal(mu, logvar, torch.zeros_like(mu), (2.0 * scale.log()).expand_as(logvar))
        # E|z| of a Normal (folded), and its entropy.
        deviation = (0.5 * logvar).exp()
        u = mu / (deviation * math.sqrt(2.0))
        folded = deviation * math.sqrt(2.0 / math.pi) * (-u * u).exp() + mu * torch.erf(u)
        entropy = 0.5 * (logvar + math.log(2.0 * math.pi) + 1.0)
        return (folded / scale + (2.0 * scale).log() - entropy).sum(-1)

    def components(self, count: int, rows: int, stream: Stream, choice: str) -> Tensor:
        """Which of `count` components of a mixture each row is decoded from: int64 [rows].

        "slices" cuts the batch in consecutive parts, as even as they can be, from a random start (systematic
        sampling: every component has rows / count rows on average, in batches of any size); "categorical" draws for
        every row.
        """
        if choice == "categorical":
            return choose(stream.take(1), rows, count)
        start = choose(stream.take(1), 1, 1 << 24).double() / (1 << 24)
        at = (torch.arange(rows, device=start.device) + start) * (count / rows)
        return at.floor().long().clamp_max(count - 1)


def _law(prior: Prior | EnergyPrior) -> str:
    return prior.reference if isinstance(prior, EnergyPrior) else prior.law


def kl_normal(mu: Tensor, logvar: Tensor, other_mu: Tensor, other_logvar: Tensor) -> Tensor:
    """KL(N(mu, e^logvar) || N(other_mu, e^other_logvar)): [.., d] -> [..]."""
    difference = logvar - other_logvar
    away = (mu - other_mu).square() * (-other_logvar).exp()
    return 0.5 * (away + torch.expm1(difference) - difference).sum(-1)


def mixture(mu: Tensor, logvar: Tensor) -> MixtureOfExperts:
    """The uniform mixture of Normals [C, B, d]."""
    return MixtureOfExperts(Diagonal(mu, (0.5 * logvar).exp(), "normal"))


def checked(name: str, value: str, known: Sequence[str]) -> str:
    """`value`, if it is known. Errors: ValueError."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return value
