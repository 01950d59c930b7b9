"""Joint and conditional log-likelihoods of held-out data by importance sampling, with log Z where there is an energy.

    log p(X) ~ log (1 / MK) sum_m sum_k w_mk,    z ~ q_m(z | x_m), w_n ~ q_n(w_n | x_n)
    w = p(z) prod_n p(w_n) p(x_n | z, w_n) / ((1/M) sum_j q_j(z | x_j) prod_n q_n(w_n | x_n))

K draws of every expert, weighed against their mixture: stratified, as the objectives draw (Burda et al., ICLR 2016;
Shi et al., NeurIPS 2019). M and the products are over what a row has. Likelihood scales count as they are, `rescale`
and `beta` of training do not.

    log p(x_T | x_S) ~ log (1 / MK) sum_m sum_k prod_{t in T} p(x_t | z_mk, w_t),    z ~ q(z | x_S), w_t ~ p(w)

is the field's conditional one (MultiVae 1.0.3): a bound of the posterior predictive under q, which needs no log Z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmebm.data import MultimodalDataset
from mmebm.kernels import checks
from mmebm.models import MMVAEPlus, MultimodalVAE
from mmebm.models.masks import Masks
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
    rows: int | None = None,
    log_z: LogPartition | float | None = None,
    seed: int = 0,
) -> LogLikelihood:
    """Mean log p(X) of the first `rows` rows of `data` that have anything (default: all), `samples` draws an expert.

    `log_z` as `EnergyPrior.log_partition()` gives it.

    Errors: ValueError for an energy prior without `log_z`, or one given for a prior that needs none.
    """
    checks.at_least("samples", samples, 1)
    if isinstance(model.prior, EnergyPrior) != (log_z is not None):
        wanted = "an estimate, as model.prior.log_partition() gives it" if log_z is None else "None, the prior has none"
        raise ValueError(f"log_z: expected {wanted}, got {log_z}")
    index = torch.arange(len(data))
    if data.masks is not None:
        index = torch.stack(list(data.masks.values())).any(0).nonzero().flatten().cpu()
    value = _mean_log_weight(model, data, index[:rows], samples, seed, _log_weights)
    shift, error = _log_z(log_z)
    return LogLikelihood(
        mean=float(value.mean()) - shift,
        standard_error=math.hypot(float(value.std()) / math.sqrt(len(value)), error),
        rows=len(value),
        samples=samples,
        log_z=None if log_z is None else shift,
    )


@torch.no_grad()
def conditional_log_likelihood(
    model: MultimodalVAE,
    data: MultimodalDataset,
    cond_mod: Sequence[str],
    gen_mod: Sequence[str],
    *,
    samples: int = 64,
    rows: int | None = None,
    seed: int = 0,
) -> LogLikelihood:
    """Mean log p(x of `gen_mod` | x of `cond_mod`) of the first `rows` rows of `data` that have them all."""
    checks.at_least("samples", samples, 1)
    for argument, names in (("cond_mod", cond_mod), ("gen_mod", gen_mod)):
        if isinstance(names, str) or not names or set(names) - set(model.modalities):
            raise ValueError(f"{argument}: expected modalities among {', '.join(model.modalities)}, got {names!r}")
    if both := set(cond_mod) & set(gen_mod):
        raise ValueError(f"gen_mod: expected modalities that are not given, got {', '.join(sorted(both))} in both")

    def log_weights(
        model: MultimodalVAE, inputs: dict[str, Tensor], masks: Masks, samples: int, stream: Stream
    ) -> tuple[Tensor, Tensor | None]:
        q = model.conditional({m: inputs[m] for m in cond_mod})
        z = q.rsample(samples, stream)  # [K, C, B, d]
        u = model.decoder_inputs(z.flatten(0, 2), stream.seed, int(stream.offset))
        log_w = z.new_zeros(z.shape[:3])
        for name in gen_mod:
            log_w = log_w + model.log_likelihood(name, inputs[name], u[name], z.shape[:3])
        return log_w, q.present

    index = torch.arange(len(data))
    if data.masks is not None:
        index = torch.stack([data.masks[m].cpu() for m in (*cond_mod, *gen_mod)]).all(0).nonzero().flatten()
    if not len(index):
        raise ValueError(f"data: expected rows that have {', '.join((*cond_mod, *gen_mod))}, got none")
    value = _mean_log_weight(model, data, index[:rows], samples, seed, log_weights)
    error = float(value.std()) / math.sqrt(len(value))
    return LogLikelihood(float(value.mean()), error, len(value), samples, None)


LogWeights = Callable[
    [MultimodalVAE, dict[str, Tensor], Masks, int, Stream], tuple[Tensor, Tensor | None]
]  # log w [K, C, B], and which of the C a row has


def _mean_log_weight(
    model: MultimodalVAE, data: MultimodalDataset, index: Tensor, samples: int, seed: int, weigh: LogWeights
) -> Tensor:
    """log of the mean weight of each of the rows `index`, float64 [N]."""
    stream = Stream(seed, device=data.device)
    parts = []
    for part in index.split(max(1, _ROWS // (samples * len(model.modalities)))):
        log_w, present = weigh(model, data.batch(part), data.observed(part), samples, stream)
        count: Tensor | int = log_w.shape[1]
        if present is not None:
            log_w, count = torch.where(present, log_w, -torch.inf), present.sum(0)
        parts.append(torch.logsumexp(log_w.flatten(0, 1).double(), 0) - torch.as_tensor(samples * count).double().log())
    return torch.cat(parts)


def _log_z(log_z: LogPartition | float | None) -> tuple[float, float]:
    """The value and its standard error."""
    if isinstance(log_z, LogPartition):
        return log_z.value, log_z.standard_error
    return (0.0 if log_z is None else float(log_z)), 0.0


def _log_weights(
    model: MultimodalVAE, inputs: dict[str, Tensor], masks: Masks, samples: int, stream: Stream
) -> tuple[Tensor, Tensor | None]:
    """log w [K, C, B] without -log Z, and which of the C a row has."""
    model.check_batch(inputs, masks, complete=True)
    q = model.posterior(inputs, masks)
    z = q.rsample(samples, stream)  # [K, C, B, d]
    log_w = model.log_prior(z)[0] - q.log_prob(z)
    u = dict.fromkeys(model.modalities, z)
    seen = None if masks is None else model.presence(inputs, masks)  # [M, B]
    if isinstance(model, MMVAEPlus):
        q_w = model.private_posterior(inputs, masks)  # [M, B, d_w]
        w = q_w.rsample(samples * z.shape[1], stream).unflatten(0, z.shape[:2])  # [K, C, M, B, d_w]
        log_p_w = log_density(model.posterior_law, w, 0.0, torch.ones_like(q_w.scale[0, 0]))
        difference = log_p_w - q_w.log_prob(w)  # [K, C, M, B]
        log_w = log_w + (difference if seen is None else torch.where(seen, difference, 0.0)).sum(2)
        u = {name: torch.cat((w[:, :, n], z), -1) for n, name in enumerate(model.modalities)}
    for n, name in enumerate(model.modalities):
        where = None if seen is None else seen[n]
        log_w = log_w + model.log_likelihood(name, inputs[name], u[name].flatten(0, 2), z.shape[:3], where)
    return log_w, q.present
