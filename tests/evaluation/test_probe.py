"""The linear probe reads what is linear, and no more."""

from __future__ import annotations

import pytest
import torch

from mmebm.evaluation.probe import linear_probe


def test_separable_latents_are_read_whatever_their_scale() -> None:
    scale = torch.tensor([1e-3, 1e-3, 1e-3, 10.0])  # what tells the classes apart is the smallest
    y = torch.arange(400) % 3
    z = (torch.eye(3, 4)[y] + 0.05 * torch.randn(400, 4)) * scale + 10 * torch.randn(400, 1) * torch.tensor(
        [0, 0, 0, 1]
    )
    found = linear_probe(z[:300], y[:300], z[300:], y[300:])
    assert found.train > 0.98 and found.test > 0.98
    assert (found.n_train, found.n_test) == (300, 100)


def test_noise_and_parity_are_not_read() -> None:
    z = torch.randn(2000, 2)
    for y in (torch.randint(2, (2000,)), (z[:, 0] * z[:, 1] > 0).long()):
        assert linear_probe(z[:1000], y[:1000], z[1000:], y[1000:]).test < 0.6


def test_refusals() -> None:
    z, y = torch.randn(10, 3), torch.arange(10) % 2
    with pytest.raises(ValueError, match=r"y_test: expected int64 \[10\], got torch.int64 \[9\]"):
        linear_probe(z, y, z, y[:9])
    with pytest.raises(ValueError, match="z_test: expected 3 dimensions as in z_train, got 2"):
        linear_probe(z, y, z[:, :2], y)
    with pytest.raises(ValueError, match="z_train: expected finite"):
        linear_probe(z * torch.nan, y, z, y)
    with pytest.raises(ValueError, match="y_train: expected at least two classes, got only 0"):
        linear_probe(z, y * 0, z, y)
