"""Posteriors: diagonal Laplace and Normal experts, and their uniform mixture over modalities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmebm.kernels import checks, ops
from mmebm.kernels.reference.noise import REPARAMETERISATION
from mmebm.priors import log_density
from mmebm.sampling.streams import Stream

_FLOOR = 1e-6


def scale_from(law: str, raw: Tensor) -> Tensor:
    """An encoder's second output [.., d] as a scale: softmax(raw) d + 1e-6 (laplace), softplus(raw) + 1e-6 (normal).

    Laplace scales so sum to d (MMVAE, Shi et al. 2019): dimensions compete for precision.
    """
    checks.one_of("law", law, checks.LAWS)
    return (torch.softmax(raw, -1) * raw.shape[-1] if law == "laplace" else F.softplus(raw)) + _FLOOR


@dataclass(frozen=True)
class Diagonal:
    """Independent Laplace or Normal coordinates: loc and scale [.., d]."""

    loc: Tensor
    scale: Tensor
    law: str

    def log_prob(self, z: Tensor) -> Tensor:
        """[.., d] -> [..]; leading dimensions broadcast."""
        return log_density(self.law, z, self.loc, self.scale)

    def rsample(self, samples: int, stream: Stream) -> Tensor:
        """Reparameterised draws [samples, .., d]; takes samples * prod(..) / rows steps of the stream."""
        *lead, rows, dim = self.loc.shape
        steps = samples * int(torch.Size(lead).numel())
        noise = ops.draw(stream.take(steps), steps, rows, dim, law=self.law, purpose=REPARAMETERISATION)
        return self.loc + self.scale * noise.view(samples, *self.loc.shape)

    def detach(self) -> Diagonal:
        return Diagonal(self.loc.detach(), self.scale.detach(), self.law)


@dataclass(frozen=True)
class MixtureOfExperts:
    """q(z|X) = (1/C) sum_c q_c(z|X): the experts' loc and scale are [C, B, d].

    `present` bool [C, B] tells which components a row has, all where it is None; C is then a row's own number.
    """

    experts: Diagonal
    present: Tensor | None = None

    def rsample(self, samples: int, stream: Stream) -> Tensor:
        """Stratified draws [K, C, B, d]: `samples` from every expert (noise step offset + k C + c)."""
        return self.experts.rsample(samples, stream)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q of the mixture: [.., B, d] -> [.., B]; the standard law's in rows that have no component."""
        bits = None if self.present is None else bitmask(self.present)
        return ops.mixture_log_prob(z, self.experts.loc, self.experts.scale, bits, law=self.experts.law)

    def shares(self) -> Tensor:
        """What each component and row weighs in a mean over rows that have any: [C, B], summing to 1."""
        loc = self.experts.loc
        if self.present is None:
            return loc.new_full(loc.shape[:2], 1.0 / max(1, loc.shape[0] * loc.shape[1]))
        count = self.present.sum(0)
        return self.present.to(loc.dtype) / (count.clamp_min(1) * (count > 0).sum().clamp_min(1))

    def detach(self) -> MixtureOfExperts:
        return MixtureOfExperts(self.experts.detach(), self.present)


def bitmask(present: Tensor) -> Tensor:
    """bool [M, B] as the operators take it: int64 [B], bit m for expert m."""
    return (present.long() << torch.arange(len(present), device=present.device).unsqueeze(-1)).sum(0)
