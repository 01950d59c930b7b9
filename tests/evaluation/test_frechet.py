"""Frechet distance against closed forms."""

from __future__ import annotations

import pytest
import torch

from mmebm.evaluation.frechet import frechet_distance, frechet_gaussian


def covariance(d: int, rank: int | None = None) -> torch.Tensor:
    root = torch.randn(d, rank or d, dtype=torch.float64)
    return root @ root.T / d


def test_diagonal_gaussians() -> None:
    a, b = torch.rand(7).double() + 0.1, torch.rand(7).double() + 0.1
    mean = torch.randn(7).double()
    expected = mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert frechet_gaussian(mean, a.diag(), torch.zeros(7), b.diag()) == pytest.approx(float(expected), rel=1e-12)


def test_covariances_that_do_not_commute() -> None:
    """The trace of (A B)^1/2 is the sum of the square roots of A B's eigenvalues."""
    a, b, zero = covariance(6), covariance(6), torch.zeros(6)
    cross = torch.linalg.eigvals(a @ b).real.clamp_min(0).sqrt().sum()
    expected = float(a.trace() + b.trace() - 2 * cross)
    assert (a @ b - b @ a).norm() > 0.1
    assert frechet_gaussian(zero, a, zero, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_gaussian(zero, b, zero, a) == pytest.approx(expected, rel=1e-10)


def test_singular_covariances() -> None:
    """In one dimension of three: (sqrt(4) - sqrt(9))^2; across orthogonal ones nothing is shared."""
    zero = torch.zeros(3)
    e = torch.eye(3, dtype=torch.float64)
    assert frechet_gaussian(zero, 4 * e[:1].T @ e[:1], zero, 9 * e[:1].T @ e[:1]) == pytest.approx(1.0)
    assert frechet_gaussian(zero, 4 * e[:1].T @ e[:1], zero, 9 * e[1:2].T @ e[1:2]) == pytest.approx(13.0)


def test_samples_converge_to_the_closed_form() -> None:
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.3, 0.0, -1.0])
    a, b = torch.randn(100_000, 3), torch.randn(100_000, 3) * scale + shift
    expected = float(shift.square().sum() + (scale - 1).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=0.02)


def test_zero_on_itself_and_growing_with_distance() -> None:
    x = torch.randn(40, 64)  # fewer rows than dimensions
    assert frechet_distance(x, x.clone()) < 1e-3
    near, far = frechet_distance(x, x + 0.1), frechet_distance(x, x + 0.2)
    assert near == pytest.approx(0.64, rel=1e-2) and far == pytest.approx(2.56, rel=1e-2)


def test_dead_features_are_harmless() -> None:
    x = torch.randn(100, 5)
    dead = torch.cat([x, torch.zeros(100, 2)], 1)
    assert frechet_distance(dead, dead * 2) == pytest.approx(frechet_distance(x, x * 2), rel=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), "a: expected features"),
        (torch.zeros(5, 3), torch.zeros(5), "b: expected features"),
        (torch.zeros(5, 3), torch.zeros(5, 4), "b: expected 3 features as in a, got 4"),
        (torch.zeros(5, 3), torch.full((5, 3), torch.nan), "b: expected finite"),
    ],
)
def test_refusals(a: torch.Tensor, b: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        frechet_distance(a, b)


def test_moments_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cov_b: expected shape \[3, 3\], got \[2, 2\]"):
        frechet_gaussian(torch.zeros(3), torch.eye(3), torch.zeros(3), torch.eye(2))
