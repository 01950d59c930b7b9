"""Frechet inception distances: with another network in Inception's place, and what is said without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmebm.data import MultimodalDataset
from mmebm.evaluation import fid
from mmebm.evaluation.evaluate import evaluate
from mmebm.evaluation.frechet import frechet_distance
from mmebm.models import MMVAE
from mmebm.priors import StandardLaplace

SHAPES = {"a": (3, 8, 8), "b": (1, 8, 8), "numbers": (4,)}
SEED = 3


def features(images: Tensor) -> Tensor:
    """What is asked of it is looked at: bytes of three channels."""
    assert images.dtype == torch.uint8 and images.shape[1:] == (3, 8, 8)
    flat = images.flatten(1).float() / 255.0
    return flat @ torch.linspace(-1.0, 1.0, flat.shape[1] * 5).view(-1, 5).sin()


def parts(masked: bool = False) -> tuple[MMVAE, MultimodalDataset]:
    torch.manual_seed(0)
    model = MMVAE(SHAPES, StandardLaplace(3), hidden=(8,)).eval()
    values = {m: torch.rand(60, *s) for m, s in SHAPES.items()}
    masks = {"a": torch.arange(60) % 3 > 0} if masked else None
    return model, MultimodalDataset(values, None, "toy", "test", masks=masks)


def test_distances_are_those_of_the_features() -> None:
    model, data = parts()
    real = fid.real_features(data, features, ["a", "b"])
    assert {m: x.shape for m, x in real.items()} == {"a": (60, 5), "b": (60, 5)}
    z = model.prior.sample(50, seed=SEED)
    found = fid.joint_fid(model, z, features, real, SEED)
    for m, x in model.decode(z, ["a", "b"], seed=SEED).items():
        bytes_ = (x.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        assert found[m] == pytest.approx(frechet_distance(features(bytes_), real[m]))
    crossed = fid.cross_fid(model, data, features, real, 40, SEED)
    assert {s: set(t) for s, t in crossed.items()} == {"a": {"a", "b"}, "b": {"a", "b"}}
    made = model.cross_generate(data.batch(torch.arange(40)), "b", "a", seed=SEED)["a"]
    bytes_ = (made.clamp(0, 1) * 255).round().to(torch.uint8)
    assert crossed["b"]["a"] == pytest.approx(frechet_distance(features(bytes_), real["a"]))


def test_real_pictures_are_those_that_are_there() -> None:
    _, data = parts(masked=True)
    assert len(fid.real_features(data, features, ["a"])["a"]) == 40


def test_evaluate_adds_them() -> None:
    model, data = parts()
    found = evaluate(model, data, data, None, samples=30, cross_rows=20, components=2, latents=40, inception=features)
    assert set(found["fid"]["joint"]) == {"prior", "gmm2", "posterior"}
    assert found["fid"]["real"] == {"a": 60, "b": 60} and found["fid"]["samples"] == 30
    assert all(d > 0 for row in found["fid"]["joint"].values() for d in row.values())


def test_what_is_no_picture_is_refused() -> None:
    _, data = parts()
    with pytest.raises(ValueError, match=r"images: expected \[N, C, H, W\] with 1 or 3 channels, got \[60, 4\]"):
        fid.real_features(data, features, ["numbers"])


def test_missing_weights_and_packages_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"inception: expected weights at .*none\.pth"):
        fid.inception(tmp_path / "none.pth")
    (tmp_path / "some.pth").write_bytes(b"no weights")
    with pytest.raises((ModuleNotFoundError, ValueError), match=r"mmebm\[fid\]|expected Inception's weights"):
        fid.inception(tmp_path / "some.pth")
