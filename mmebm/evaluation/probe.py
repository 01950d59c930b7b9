"""What a linear classifier reads from latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["ProbeResult", "linear_probe"]


@dataclass(frozen=True)
class ProbeResult:
    """Accuracies of the probe on the rows it was fitted to and on others, and their numbers."""

    train: float
    test: float
    n_train: int
    n_test: int


def linear_probe(z_train: Tensor, y_train: Tensor, z_test: Tensor, y_test: Tensor, *, seed: int = 0) -> ProbeResult:
    """Logistic regression (scikit-learn, lbfgs, at most 1,000 iterations) on standardised latents.

    Args:
        z_train, z_test: latents [N, d], one posterior sample or the mean for each row.
        y_train, y_test: classes, int64 [N].

    Raises:
        ValueError: shapes that do not fit, NaN or infinite latents, fewer than two classes in y_train.

    Source: the protocol of MMVAE+ (Palumbo et al., ICLR 2023), standardised here.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for name, z, y in (("train", z_train, y_train), ("test", z_test, y_test)):
        if z.ndim != 2 or not len(z):
            raise ValueError(f"z_{name}: expected latents [N, d] with N > 0, got {list(z.shape)}")
        if not bool(torch.isfinite(z).all()):
            raise ValueError(f"z_{name}: expected finite latents, got NaN or infinity")
        if y.dtype != torch.int64 or y.shape != z.shape[:1]:
            raise ValueError(f"y_{name}: expected int64 [{len(z)}], got {y.dtype} {list(y.shape)}")
    if z_train.shape[1] != z_test.shape[1]:
        raise ValueError(f"z_test: expected {z_train.shape[1]} dimensions as in z_train, got {z_test.shape[1]}")
    if len(torch.unique(y_train)) < 2:
        raise ValueError(f"y_train: expected at least two classes, got only {int(y_train[0])}")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000, random_state=seed % 2**32))
    probe.fit(_array(z_train), _array(y_train))
    return ProbeResult(
        train=float(probe.score(_array(z_train), _array(y_train))),
        test=float(probe.score(_array(z_test), _array(y_test))),
        n_train=len(z_train),
        n_test=len(z_test),
    )


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
