"""From K log importance weights to a loss: ELBO, IWAE and DReG, stratified over experts ("looser": mean outside log).

Sources: IWAE, Burda et al. (ICLR 2016); DReG, Tucker et al. (ICLR 2019), as used by MMVAE (Shi et al., NeurIPS 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ESTIMATORS = ("elbo", "iwae", "dreg")


def estimate(log_w: Tensor, estimator: str, proposals: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """(surrogate, value, weights) of log_w [K, ..]: the surrogate to maximise [..], the bound it stands for [..], and
    the normalised detached weight of each sample [K, ..], which its energy has in the objective.

    elbo: the mean over K. iwae: log mean exp. dreg: sum_k w_k log w_k with w = softmax_k(log_w) held fixed; the
    gradient that reaches each of `proposals` (reparameterised draws [K, .., d]) is multiplied by w_k once more, and
    the caller evaluates the proposals' densities with detached parameters.
    """
    samples = log_w.shape[0]
    if estimator == "elbo":
        weights = torch.full_like(log_w, 1.0 / samples, requires_grad=False)
        bound = log_w.mean(0)
        return bound, bound.detach(), weights
    weights = torch.softmax(log_w.detach(), 0)
    bound = torch.logsumexp(log_w, 0) - math.log(samples)
    if estimator == "iwae":
        return bound, bound.detach(), weights
    for z in proposals:
        if z.requires_grad:
            z.register_hook(lambda grad: grad * weights.unsqueeze(-1))
    return (weights * log_w).sum(0), bound.detach(), weights
