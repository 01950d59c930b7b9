"""Frechet distance between two sets of features, as normal distributions.

Source: Dowson and Landau, J. Multivariate Anal. 12, 1982; in generative modelling: Heusel et al., NeurIPS 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["frechet_distance", "frechet_gaussian"]

RIDGE = 1e-6


def frechet_distance(a: Tensor, b: Tensor, ridge: float = RIDGE) -> float:
    """Squared Frechet distance between normals fitted to a [N, d] and b [M, d], in the features' units squared.

    Its bias falls with N and M: compare distances at equal numbers of samples only. `ridge` times the mean variance is
    added to both covariances, which fewer samples than dimensions or dead features leave singular.

    Raises:
        ValueError: fewer than 2 rows, unequal d, NaN or infinite features.
    """
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, Tensor) or value.ndim != 2 or value.shape[0] < 2:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}: expected features [N, d] with N >= 2, got {got}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name}: expected finite features, got NaN or infinity")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"b: expected {a.shape[1]} features as in a, got {b.shape[1]}")
    return frechet_gaussian(*_moments(a), *_moments(b), ridge=ridge)


def frechet_gaussian(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor, ridge: float = 0.0) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) with means [d] and covariances A, B [d, d]; float64.

    Raises:
        ValueError: shapes that do not fit.
    """
    d = mean_a.numel()
    for name, value, shape in (("mean_a", mean_a, (d,)), ("cov_a", cov_a, (d, d)), ("mean_b", mean_b, (d,)),
                               ("cov_b", cov_b, (d, d))):  # fmt: skip
        if tuple(value.shape) != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(value.shape)}")
    a, b = cov_a.double(), cov_b.double()
    if ridge:
        eye = ridge * (a.trace() + b.trace()) / (2 * d) * torch.eye(d, dtype=torch.float64, device=a.device)
        a, b = a + eye, b + eye
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ b @ root
    # The product is symmetric up to rounding; eigh reads one triangle.
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    shift = (mean_a.double() - mean_b.double()).square().sum()
    return max(0.0, float(shift + a.trace() + b.trace() - 2 * cross))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().double()
    mean = x.mean(dim=0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)
