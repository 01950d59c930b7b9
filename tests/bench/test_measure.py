"""Samples, repeats and what is made of made-up timings."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable

import pytest

from bench import measure
from bench.measure import Timed, interleave, repeats_for, seconds, summarise


def test_ratios_are_paired_within_a_round() -> None:
    # The machine is twice as slow in every other round: medians of times mislead, paired ratios do not.
    slow = [1.0, 2.0, 1.0, 2.0, 1.0]
    samples = {"mine": [0.010 * s for s in slow], "other": [0.030 * s for s in slow]}
    found = summarise(samples, {"mine": 1.0, "other": 1.0}, "mine")
    assert found["other"][3:] == pytest.approx((3.0, 3.0, 3.0)) and found["mine"].ratio_median == pytest.approx(1.0)
    assert found["other"][:3] == pytest.approx((5, 0.030, 0.030))


def test_quartiles_are_of_the_ratios() -> None:
    samples = {"mine": [1.0] * 5, "other": [1.0, 5.0, 2.0, 4.0, 3.0]}
    found = summarise(samples, {"mine": 1.0, "other": 1.0}, "mine")["other"]
    assert (found.ratio_q1, found.ratio_median, found.ratio_q3) == (2.0, 3.0, 4.0)
    assert summarise({"mine": [2.0]}, {"mine": 1.0}, "mine")["mine"] == (1, 2.0, 2.0, 1.0, 1.0, 1.0)


def test_a_limit_is_compared_by_rate() -> None:
    """Other work in other time: the ratio is the subject's rate over the limit's."""
    found = summarise({"mine": [2.0], "limit": [1.0]}, {"mine": 160.0, "limit": 100.0}, "mine")
    assert found["limit"].ratio_median == pytest.approx(0.8)


def _clock(*steps: float) -> Callable[[], float]:
    times = itertools.accumulate(itertools.chain([0.0], itertools.cycle(steps)))
    return lambda: next(times)


def test_a_sample_is_the_mean_of_its_calls() -> None:
    calls: list[int] = []
    assert seconds(Timed(lambda: calls.append(1), 1.0), 4, _clock(2.0)) == 0.5
    assert len(calls) == 4


def test_a_rate_is_taken_at_its_word() -> None:
    assert seconds(Timed(lambda: 50.0, 2.0, rate=True), 9) == pytest.approx(0.04)
    assert repeats_for(Timed(lambda: 50.0, 2.0, rate=True)) == 1


def test_short_calls_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "seconds", lambda timed, repeats: 0.004)
    assert repeats_for(Timed(lambda: None, 1.0), 0.03) == 8
    monkeypatch.setattr(measure, "seconds", lambda timed, repeats: 0.5)
    assert repeats_for(Timed(lambda: None, 1.0), 0.03) == 1


def test_rounds_are_shuffled_by_the_seed_and_without_collection() -> None:
    def order(seed: int) -> list[str]:
        seen: list[str] = []
        collecting: list[bool] = []

        def note(name: str) -> float:
            seen.append(name)
            collecting.append(gc.isenabled())
            return 1.0

        timed = {name: Timed(lambda name=name: note(name), 1.0, rate=True) for name in "abc"}
        samples = interleave(timed, 8, seed=seed)
        assert {name: len(values) for name, values in samples.items()} == dict.fromkeys("abc", 8)
        assert not any(collecting) and gc.isenabled()
        return seen

    first = order(0)
    assert order(0) == first != order(1)
    rounds = [first[i : i + 3] for i in range(0, len(first), 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds) and len({tuple(r) for r in rounds}) > 1


def test_the_budget_ends_rounds_but_leaves_the_least() -> None:
    timed = {"a": Timed(lambda: 1.0, 1.0, rate=True)}
    assert len(interleave(timed, 50, budget_s=0.0, least=3)["a"]) == 3


def test_the_environment_holds_for_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEBM_ISA", "before")
    seen: list[str | None] = []
    changed = Timed(lambda: seen.append(os.environ.get("MMEBM_ISA")), 1.0, environment={"MMEBM_ISA": "avx2"})
    seconds(changed, 1)
    monkeypatch.delenv("MMEBM_ISA")
    seconds(changed, 1)
    assert seen == ["avx2", "avx2"] and "MMEBM_ISA" not in os.environ
