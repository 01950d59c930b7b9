"""Likelihoods p(x_m | .): a decoder's output read as the parameters of a distribution over one modality."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Likelihood:
    """`log_prob(x, decoded)` sums over the event, the last `event_dims` dimensions; x broadcasts over leading ones.

    `mean(decoded)` is what is shown and classified.
    """

    def __init__(self, event_dims: int, scale: float = 1.0) -> None:
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale: expected a finite number > 0, got {scale}")
        self.event_dims, self.scale = event_dims, scale

    def log_prob(self, x: Tensor, decoded: Tensor) -> Tensor:
        return self.pointwise(x, decoded).flatten(-self.event_dims).sum(-1)

    def pointwise(self, x: Tensor, decoded: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no density")

    def mean(self, decoded: Tensor) -> Tensor:
        return decoded

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scale={self.scale:g})"


class Laplace(Likelihood):
    """Laplace(decoded, scale)."""

    def log_prob(self, x: Tensor, decoded: Tensor) -> Tensor:
        event = decoded.shape[-self.event_dims :].numel()
        # Fewer passes over the values, forward and backward, than the sum of absolute differences takes.
        distance = torch.linalg.vector_norm((decoded - x).flatten(-self.event_dims), ord=1, dim=-1)
        return -distance / self.scale - event * math.log(2.0 * self.scale)


class Normal(Likelihood):
    """Normal(decoded, scale)."""

    def pointwise(self, x: Tensor, decoded: Tensor) -> Tensor:
        u = (x - decoded) / self.scale
        return -0.5 * u * u - (math.log(self.scale) + _HALF_LOG_2PI)


class Bernoulli(Likelihood):
    """Bernoulli with logits `decoded`; x in [0, 1]."""

    def pointwise(self, x: Tensor, decoded: Tensor) -> Tensor:
        logits, target = torch.broadcast_tensors(decoded, x)
        return -F.binary_cross_entropy_with_logits(logits, target, reduction="none")

    def mean(self, decoded: Tensor) -> Tensor:
        return torch.sigmoid(decoded)


class Categorical(Likelihood):
    """One-hot x with logits `decoded` over the last dimension."""

    def pointwise(self, x: Tensor, decoded: Tensor) -> Tensor:
        return x * torch.log_softmax(decoded, -1)

    def mean(self, decoded: Tensor) -> Tensor:
        return torch.softmax(decoded, -1)


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "laplace": Laplace,
    "normal": Normal,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
}
