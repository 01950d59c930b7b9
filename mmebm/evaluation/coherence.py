"""Joint and cross coherence, diversity, and the rule that names a collapsed prior. Pure functions on predicted classes.

Conventions: MMVAE (Shi et al., NeurIPS 2019) and MMVAE+ (Palumbo et al., ICLR 2023): a joint sample is coherent where
all classifiers agree; cross coherence is the fraction of generated images of the source's class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .intervals import bootstrap_interval

__all__ = [
    "MINIMUM_ENTROPY",
    "Collapse",
    "JointResult",
    "class_counts",
    "class_entropy",
    "collapse",
    "cross_coherence",
    "joint_coherence",
    "joint_result",
    "standard_error",
]

MINIMUM_ENTROPY = 0.9


@dataclass(frozen=True)
class JointResult:
    """What n joint samples of one prior are like.

    Attributes:
        coherence: fraction of samples on which all modalities agree.
        entropy: of the predicted classes, pooled over modalities, in units of log(n_classes): 1 is uniform.
        counts: modality -> number of samples of each predicted class.
        frechet: modality -> Frechet distance to real images; empty where it was not measured.
        n: number of joint samples.
        interval: of `coherence`, 95%, by bootstrap over samples; None where it was not measured.
    """

    coherence: float
    entropy: float
    counts: dict[str, list[int]]
    frechet: dict[str, float] = field(default_factory=dict)
    n: int = 0
    interval: tuple[float, float] | None = None

    @property
    def standard_error(self) -> float:
        """Binomial standard error of `coherence`."""
        return standard_error(self.coherence, self.n)

    @property
    def mean_frechet(self) -> float:
        """Frechet distance averaged over modalities; NaN where it was not measured."""
        return sum(self.frechet.values()) / len(self.frechet) if self.frechet else math.nan

    def numbers(self) -> dict[str, Any]:
        """Everything as plain numbers, for JSON."""
        found = asdict(self) | {"interval": None if self.interval is None else list(self.interval)}
        return found | {"standard_error": self.standard_error, "mean_frechet": self.mean_frechet}


@dataclass(frozen=True)
class Collapse:
    """`collapsed`, and the reason in words: empty where it is not."""

    collapsed: bool
    reason: str


def standard_error(p: float, n: int) -> float:
    """sqrt(p (1 - p) / n), of a fraction p measured on n rows."""
    if not 0 <= p <= 1:
        raise ValueError(f"p: expected a fraction in [0, 1], got {p}")
    if n < 1:
        raise ValueError(f"n: expected at least 1 row, got {n}")
    return math.sqrt(p * (1 - p) / n)


def joint_coherence(predictions: Mapping[str, Tensor]) -> float:
    """Fraction of rows on which all modalities agree; predictions: modality -> int64 [N], at least two modalities."""
    stacked = _stack(predictions)
    if len(stacked) < 2:
        raise ValueError(f"predictions: expected at least two modalities to compare, got {list(predictions)}")
    return float(_agree(predictions).mean())


def _agree(predictions: Mapping[str, Tensor]) -> Tensor:
    """1 for rows on which all modalities agree, 0 for others: float64 [N]."""
    stacked = _stack(predictions)
    return (stacked == stacked[0]).all(dim=0).double()


def class_counts(predictions: Mapping[str, Tensor], n_classes: int = 10) -> dict[str, list[int]]:
    """modality -> how often each class was predicted; predictions: modality -> int64 [N]."""
    stacked = _stack(predictions, n_classes)
    return {
        name: torch.bincount(row, minlength=n_classes).tolist() for name, row in zip(predictions, stacked, strict=True)
    }


def class_entropy(predictions: Mapping[str, Tensor], n_classes: int = 10) -> float:
    """Entropy of the predicted classes pooled over modalities, divided by log(n_classes): 0 for one class, 1 for all.

    predictions: modality -> int64 [N].
    """
    if n_classes < 2:
        raise ValueError(f"n_classes: expected at least 2, got {n_classes}")
    p = torch.bincount(_stack(predictions, n_classes).flatten(), minlength=n_classes).double()
    p = p / p.sum()
    return float(torch.special.entr(p).sum()) / math.log(n_classes)


def cross_coherence(predictions: Mapping[str, Tensor], labels: Tensor) -> dict[str, float]:
    """Generated modality -> fraction of rows of the source's class.

    Args:
        predictions: generated modality -> int64 [N].
        labels: int64 [N], the sources' true classes.
    """
    stacked = _stack(predictions)
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != stacked.shape[1:]:
        got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels: expected int64 [{stacked.shape[1]}], got {got}")
    right = (stacked == labels.to(stacked.device)).double().mean(dim=1)
    return dict(zip(predictions, right.tolist(), strict=True))


def joint_result(
    predictions: Mapping[str, Tensor], frechet: Mapping[str, float] | None = None, n_classes: int = 10
) -> JointResult:
    """Everything measured on joint samples; predictions: modality -> int64 [N], frechet: modality -> distance."""
    frechet = dict(frechet or {})
    if frechet and set(frechet) != set(predictions):
        raise ValueError(f"frechet: expected the modalities {sorted(predictions)}, got {sorted(frechet)}")
    return JointResult(
        coherence=joint_coherence(predictions),
        entropy=class_entropy(predictions, n_classes),
        counts=class_counts(predictions, n_classes),
        frechet=frechet,
        n=len(next(iter(predictions.values()))),
        interval=bootstrap_interval(_agree(predictions)),
    )


def collapse(candidate: JointResult, baseline: JointResult) -> Collapse:
    """Whether a prior's coherence was bought with diversity or quality.

    It was where class entropy is below 0.9 (a prior that always draws one digit is perfectly coherent), or where the
    Frechet distance, averaged over modalities, is worse than the baseline's.

    Raises:
        ValueError: the distances were not measured, on other modalities, or on other numbers of samples, on which the
            estimate's bias depends.
    """
    if not candidate.frechet or set(candidate.frechet) != set(baseline.frechet):
        raise ValueError(
            f"frechet: expected distances on the same modalities, got {sorted(candidate.frechet)} for the candidate "
            f"and {sorted(baseline.frechet)} for the baseline"
        )
    if candidate.n != baseline.n:
        raise ValueError(f"n: expected as many samples from both, got {candidate.n} and {baseline.n}")
    reasons = []
    # Negated, so that NaN counts as a collapse.
    if not candidate.entropy >= MINIMUM_ENTROPY:
        reasons.append(f"class entropy {candidate.entropy:.3f} is below {MINIMUM_ENTROPY}")
    if not candidate.mean_frechet <= baseline.mean_frechet:
        ours, theirs = candidate.mean_frechet, baseline.mean_frechet
        reasons.append(f"mean Frechet distance {ours:.3f} is worse than the baseline's {theirs:.3f}")
    return Collapse(bool(reasons), "; ".join(reasons))


def _stack(predictions: Mapping[str, Tensor], n_classes: int | None = None) -> Tensor:
    """[M, N], checked."""
    if not predictions:
        raise ValueError("predictions: expected at least one modality, got none")
    rows = None
    for name, value in predictions.items():
        if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.ndim != 1:
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"predictions[{name!r}]: expected int64 [N], got {got}")
        rows = len(value) if rows is None else rows
        if len(value) != rows or rows == 0:
            raise ValueError(f"predictions[{name!r}]: expected {rows or 'at least one'} rows, got {len(value)}")
        if n_classes is not None and not 0 <= int(value.min()) <= int(value.max()) < n_classes:
            low, high = int(value.min()), int(value.max())
            raise ValueError(f"predictions[{name!r}]: expected classes in [0, {n_classes}), got {low}..{high}")
    return torch.stack(list(predictions.values()))
