"""Convergence of chains: autocorrelation, effective sample size, R-hat, Monte Carlo standard errors.

All of it for all coordinates of `draws` [chain, draw, *shape] at once, in float64 on the draws' device; results have
`shape`. Definitions are those of Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization, folding, and
localization: an improved R-hat for assessing convergence of MCMC", Bayesian Analysis 16 (2021), as R's posterior and
ArviZ compute them. NaN is what cannot be known: fewer than 4 draws, a coordinate with a value that is not finite, and,
as in posterior, a constant one (ArviZ calls a constant's ESS the number of draws, which makes a stuck chain look
perfect). One chain is enough, its halves are compared, as in Stan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["autocorrelation", "effective_sample_size", "mcse", "rhat"]

MIN_DRAWS = 4  # two for each half of a chain
TAIL = (0.05, 0.95)
ONE_SIGMA = (0.1586553, 0.8413447)  # probabilities of -1 and 1 under a normal, as posterior and ArviZ write them
NODES = 64  # of the quadrature under the quantiles of a beta law; 1e-9 there, and S draws ask for 1 / S


def autocorrelation(draws: Tensor) -> Tensor:
    """Autocorrelation of every chain at lags 0 .. draw - 1, by FFT; draws and result [chain, draw, *shape].

    Around the chain's own mean, and with 1 / draw at every lag, so that long lags fade instead of growing noisy. A
    chain that is constant or not finite gives NaN. Errors, here and below: TypeError or ValueError unless
    `draws` is a floating tensor of at least one chain, draw and coordinate.
    """
    x = _rows(draws)
    covariance = _covariance(_spectrum(x), x.shape[2])
    rho = (covariance / covariance[..., :1]).masked_fill(_constant(x.unsqueeze(2)).unsqueeze(2), torch.nan)
    return rho.permute(1, 2, 0).reshape(draws.shape)


def effective_sample_size(draws: Tensor, kind: str | float = "bulk") -> Tensor:
    """How many independent draws tell as much: [chain, draw, *shape] -> `shape`; no more than S log10 S of S draws.

    Args:
        draws: [chain, draw, *shape], floating, on any device.
        kind: "bulk" (of the rank-normalised draws, for centres), "tail" (the smaller of the 5% and 95% quantiles'),
            "mean", "sd", or a probability in (0, 1) for that quantile's.

    Of split chains; the sum of autocorrelations is cut by Geyer's initial monotone sequence. A quantile's indicator
    may be constant where draws are not, as with few distinct values: then its own ESS is NaN, and "tail" is the other.
    """
    _check_kind(kind)
    x = _rows(draws)
    finite = _finite(x)
    if draws.shape[1] < MIN_DRAWS:
        ess = x.new_full(finite.shape, torch.nan)
    elif kind == "bulk":
        ess = _ess(_rank_normal(_split(x)))
    elif kind == "mean":
        ess = _ess(_split(x))
    elif kind == "sd":
        ess = _ess(_split((x - x.mean((1, 2), keepdim=True)).square_()))
    else:
        probs = TAIL if isinstance(kind, str) else (kind,)
        ordered = _ordered(x)
        cuts = [_quantile(ordered, p)[:, None, None] for p in probs]
        del ordered
        ess = _ess(_split((x <= cuts[0]).double()))
        for cut in cuts[1:]:
            ess = torch.fmin(ess, _ess(_split((x <= cut).double())))
    return torch.where(finite, ess, torch.nan).reshape(draws.shape[2:])


def rhat(draws: Tensor) -> Tensor:
    """How far chains are from one law, 1 at best: [chain, draw, *shape] -> `shape`.

    The larger of the rank-normalised split R-hat, which sees chains in different places, and the same of the draws
    folded around their median, which sees chains of different scale. Chains that each stand still in their own place
    give infinity. Halves of chains with few effective draws each stay above 1 even in their law, by about 1 over twice
    that number (Margossian et al., "Nested R-hat", 2024).
    """
    x = _rows(draws)
    finite = _finite(x)
    if draws.shape[1] < MIN_DRAWS:
        return x.new_full(draws.shape[2:], torch.nan)
    x = _split(x)
    ordered = _ordered(x)
    half = ordered.shape[1] // 2
    median = (ordered[:, half - 1] + ordered[:, half]) / 2.0
    folded = (x - median[:, None, None]).abs_()
    del ordered
    # Not the maximum: draws of two values fold to a constant, whose R-hat is NaN, and the other part is right.
    value = torch.fmax(_rhat(_rank_normal(x)), _rhat(_rank_normal(folded)))
    return torch.where(finite, value, torch.nan).reshape(draws.shape[2:])


def mcse(draws: Tensor, kind: str = "mean", prob: float | None = None) -> Tensor:
    """Monte Carlo standard error of the mean, sd or a quantile over all draws: [chain, draw, *shape] -> `shape`.

    Args:
        draws: [chain, draw, *shape], floating, on any device.
        kind: "mean", "sd" (by the delta method, no normality assumed) or "quantile" (half the distance of the order
            statistics one standard error below and above).
        prob: the quantile's probability, in (0, 1); for no other kind.
    """
    if kind not in ("mean", "sd", "quantile"):
        raise ValueError(f"kind: expected 'mean', 'sd' or 'quantile', got {kind!r}")
    if (prob is None) == (kind == "quantile"):
        raise ValueError(
            f"prob: expected a probability with kind='quantile' and only there, got {prob!r} with {kind!r}"
        )
    ess = effective_sample_size(draws, kind if prob is None else prob)
    if draws.shape[1] < MIN_DRAWS:
        return ess  # NaN
    x = _rows(draws)
    n = ess.reshape(-1)
    if prob is not None:
        return _mcse_quantile(_ordered(x), n, prob).reshape(ess.shape)
    x = x.flatten(1)
    if kind == "mean":
        return (x.std(1) / n.sqrt()).reshape(ess.shape)
    square = (x - x.mean(1, keepdim=True)).square_()
    variance = square.mean(1)
    return ((square.square_().mean(1) - variance**2) / n / variance / 4.0).sqrt().reshape(ess.shape)


def quantiles(draws: Tensor, probs: Sequence[float]) -> tuple[Tensor, ...]:
    """Quantiles over all draws of all chains, linear between order statistics; a tensor of `shape` for each."""
    x = _rows(draws)
    finite = _finite(x)
    ordered = _ordered(x)
    return tuple(torch.where(finite, _quantile(ordered, p), torch.nan).reshape(draws.shape[2:]) for p in probs)


def _check_kind(kind: str | float) -> None:
    if isinstance(kind, str):
        if kind not in ("bulk", "tail", "mean", "sd"):
            raise ValueError(f"kind: expected 'bulk', 'tail', 'mean', 'sd' or a probability, got {kind!r}")
    elif isinstance(kind, bool) or not isinstance(kind, int | float):
        raise TypeError(f"kind: expected 'bulk', 'tail', 'mean', 'sd' or a probability, got {kind!r}")
    elif not 0.0 < kind < 1.0:
        raise ValueError(f"kind: expected a probability in (0, 1), got {kind!r}")


def check_draws(draws: Tensor) -> None:
    """TypeError or ValueError unless draws are [chain, draw, *shape], floating, with at least one of each."""
    if not isinstance(draws, Tensor):
        raise TypeError(f"draws: expected a tensor [chain, draw, ..], got {type(draws).__name__}")
    if not draws.is_floating_point():
        raise TypeError(f"draws: expected a floating dtype, got {draws.dtype}")
    if draws.dim() < 2 or not draws.numel():
        raise ValueError(
            f"draws: expected [chain, draw, ..], at least one chain, draw and coordinate, got shape {list(draws.shape)}"
        )


def _rows(draws: Tensor) -> Tensor:
    """A float64 copy [N, chain, draw], a row a coordinate."""
    check_draws(draws)
    chains, count = draws.shape[:2]
    coordinates = math.prod(draws.shape[2:])
    x = torch.empty(coordinates, chains, count, dtype=torch.float64, device=draws.device)
    return x.copy_(draws.detach().reshape(chains, count, coordinates).permute(2, 0, 1))


def _finite(x: Tensor) -> Tensor:
    return torch.isfinite(x).flatten(1).all(1)  # [N]


def _split(x: Tensor) -> Tensor:
    """Halves of chains as chains, [N, 2 chain, draw // 2]; of an odd number of draws the middle one is dropped."""
    half = x.shape[2] // 2
    return torch.cat((x[..., :half], x[..., -half:]), dim=1)


def _constant(x: Tensor) -> Tensor:
    """Where all of the last two dimensions are one value, up to what float64 rounds."""
    low, high = x.amin((-2, -1)), x.amax((-2, -1))
    return high - low <= 16.0 * torch.finfo(x.dtype).eps * torch.maximum(low.abs(), high.abs())


def _ordered(x: Tensor) -> Tensor:
    return x.flatten(1).sort(dim=1).values  # [N, S]


def _quantile(ordered: Tensor, prob: float) -> Tensor:
    """Linear between order statistics, R's type 7, of ordered [N, S] -> [N]."""
    position = (ordered.shape[1] - 1) * prob
    below = math.floor(position)
    above = min(below + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], position - below)


def _rank_normal(x: Tensor) -> Tensor:
    """Normal scores of the ranks among all draws of a row; tied draws share their average rank."""
    ordered, order = x.flatten(1).sort(dim=1)
    # Looked up in order, since that is kind to caches: how many are smaller, and how many are not larger.
    ranks = torch.searchsorted(ordered, ordered)
    ranks += torch.searchsorted(ordered, ordered, right=True)
    ranks = ranks.double().add_(1.0).div_(2.0)
    scores = torch.special.ndtri(ranks.sub_(3.0 / 8.0).div_(ordered.shape[1] + 1.0 / 4.0))
    return torch.empty_like(ordered).scatter_(1, order, scores).view_as(x)


def _fast_length(n: int) -> int:
    """The least of 1, 3, 5, 9, 15 times a power of two that is >= n: FFTs of primes are slow."""
    return min(f << max(0, math.ceil(math.log2(n / f))) for f in (1, 3, 5, 9, 15))


def _spectrum(x: Tensor) -> Tensor:
    """Power spectrum of [.., n] around its mean, padded so that lags do not wrap around."""
    return torch.fft.rfft(x - x.mean(-1, keepdim=True), n=_fast_length(2 * x.shape[-1])).abs().square_()


def _covariance(power: Tensor, n: int) -> Tensor:
    """Autocovariances at lags 0 .. n - 1, over n at every lag."""
    return torch.fft.irfft(power, n=_fast_length(2 * n))[..., :n] / n


def _ess(x: Tensor) -> Tensor:
    """ESS of the mean of chains [N, chain, n], n >= 2 and chain >= 2, -> [N]."""
    chains, n = x.shape[1:]
    draws = chains * n
    covariance = _covariance(_spectrum(x).mean(1), n)  # [N, n]
    within = covariance[:, :1] * (n / (n - 1.0))
    total = covariance[:, :1] + x.mean(2).var(1, keepdim=True)
    rho = 1.0 - (within - covariance) / total
    rho[:, 0] = 1.0

    # Geyer: sums of neighbours (lags 2k, 2k + 1) are positive and fall; noise ends that, and the sum stops there.
    last = max(0, (n - 3) // 2)
    pairs = rho[:, : 2 * last + 2].unflatten(1, (last + 1, 2)).sum(2)  # [N, last + 1]
    end = (pairs > 0.0).cumprod(1).sum(1, keepdim=True).clamp(max=last)  # the first that is not positive
    counted = torch.arange(last + 1, device=x.device) < end
    tau = 2.0 * torch.where(counted, pairs.cummin(1).values, 0.0).sum(1, keepdim=True) - 1.0
    # The even lag where it stopped is still counted once, as posterior and ArviZ do to lessen the bias of the cut.
    even = rho.gather(1, 2 * end)
    tau += torch.where((even > 0.0) | (pairs.gather(1, end) >= 0.0), even, 0.0)
    ess = draws / tau.squeeze(1).clamp(min=1.0 / math.log10(draws))
    return ess.masked_fill(_constant(x), torch.nan)


def _rhat(x: Tensor) -> Tensor:
    """Gelman and Rubin's ratio of chains [N, chain, n] -> [N]."""
    n = x.shape[2]
    within = x.var(2).mean(1)
    between = n * x.mean(2).var(1)
    return ((between / within + (n - 1.0)) / n).sqrt().masked_fill(_constant(x), torch.nan)


def _mcse_quantile(ordered: Tensor, ess: Tensor, prob: float) -> Tensor:
    """Half the distance of the order statistics of [N, S] at the beta law's one-sigma probabilities -> [N]."""
    known = ~ess.isnan()
    n = torch.where(known, ess, 1.0)
    low, high = (_beta_quantile(p, n * prob + 1.0, n * (1.0 - prob) + 1.0) * ordered.shape[1] - 1.0 for p in ONE_SIGMA)
    first = low.floor().long().clamp(0, ordered.shape[1] - 1)
    last = high.ceil().long().clamp(0, ordered.shape[1] - 1)
    ends = ordered.gather(1, torch.stack((first, last), dim=1))
    return torch.where(known, (ends[:, 1] - ends[:, 0]) / 2.0, torch.nan)


def _beta_quantile(prob: float, a: Tensor, b: Tensor) -> Tensor:
    """The quantile of Beta(a, b), a and b >= 1, at a probability no nearer the middle than 1/e: Newton on the logit.

    In t = logit x the density exp(-a log(1 + e^-t) - b log(1 + e^t)) is smooth and log-concave, so that Gauss-Legendre
    integrates it on both sides of t. For log-concave laws 1/e <= F(mode) <= 1 - 1/e: the quantile is in the tail where
    F is convex or concave, and Newton cannot leave it.
    """
    nodes, weights = _gauss_legendre(NODES, a.device)
    a, b = a.unsqueeze(1), b.unsqueeze(1)  # [N, 1]
    mode = a.log() - b.log()

    def log_density(t: Tensor) -> Tensor:
        return a * logsigmoid(t) + b * logsigmoid(-t)

    peak = log_density(mode)

    def mass(low: Tensor, high: Tensor) -> Tensor:
        half = (high - low) / 2.0
        return half * ((log_density(low + half * (1.0 + nodes)) - peak).exp() @ weights)

    sd = (1.0 / a + 1.0 / b).sqrt()
    # Beyond these the density is below e^-24 of its peak: like a normal near the mode, like e^(a t), e^(-b t) far out.
    low, high = mode - 7.0 * sd - 24.0 / a, mode + 7.0 * sd + 24.0 / b
    t = mode - sd if prob < 0.5 else mode + sd
    for _ in range(8):  # quadratic from one standard deviation
        left, right = mass(low, t), mass(t, high)
        t = t - (left - prob * (left + right)) / (log_density(t) - peak).exp()
    return torch.sigmoid(t).squeeze(1)


def _gauss_legendre(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes [n] and weights [n, 1] on (-1, 1), by Golub and Welsch."""
    k = torch.arange(1, n, dtype=torch.float64)
    beside = k / (4.0 * k * k - 1.0).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return nodes.to(device), (2.0 * vectors[0].square()).unsqueeze(1).to(device)
