"""Coherence, diversity and the collapse rule on predictions whose outcome is counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmebm.evaluation.coherence import (
    JointResult,
    class_counts,
    class_entropy,
    collapse,
    cross_coherence,
    joint_coherence,
    joint_result,
    standard_error,
)

PREDICTIONS = {"a": torch.tensor([0, 1, 2, 3]), "b": torch.tensor([0, 1, 9, 3]), "c": torch.tensor([0, 1, 2, 4])}


def test_joint_coherence_wants_all_modalities_to_agree() -> None:
    assert joint_coherence(PREDICTIONS) == 0.5
    assert joint_coherence({k: PREDICTIONS[k] for k in "ab"}) == 0.75
    with pytest.raises(ValueError, match="at least two modalities"):
        joint_coherence({"a": PREDICTIONS["a"]})


def test_chance_level() -> None:
    draws = {m: torch.randint(10, (200_000,)) for m in "ab"}
    assert joint_coherence(draws) == pytest.approx(0.1, abs=5 * standard_error(0.1, 200_000))


def test_cross_coherence_is_accuracy_against_the_source() -> None:
    assert cross_coherence(PREDICTIONS, torch.tensor([0, 1, 2, 4])) == {"a": 0.75, "b": 0.5, "c": 1.0}
    with pytest.raises(ValueError, match=r"labels: expected int64 \[4\], got torch.int64 \[3\]"):
        cross_coherence(PREDICTIONS, torch.arange(3))


def test_entropy_and_counts() -> None:
    ten = torch.arange(10)
    assert class_entropy({"a": ten, "b": ten}) == pytest.approx(1.0)
    assert class_entropy({"a": torch.zeros(10, dtype=torch.int64)}) == 0.0
    assert class_entropy({"a": torch.tensor([0, 0, 1, 1])}) == pytest.approx(math.log(2) / math.log(10))
    # Pooled: one modality stuck on a class counts beside one that is not.
    assert class_entropy({"a": ten, "b": torch.zeros(10, dtype=torch.int64)}) < 0.9
    assert class_counts({"a": torch.tensor([0, 0, 2])}, 4) == {"a": [2, 0, 1, 0]}


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ({}, ValueError, "at least one modality"),
        ({"a": torch.zeros(3)}, TypeError, r"predictions\['a'\]: expected int64 \[N\], got torch.float32"),
        ({"a": torch.arange(3), "b": torch.arange(4)}, ValueError, r"predictions\['b'\]: expected 3 rows, got 4"),
        ({"a": torch.arange(0)}, ValueError, r"predictions\['a'\]: expected at least one rows, got 0"),
        ({"a": torch.tensor([0, 10])}, ValueError, r"classes in \[0, 10\), got 0..10"),
    ],
)
def test_predictions_are_checked(bad: dict[str, Tensor], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        class_entropy(bad)


def test_joint_result() -> None:
    result = joint_result(PREDICTIONS, {"a": 1.0, "b": 2.0, "c": 6.0})
    assert (result.coherence, result.n, result.mean_frechet) == (0.5, 4, 3.0)
    assert result.standard_error == 0.25
    assert result.counts["b"] == [1, 1, 0, 1, 0, 0, 0, 0, 0, 1]
    with pytest.raises(ValueError, match=r"frechet: expected the modalities \['a', 'b', 'c'\], got \['a'\]"):
        joint_result(PREDICTIONS, {"a": 1.0})


def result(entropy: float, *frechet: float, n: int = 100) -> JointResult:
    return JointResult(0.9, entropy, {}, dict(zip("ab", frechet, strict=False)), n)


def test_collapse() -> None:
    baseline = result(0.97, 10.0, 20.0)
    fine = collapse(result(0.95, 12.0, 17.0), baseline)
    assert not fine.collapsed and fine.reason == ""
    assert not collapse(baseline, baseline).collapsed
    one_class = collapse(result(0.89, 5.0, 5.0), baseline)
    assert one_class.collapsed and one_class.reason == "class entropy 0.890 is below 0.9"
    worse = collapse(result(0.95, 10.0, 21.0), baseline)
    assert worse.collapsed and "15.500 is worse than the baseline's 15.000" in worse.reason
    assert collapse(result(0.1, 50.0, 50.0), baseline).reason.count(";") == 1
    assert collapse(result(math.nan, 5.0, 5.0), baseline).collapsed
    assert collapse(result(0.95, math.nan, 5.0), baseline).collapsed


def test_collapse_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="distances on the same modalities"):
        collapse(result(0.95), result(0.95))
    with pytest.raises(ValueError, match="distances on the same modalities"):
        collapse(result(0.95, 1.0), result(0.95, 1.0, 2.0))
    with pytest.raises(ValueError, match="as many samples from both, got 100 and 50"):
        collapse(result(0.95, 1.0), result(0.95, 1.0, n=50))


def test_standard_error() -> None:
    assert standard_error(0.2, 1600) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="p: expected a fraction"):
        standard_error(1.1, 10)
    with pytest.raises(ValueError, match="n: expected at least 1"):
        standard_error(0.5, 0)
