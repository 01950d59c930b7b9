"""The p-values that the tiers stand on: uniform where all is well, tiny where it is not; and the session's limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import scipy.stats
import torch
from torch import Tensor

from . import conftest, laws

N = 4000


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The session's comparisons, those made here forgotten afterwards."""
    made: list[str] = []
    monkeypatch.setattr(laws, "made", made)
    yield made


def poisson(scale: float) -> float:
    return laws.rare(torch.poisson(torch.tensor(200.0 * scale)), 200.0)


def cells(scale: float) -> float:
    observed = torch.bincount((torch.rand(N) ** scale * 20).long(), minlength=20)
    return laws.counts(observed, torch.full((20,), 0.05))


# What is wrong by 0 (all is well) or by a fifth -> p.
COMPARISONS: dict[str, Callable[[float], float | Tensor]] = {
    "mean": lambda wrong: laws.mean(torch.randn(N) + wrong, 0.0, 1.0),
    "mean, spread estimated": lambda wrong: laws.mean(torch.rand(N) + wrong, 0.5),
    "same_mean": lambda wrong: laws.same_mean(torch.randn(2 * N), 2.0 * torch.randn(9 * N) + wrong),
    "squares": lambda wrong: laws.squares(torch.randn(N) * (1.0 + wrong)),
    "counts": lambda wrong: cells(1.0 + 2.0 * wrong),
    "same_counts": lambda wrong: laws.same_counts(
        *(torch.bincount((torch.rand(N) ** power * 5).long(), minlength=5) for power in (1.0, 1.0 + 4.0 * wrong))
    ),
    "rare": lambda wrong: poisson(1.0 + 6.0 * wrong),
    "uniform": lambda wrong: laws.uniform(torch.rand(N) ** (1.0 + 2.0 * wrong)),
    "same_law": lambda wrong: laws.same_law(torch.randn(2 * N), torch.randn(3 * N) + 1.5 * wrong),
    "student": lambda wrong: laws.student(torch.randn(60) + 15.0 * wrong, 0.0),
    "product": lambda wrong: laws.product(x := torch.randn(N), torch.randn(N) + 1.5 * wrong * x),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_p_is_uniform_where_all_is_well_and_tiny_where_not(name: str) -> None:
    """Of 150 samples; for counts, whose p come in lumps, it is at least not too often small."""
    p = torch.tensor([float(COMPARISONS[name](0.0)) for _ in range(150)], dtype=torch.float64).clamp_max(1.0)
    below = torch.tensor([(p <= level).sum() for level in (0.01, 0.1, 0.3, 0.5)])
    for count, level in zip(below, (0.01, 0.1, 0.3, 0.5), strict=True):
        assert scipy.stats.binom.sf(int(count) - 1, 150, level) > laws.SIGNIFICANCE
    assert p.mean() < 0.65
    assert laws.rejects(COMPARISONS[name](0.2))


def test_judge_fails_and_counts(ledger: list[str]) -> None:
    laws.judge(0.3, "one")
    laws.judge(torch.tensor([0.3, laws.SIGNIFICANCE], dtype=torch.float64), "two")
    assert ledger == ["one", "two", "two"]
    for p in (0.99e-9, 0.0, float("nan"), torch.tensor([0.5, 0.0])):
        with pytest.raises(pytest.fail.Exception, match="what: p = "):
            laws.judge(p, "what")
    assert laws.rejects(0.99e-9) and not laws.rejects(1e-9)


@pytest.mark.parametrize(("count", "status"), [(laws.MOST_COMPARISONS, 0), (laws.MOST_COMPARISONS + 1, 1)])
def test_a_session_may_not_compare_more(count: int, status: int, ledger: list[str]) -> None:
    ledger += ["comparison"] * count
    session = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    conftest.pytest_sessionfinish(session)
    assert session.exitstatus == status


def test_sessions_share_no_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    for shift in (-1, 0, 1):
        monkeypatch.setattr(laws, "SHIFT", shift)
        seeds += [laws.seed(number) for number in (0, 1, 2**20 - 1)]
    assert seeds == sorted(set(seeds))
    assert laws.stream(3, 4, 5).tolist() == [laws.seed(3), 4, 5]
