"""The four likelihoods against torch.distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch import distributions as D

from mmebm.likelihoods import LIKELIHOODS, Bernoulli, Categorical, Laplace, Likelihood, Normal

EVENT = (3, 4)


def bits(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape).double()


def one_hot(*shape: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.randint(shape[-1], shape[:-1]), shape[-1]).double()


def real(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


# law, what x looks like, the distribution over single entries (over the last dimension for Categorical)
CASES: list[tuple[Likelihood, Callable[..., Tensor], Callable[[Tensor], D.Distribution]]] = [
    (Laplace(2, 0.75), real, lambda mean: D.Laplace(mean, 0.75)),
    (Normal(2, 0.5), real, lambda mean: D.Normal(mean, 0.5)),
    (Bernoulli(2), bits, lambda logits: D.Bernoulli(logits=logits)),
    (Categorical(2), one_hot, lambda logits: D.OneHotCategorical(logits=logits)),
]
each_law = pytest.mark.parametrize(("law", "observed", "exact"), CASES, ids=lambda c: type(c).__name__)


def test_every_law_is_tested() -> None:
    assert {type(law) for law, _, _ in CASES} == set(LIKELIHOODS.values())


@each_law
@pytest.mark.parametrize("lead", [(), (5,), (2, 3, 5)], ids=str)
def test_log_prob(
    law: Likelihood, observed: Callable[..., Tensor], exact: Callable[[Tensor], D.Distribution], lead: tuple[int, ...]
) -> None:
    """x [B, ..] meets decoded [.., B, ..]; a sum over the event's two dimensions remains."""
    x, decoded = observed(*lead[-1:], *EVENT), 2.0 * real(*lead, *EVENT)
    expected = exact(decoded).log_prob(x.expand_as(decoded))
    got = law.log_prob(x, decoded)
    assert got.shape == lead
    torch.testing.assert_close(got, expected.flatten(len(lead)).sum(-1))


@each_law
def test_the_decoder_gets_its_gradient(
    law: Likelihood, observed: Callable[..., Tensor], exact: Callable[[Tensor], D.Distribution]
) -> None:
    x, decoded = observed(5, *EVENT), real(2, 5, *EVENT).requires_grad_()
    (got,) = torch.autograd.grad(law.log_prob(x, decoded).sum(), decoded)
    (expected,) = torch.autograd.grad(exact(decoded).log_prob(x.expand_as(decoded)).sum(), decoded)
    torch.testing.assert_close(got, expected)


@each_law
def test_mean(law: Likelihood, observed: Callable[..., Tensor], exact: Callable[[Tensor], D.Distribution]) -> None:
    decoded = real(5, *EVENT)
    torch.testing.assert_close(law.mean(decoded), exact(decoded).mean)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[-1e4, 1e4, 0.0]])
    right, wrong = torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    half = math.log(2.0)
    assert Bernoulli(1).log_prob(right, logits).item() == pytest.approx(-half)
    assert Bernoulli(1).log_prob(wrong, logits).item() == pytest.approx(-2e4 - half)
    assert Categorical(1).log_prob(torch.tensor([[1.0, 0.0, 0.0]]), logits).item() == pytest.approx(-2e4)


def test_grey_values_have_a_bernoulli_score() -> None:
    """x log p + (1 - x) log (1 - p), as image VAEs use it."""
    x, logits = torch.rand(6, 4, dtype=torch.float64), real(6, 4)
    p = torch.sigmoid(logits)
    torch.testing.assert_close(Bernoulli(1).log_prob(x, logits), (x * p.log() + (1 - x) * (1 - p).log()).sum(1))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_bad_scale_is_refused(name: str, scale: float) -> None:
    with pytest.raises(ValueError, match=r"^scale: expected a finite number > 0, got "):
        LIKELIHOODS[name](1, scale)
