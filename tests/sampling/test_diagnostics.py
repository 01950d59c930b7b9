"""Diagnostics against plain loops, ArviZ's own numbers, and chains whose effective sample size is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mmebm.sampling import diagnostics
from mmebm.sampling.diagnostics import autocorrelation, effective_sample_size, mcse, quantiles, rhat

Chains = list[np.ndarray]
KINDS: tuple[str | float, ...] = ("bulk", "tail", "mean", "sd", 0.3)
RESULTS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"ess {kind}": lambda x, kind=kind: effective_sample_size(x, kind) for kind in KINDS},
    "rhat": rhat,
    "mcse mean": mcse,
    "mcse sd": lambda x: mcse(x, "sd"),
    "mcse 0.3": lambda x: mcse(x, "quantile", 0.3),
}
each_result = pytest.mark.parametrize("name", RESULTS)


# Plain loops of the formulas -----------------------------------------------------------------------------------------


def halves(draws: np.ndarray) -> Chains:
    n = draws.shape[1] // 2
    return [c[:n] for c in draws] + [c[len(c) - n :] for c in draws]


def scores(chains: Chains) -> Chains:
    everything = np.concatenate(chains)

    def score(x: float) -> float:
        rank = (everything < x).sum() + ((everything == x).sum() + 1) / 2
        return NormalDist().inv_cdf((rank - 3 / 8) / (len(everything) + 1 / 4))

    return [np.array([score(x) for x in chain]) for chain in chains]


def covariance(chain: np.ndarray, lag: int) -> float:
    mean = chain.mean()
    return sum((chain[t] - mean) * (chain[t + lag] - mean) for t in range(len(chain) - lag)) / len(chain)


def plain_ess(chains: Chains) -> float:
    everything = np.concatenate(chains)
    if everything.min() == everything.max():
        return math.nan
    m, n = len(chains), len(chains[0])
    variance = np.mean([covariance(c, 0) for c in chains])
    within = variance * n / (n - 1)
    total = variance + np.var([c.mean() for c in chains], ddof=1)

    def rho(lag: int) -> float:
        return 1.0 if lag == 0 else 1 - (within - np.mean([covariance(c, lag) for c in chains])) / total

    pairs, k = [], 0
    while True:
        pair = rho(2 * k) + rho(2 * k + 1)
        assert abs(pair) > 1e-9, "a case that rounding decides compares nothing"
        if pair < 0 or 2 * (k + 1) > n - 3:
            break
        pairs.append(pair if not pairs else min(pair, pairs[-1]))
        k += 1
    last = rho(2 * k)
    tau = -1 + 2 * sum(pairs) + (last if last > 0 or pair >= 0 else 0.0)
    return m * n / max(tau, 1 / math.log10(m * n))


def plain_rhat(chains: Chains) -> float:
    n = len(chains[0])
    within = np.mean([c.var(ddof=1) for c in chains])
    between = n * np.var([c.mean() for c in chains], ddof=1)
    return math.sqrt((between / within + n - 1) / n)


def plain(name: str, x: np.ndarray) -> float:
    def indicator(prob: float) -> float:
        return plain_ess(halves((x <= np.quantile(x, prob)).astype(float)))

    if name == "rhat":
        split = halves(x)
        middle = np.median(split)
        return max(plain_rhat(scores(split)), plain_rhat(scores([abs(c - middle) for c in split])))
    square = (x - x.mean()) ** 2
    if name == "mcse mean":
        return x.std(ddof=1) / math.sqrt(plain_ess(halves(x)))
    if name == "mcse sd":
        return math.sqrt(square.var() / plain_ess(halves(square)) / square.mean() / 4)
    if name == "mcse 0.3":
        ess = indicator(0.3)
        low, high = stats.beta.ppf([0.1586553, 0.8413447], 0.3 * ess + 1, 0.7 * ess + 1) * x.size - 1
        ordered = np.sort(x, axis=None)
        return (ordered[math.ceil(min(high, x.size - 1))] - ordered[math.floor(max(low, 0))]) / 2
    return {
        "ess bulk": lambda: plain_ess(scores(halves(x))),
        "ess tail": lambda: float(np.nanmin([indicator(0.05), indicator(0.95)])),
        "ess mean": lambda: plain_ess(halves(x)),
        "ess sd": lambda: plain_ess(halves(square)),
        "ess 0.3": lambda: indicator(0.3),
    }[name]()


def autoregressive(chains: int, draws: int, *shape: int, rho: float) -> Tensor:
    """Standard normal AR(1) chains, in their law from the first draw on: float64 [chain, draw, *shape]."""
    x = torch.randn(chains, draws, *shape, dtype=torch.float64)
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho * rho) * x[:, t]
    return x


LAWS: dict[str, Callable[[int, int], Tensor]] = {
    "independent": lambda c, n: torch.randn(c, n, dtype=torch.float64),
    "slow": lambda c, n: autoregressive(c, n, rho=0.9),
    "alternating": lambda c, n: autoregressive(c, n, rho=-0.6),
    "cauchy": lambda c, n: torch.empty(c, n, dtype=torch.float64).cauchy_(),
    "ties": lambda c, n: (3 * autoregressive(c, n, rho=0.5)).round(),
    "apart": lambda c, n: torch.randn(c, n, dtype=torch.float64) + torch.arange(c).unsqueeze(1),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("chains", "draws"), [(4, 60), (3, 61), (1, 50), (20, 11), (2, 9), (2, 8), (3, 6), (5, 4)])
def test_plain_loops_agree(law: str, chains: int, draws: int) -> None:
    torch.manual_seed(1)
    x = LAWS[law](chains, draws)
    for name, f in RESULTS.items():
        # Sums of at most some hundred terms in float64, scores to 1e-15: nine digits are far above what is lost.
        assert float(f(x)) == pytest.approx(plain(name, x.numpy()), rel=1e-9, nan_ok=True), name


@pytest.mark.parametrize("draws", [8, 10, 11, 12])
def test_short_sequences_end_in_every_way(draws: int) -> None:
    """A hundred chains in a batch: cut at once, in the middle, or never, at even lags of either sign."""
    torch.manual_seed(12)
    x = autoregressive(2, draws, 100, rho=-0.3)
    expected = [plain_ess(halves(x[..., j].numpy())) for j in range(100)]
    assert effective_sample_size(x, "mean").tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("draws", [1, 2, 5, 64, 101])
def test_autocorrelation_is_the_sum(draws: int) -> None:
    x = autoregressive(2, draws, 3, rho=0.5)
    got = autocorrelation(x)
    assert got.shape == x.shape
    for c in range(2):
        for j in range(3):
            chain = x[c, :, j].numpy()
            zero = covariance(chain, 0) or math.nan  # one draw is a constant chain
            expected = [covariance(chain, lag) / zero for lag in range(draws)]
            assert got[c, :, j].tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)


# ArviZ 0.23.4 on chains that any language computes alike -------------------------------------------------------------


def sequence(chains: int, draws: int) -> Tensor:
    """x <- x / 2 + u - 1/2 from a linear congruential generator, exact in float64."""
    state, rows = 12345, []
    for _ in range(chains):
        x, row = 0.0, []
        for _ in range(draws):
            state = (1103515245 * state + 12345) % 2**31
            x = 0.5 * x + state / 2**31 - 0.5
            row.append(x)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


ARVIZ: dict[str, tuple[Tensor, tuple[float | None, ...]]] = {  # in the order of RESULTS
    "smooth": (
        sequence(4, 101),
        (112.35791102650437, 237.1513420577747, 115.70376117706357, 247.5682459549067, 170.16104527499238,
         1.011815212792318, 0.031128762489182164, 0.011887940479307576, 0.04277313888278167),
    ),
    "ties": (
        (8 * sequence(4, 101)).floor() / 8,
        (111.359124083549, 196.88257260048474, 114.34288518207491, 245.03058082344572, 187.86986482146312,
         1.0128901538753603, 0.03153892447283897, 0.011846443581524476, 0.0625),
    ),
    "one chain": (  # ArviZ gives no R-hat for it
        sequence(1, 60),
        (25.45602000389086, 37.54855416486836, 24.03270640276645, 59.856824771025444, 33.611224074827156,
         None, 0.06033581425536197, 0.02250864824539683, 0.06617878098541041),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ARVIZ)
def test_arviz_gives_the_same(case: str) -> None:
    x, values = ARVIZ[case]
    expected = {name: value for name, value in zip(RESULTS, values, strict=True) if value is not None}
    assert {name: float(RESULTS[name](x)) for name in expected} == pytest.approx(expected, rel=1e-10)


# What is known -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.5])
def test_ess_of_autoregressive_chains(rho: float) -> None:
    """S / tau, tau = 1 + 2 sum of autocorrelations: rho^t of the draws and so of their scores, rho^2t of the squares,
    (2 / pi) arcsin rho^t of the median's indicator.

    A sum cut at lag M has relative variance 2 (2 M + 1) / S (Madras and Sokal 1988); Geyer's cut falls where rho^M is
    in the noise, 1 / sqrt(S), and leaves out what is of that size.
    """
    torch.manual_seed(2)
    coordinates, chains, draws = 64, 4, 4000
    total = chains * draws
    x = autoregressive(chains, draws, coordinates, rho=rho)
    autocorrelations: dict[str | float, Callable[[float], float]] = {
        "mean": lambda r: r,
        "bulk": lambda r: r,
        "sd": lambda r: r * r,
        0.5: lambda r: 2 / math.pi * math.asin(r),
    }
    for kind, f in autocorrelations.items():
        tau = 1 + 2 * sum(f(rho**t) for t in range(1, 400))
        assert kind in ("sd", 0.5) or tau == pytest.approx((1 + rho) / (1 - rho))
        ratio = effective_sample_size(x, kind) * tau / total
        cut = 2 + (math.log(total) / 2 / -math.log(abs(rho)) if rho else 0)
        error = math.sqrt(2 * (2 * cut + 1) / total)
        assert ((ratio - 1).abs() < 5 * error).all(), kind
        assert abs(float(ratio.mean()) - 1) < 5 * error / math.sqrt(coordinates) + 2 / math.sqrt(total), kind


@pytest.mark.parametrize(("kind", "prob"), [("mean", None), ("sd", None), ("quantile", 0.5), ("quantile", 0.9)])
def test_standard_errors_are_the_spread_of_estimates(kind: str, prob: float | None) -> None:
    """(estimate - truth) / mcse of 1000 independent runs has mean square 1, to 5 sqrt(2 / 1000)."""
    torch.manual_seed(3)
    runs = 1000
    x = autoregressive(4, 500, runs, rho=0.5)
    truth = {"mean": 0.0, "sd": 1.0}.get(kind) if prob is None else NormalDist().inv_cdf(prob)
    flat = x.flatten(0, 1)
    estimate = {"mean": flat.mean(0), "sd": flat.std(0)}.get(kind) if prob is None else quantiles(x, (prob,))[0]
    deviate = (estimate - truth) / mcse(x, kind, prob)
    assert abs(float(deviate.square().mean()) - 1) < 5 * math.sqrt(2 / runs)


def test_rhat_catches_a_shift_a_scale_and_a_drift() -> None:
    torch.manual_seed(4)
    x = torch.randn(4, 1000, 4, dtype=torch.float64)
    x[0, :, 1] += 1.0
    x[0, :, 2] *= 3.0
    x[:, :500, 3] += 1.0  # every chain alike: only halves can tell
    same, shifted, scaled, drifting = rhat(x).tolist()
    # In the law R-hat - 1 is (chi^2_7 / 7 - 1) / (2 n), n = 500: 0.004 is passed once in 10^5.
    assert same < 1.004 and min(shifted, scaled, drifting) > 1.01
    assert plain_rhat(scores(halves(x[..., 2].numpy()))) < 1.004, "only the folded part can have seen the scale"


def test_ranks_do_not_mind_heavy_tails() -> None:
    torch.manual_seed(5)
    x = torch.empty(4, 1000, 32, dtype=torch.float64).cauchy_()
    error = math.sqrt(2 * 5 / 4000)  # as above, M = 2
    for kind in ("bulk", "tail"):
        assert ((effective_sample_size(x, kind) / 4000 - 1).abs() < 5 * error).all()
    assert (rhat(x) < 1.01).all()
    x[0] += 3.0
    assert (rhat(x) > 1.01).all()


def test_bulk_and_tail_know_the_order_alone() -> None:
    torch.manual_seed(6)
    x = autoregressive(3, 200, 5, rho=0.7)
    assert torch.equal(effective_sample_size(x), effective_sample_size(x**3 + 5 * x))
    x[..., 0] = x[..., 0].round()
    assert torch.equal(effective_sample_size(x), effective_sample_size(torch.exp(x)))


def test_ess_is_capped() -> None:
    """Chains that alternate exactly would have infinite ESS; S log10 S is the bound."""
    torch.manual_seed(14)
    x = torch.tensor([1.0, -1.0]).repeat(2, 50) + 1e-3 * torch.randn(2, 100)
    assert float(effective_sample_size(x, "mean")) == pytest.approx(200 * math.log10(200))


# The batch -----------------------------------------------------------------------------------------------------------


def mixed_batch() -> Tensor:
    torch.manual_seed(7)
    x = autoregressive(5, 83, 3, 2, rho=0.6)
    x[..., 1, 0].round_()
    x[..., 2, 1].exp_()
    return x


@each_result
def test_a_batch_is_its_coordinates_one_by_one(name: str) -> None:
    x, f = mixed_batch(), RESULTS[name]
    got = f(x)
    assert got.shape == (3, 2) and got.dtype == torch.float64
    one_by_one = torch.stack([f(x[..., i, j]) for i in range(3) for j in range(2)]).view(3, 2)
    torch.testing.assert_close(got, one_by_one, rtol=1e-12, atol=0.0)


@each_result
def test_the_order_of_chains_and_the_direction_of_time_change_nothing(name: str) -> None:
    x, f = mixed_batch(), RESULTS[name]
    for other in (x[torch.randperm(5)], x.flip(1)):
        torch.testing.assert_close(f(other), f(x), rtol=1e-10, atol=0.0)


@each_result
def test_float32_is_taken_exactly_and_draws_are_left_alone(name: str) -> None:
    x, f = mixed_batch().float().requires_grad_(), RESULTS[name]
    before = x.detach().clone()
    got = f(x)
    assert not got.requires_grad and torch.equal(x, before)
    assert torch.equal(got, f(before.double()))
    assert torch.equal(got, f(x.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)))  # any strides


@each_result
def test_everything_stays_on_the_device_of_the_draws(name: str) -> None:
    """On the meta device, where a tensor made elsewhere is an error."""
    draws = torch.empty(4, 20, 3, device="meta")
    assert RESULTS[name](draws).device == draws.device
    assert autocorrelation(draws).device == draws.device


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = mixed_batch()
    for name, f in RESULTS.items():
        torch.testing.assert_close(f(x.cuda()).cpu(), f(x), rtol=1e-9, atol=0.0, msg=name)
    torch.testing.assert_close(autocorrelation(x.cuda()).cpu(), autocorrelation(x), rtol=0.0, atol=1e-12)


# What cannot be known ------------------------------------------------------------------------------------------------


@each_result
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_spoils_its_coordinate_alone(name: str, value: float) -> None:
    x, f = mixed_batch(), RESULTS[name]
    clean = f(x)
    x[2, 17, 0, 1] = value
    got = f(x)
    assert got[0, 1].isnan() and not clean.isnan().any()
    keep = torch.ones(3, 2, dtype=torch.bool)
    keep[0, 1] = False
    assert torch.equal(got[keep], clean[keep])


@each_result
def test_constant_draws_are_unknown(name: str) -> None:
    x = torch.randn(4, 50, 3)
    x[..., 1] = 0.1  # whose mean over 50 is not 0.1
    assert RESULTS[name](x).isnan().tolist() == [False, True, False]


@each_result
@pytest.mark.parametrize("draws", [1, 2, 3])
def test_three_draws_are_too_few(name: str, draws: int) -> None:
    assert RESULTS[name](torch.randn(8, draws, 2)).isnan().all()
    assert RESULTS[name](torch.randn(8, 4, 2)).isfinite().all()


def test_autocorrelation_is_unknown_for_a_chain_alone() -> None:
    x = torch.randn(4, 30, 2)
    x[1, :, 0], x[2, 5, 1], x[3, 5, 1] = 0.1, math.nan, math.inf
    unknown = autocorrelation(x).isnan()
    assert torch.equal(unknown, unknown[:, :1].expand_as(unknown))
    assert unknown[:, 0].tolist() == [[False, False], [True, False], [False, True], [False, True]]


def test_chains_that_stand_still() -> None:
    """Each in its own place: R-hat is infinite, and a draw is as good as the whole chain."""
    x = torch.tensor([0.1, 0.2, 0.3, 0.7]).view(4, 1).expand(4, 60)
    assert float(rhat(x)) == math.inf
    assert float(effective_sample_size(x)) < 8.0
    assert float(rhat(torch.linspace(0, 1, 40).unsqueeze(1).expand(40, 60))) == math.inf
    x = torch.cat((x[:3], torch.randn(1, 60)))
    assert 1.5 < float(rhat(x)) < math.inf


def test_two_values_fold_to_a_constant() -> None:
    torch.manual_seed(8)
    x = torch.stack([torch.randperm(100) % 2 for _ in range(4)]).double()  # median 1/2
    expected = plain_rhat(scores(halves(x.numpy())))
    assert float(rhat(x)) == pytest.approx(expected, rel=1e-9)
    # Squared distances from their mean are one value up to rounding: the sd is known, its error is not.
    assert effective_sample_size(0.1 + x / 3, "sd").isnan()


def test_a_constant_indicator_leaves_the_tail_to_the_other() -> None:
    torch.manual_seed(9)
    x = (torch.rand(4, 100) < 0.8).double()  # the 95% quantile is the largest value
    assert effective_sample_size(x, 0.95).isnan()
    assert torch.equal(effective_sample_size(x, "tail"), effective_sample_size(x, 0.05))


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prob", diagnostics.ONE_SIGMA)
def test_beta_quantiles(prob: float) -> None:
    """To 1e-8 in probability: e^-24 of tails, and (a + b) eps of rounding."""
    rng = np.random.default_rng(10)
    a, b = 1 + 10 ** rng.uniform(-6, 6, (2, 2000))
    x = diagnostics._beta_quantile(prob, torch.tensor(a), torch.tensor(b)).numpy()
    assert np.abs(stats.beta.cdf(x, a, b) - prob).max() < 1e-8


def test_quantiles_are_numpys() -> None:
    torch.manual_seed(11)
    x = torch.randn(3, 17, 2, dtype=torch.float64)
    probs = (0.0, 0.05, 0.3, 0.5, 1.0)
    for p, got in zip(probs, quantiles(x, probs), strict=True):
        np.testing.assert_allclose(got.numpy(), np.quantile(x.numpy(), p, axis=(0, 1)), rtol=1e-14)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: rhat([[1.0]]), TypeError, "draws: expected a tensor"),
        (lambda: rhat(torch.zeros(4, 10).long()), TypeError, "draws: expected a floating dtype, got torch.int64"),
        (lambda: mcse(torch.zeros(10)), ValueError, r"draws: expected \[chain, draw, ..\].*got shape \[10\]"),
        (lambda: autocorrelation(torch.zeros(4, 0)), ValueError, r"draws: expected.*got shape \[4, 0\]"),
        (lambda: effective_sample_size(torch.zeros(0, 4)), ValueError, r"draws: expected.*got shape \[0, 4\]"),
        (lambda: effective_sample_size(torch.zeros(4, 9), "all"), ValueError, "kind: expected 'bulk', .* got 'all'"),
        (lambda: rhat(torch.zeros(4, 9, 0)), ValueError, r"draws: expected.* and coordinate, got shape \[4, 9, 0\]"),
        (lambda: effective_sample_size(torch.zeros(4, 9), 1.0), ValueError, r"kind: expected a probability in \(0, 1"),
        (lambda: effective_sample_size(torch.zeros(4, 9), None), TypeError, "kind: expected .* got None"),
        (lambda: mcse(torch.zeros(4, 9), "bulk"), ValueError, "kind: expected 'mean', 'sd' or 'quantile', got 'bulk'"),
        (lambda: mcse(torch.zeros(4, 9), "quantile"), ValueError, "prob: expected a probability with kind='quantile'"),
        (lambda: mcse(torch.zeros(4, 9), "sd", 0.5), ValueError, "prob: expected a probability with kind='quantile'"),
        (lambda: mcse(torch.zeros(4, 9), "quantile", 0.0), ValueError, r"kind: expected a probability in \(0, 1\)"),
    ],
)  # fmt: skip
def test_refusals(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
