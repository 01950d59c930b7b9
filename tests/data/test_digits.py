"""The dataset that needs no download."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mmebm.data import load
from mmebm.data.digits import _split_rows, source_digits, textures


@pytest.mark.parametrize(("split", "size"), [("train", 12_000), ("validation", 2_000), ("test", 2_000)])
def test_shapes_and_sizes(split: str, size: int) -> None:
    data = load("digits", split)
    assert len(data) == size
    assert data.shapes == {f"m{m}": (3, 16, 16) for m in range(5)}
    assert all(x.dtype == torch.uint8 for x in data.modalities.values())
    assert data.labels is not None
    counts = torch.bincount(data.labels, minlength=10)
    assert len(counts) == 10 and counts.min() > 0.08 * size


def test_splits_are_disjoint_stratified_and_whole() -> None:
    rows = _split_rows()
    assert {k: len(v) for k, v in rows.items()} == {"train": 1197, "validation": 300, "test": 300}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(1797))
    target = load_digits().target
    for part in rows.values():
        assert np.abs(np.bincount(target[part]) / len(part) - np.bincount(target) / 1797).max() < 0.005


def test_every_image_comes_from_its_splits_digits() -> None:
    """A mask is recovered from an image by its channel that never crosses mid grey."""
    data = load("digits", "test", size=600)
    own = {mask.tobytes() for mask in source_digits("test")[0]}
    foreign = {mask.tobytes() for split in ("train", "validation") for mask in source_digits(split)[0]}
    for m, texture in enumerate(textures()):
        dark = [texture[..., c].max() < 128 for c in range(3)]
        light = [texture[..., c].min() >= 128 for c in range(3)]
        channel = next(c for c in range(3) if dark[c] or light[c])
        above = data.modalities[f"m{m}"][:, channel].numpy() >= 128
        masks = above if dark[channel] else ~above
        assert {mask.tobytes() for mask in masks} == own
    assert len(own & foreign) <= 2  # distinct digits may be the same once drawn in black and white


def test_modalities_share_the_class_and_not_the_digit() -> None:
    data = load("digits", "train", size=1197)
    thresholded = (data.modalities["m0"][:, 1] >= 128), (data.modalities["m1"][:, 2] >= 128)
    assert (thresholded[0] != thresholded[1]).flatten(1).any(1).float().mean() > 0.9


def test_seeds() -> None:
    one = load("digits", "validation", size=50, seed=3).fingerprint()
    assert load("digits", "validation", size=50, seed=3).fingerprint() == one
    assert load("digits", "validation", size=50, seed=4).fingerprint() != one


def test_textures_leave_no_channel_of_a_digit_near_mid_grey() -> None:
    for texture in textures():
        contrast = np.abs(255 - 2 * texture.astype(float)).max(-1)
        assert contrast.min() > 255 * 0.15 and contrast.mean() > 255 * 0.4


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"size": 0}, ValueError, "size: expected at least 1"),
        ({"size": 1.5}, TypeError, "size: expected a number of rows"),
        ({"seed": -1}, ValueError, "seed: expected an int >= 0"),
        ({"seed": "a"}, TypeError, "seed: expected an int"),
    ],
)
def test_options(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load("digits", "train", **options)
