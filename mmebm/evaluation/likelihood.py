"""Joint log-likelihood of held-out data by importance sampling, with an estimate of log Z where the prior is an energy.

    log p(X) ~ log (1 / MK) sum_m sum_k w_mk,    z ~ q_m(z | x_m), w_n ~ q_n(w_n | x_n)
    w = p(z) prod_n p(w_n) p(x_n | z, w_n) / ((1/M) sum_j q_j(z | x_j) prod_n q_n(w_n | x_n))

K draws of every expert, weighed against their mixture: stratified, as the objectives draw (Burda et al., ICLR 2016;
Shi et al., NeurIPS 2019). Likelihood scales count as they are, `rescale` and `beta` of training do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmebm.data import MultimodalDataset
from mmebm.kernels import checks
from mmebm.models import MMVAEPlus, MultimodalVAE
from mmebm.priors import EnergyPrior, log_density
from mmebm.sampling import LogPartition
from mmebm.sampling.streams import Stream

# Rows of decoder inputs at once.
_ROWS = 1 << 16


@dataclass(frozen=True)
class LogLikelihood:
    """The mean of log p(X) over `rows` rows in nats, with its standard error over rows and that of log Z in quadrature.

    With K draws it lies below the log-likelihood on average; an estimated log Z shifts it by an error of its own, so
    that with an energy prior it is an estimate and no bound.
    """

    mean: float
    standard_error: float
    rows: int
    samples: int  # K, of each expert
    log_z: float | None

    def __repr__(self) -> str:
        prior = "" if self.log_z is None else f", log Z = {self.log_z:.3f}"
        return f"log p(X) = {self.mean:.2f} ± {self.standard_error:.2f} ({self.rows} rows, K = {self.samples}{prior})"


@torch.no_grad()
def joint_log_likelihood(
    model: MultimodalVAE,
    data: MultimodalDataset,
    *,
    samples: int = 64,
    log_z: LogPartition | float | None = None,
    seed: int = 0,
) -> LogLikelihood:
    """Mean log p(X) of `data` by `samples` draws of every expert; `log_z` as `EnergyPrior.log_partition()` gives it.

    Errors: ValueError for an energy prior without `log_z`, or one given for a prior that needs none.
    """
    checks.at_least("samples", samples, 1)
    if isinstance(model.prior, EnergyPrior) != (log_z is not None):
        wanted = "an estimate, as model.prior.log_partition() gives it" if log_z is None else "None, the prior has none"
        raise ValueError(f"log_z: expected {wanted}, got {log_z}")
    experts = len(model.modalities)
    stream = Stream(seed)
    per_batch = max(1, _ROWS // (samples * experts))
    parts = [
        torch.logsumexp(_log_weights(model, data.batch(index), samples, stream).flatten(0, 1).double(), 0)
        - math.log(samples * experts)
        for index in torch.arange(len(data)).split(per_batch)
    ]
    value = torch.cat(parts)
    shift, error = _log_z(log_z)
    return LogLikelihood(
        mean=float(value.mean()) - shift,
        standard_error=math.hypot(float(value.std()) / math.sqrt(len(value)), error),
        rows=len(value),
        samples=samples,
        log_z=None if log_z is None else shift,
    )


def _log_z(log_z: LogPartition | float | None) -> tuple[float, float]:
    """The value and its standard error."""
    if isinstance(log_z, LogPartition):
        return log_z.value, log_z.standard_error
    return (0.0 if log_z is None else float(log_z)), 0.0


def _log_weights(model: MultimodalVAE, inputs: dict[str, Tensor], samples: int, stream: Stream) -> Tensor:
    """log w [K, M, B], without -log Z."""
    model.check_batch(inputs, complete=True)
    q = model.posterior(inputs)
    z = q.rsample(samples, stream)  # [K, M, B, d]
    log_w = model.log_prior(z)[0] - q.log_prob(z)
    u = dict.fromkeys(model.modalities, z)
    if isinstance(model, MMVAEPlus):
        q_w = model.private_posterior(inputs)  # [M, B, d_w]
        w = q_w.rsample(samples * len(model.modalities), stream).unflatten(0, z.shape[:2])  # [K, M, n, B, d_w]
        log_p_w = log_density(model.posterior_law, w, 0.0, torch.ones_like(q_w.scale[0, 0]))
        log_w = log_w + (log_p_w - q_w.log_prob(w)).sum(2)
        u = {name: torch.cat((w[:, :, n], z), -1) for n, name in enumerate(model.modalities)}
    for name in model.modalities:
        log_w = log_w + model.log_likelihood(name, inputs[name], u[name].flatten(0, 2), z.shape[:3])
    return log_w
