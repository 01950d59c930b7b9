"""The control: a Gaussian mixture fitted afterwards to the posterior, sampled instead of the prior."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def fit_mixture(z: Tensor, components: int, seed: int = 0) -> Callable[[int, int], Tensor]:
    """A sampler (n, seed) -> float32 [n, d] of a full-covariance Gaussian mixture fitted to z [N, d] by EM."""
    from sklearn.mixture import GaussianMixture

    if z.dim() != 2 or len(z) < components:
        raise ValueError(f"z: expected latents [N, d] with N >= components={components}, got {list(z.shape)}")
    latents = z.double().cpu().numpy()
    fitted = GaussianMixture(components, covariance_type="full", random_state=seed % 2**32).fit(latents)
    factors = np.linalg.cholesky(fitted.covariances_)

    def sample(n: int, seed: int) -> Tensor:
        random = np.random.default_rng(seed % 2**64)
        chosen = random.choice(components, n, p=fitted.weights_)
        noise = random.standard_normal((n, z.shape[1]))
        draws = fitted.means_[chosen] + np.einsum("nij,nj->ni", factors[chosen], noise)
        return torch.from_numpy(draws).float().to(z.device)

    return sample
