"""The pairing and the inversion, on inputs whose outcome is known."""

from __future__ import annotations

import numpy as np
import pytest

from mmebm.data.recipe import compose, pair_within_class, poly

LABELS = np.array([0, 1, 2, 0, 1, 0, 2, 2, 2, 1])


def test_pairs_share_the_class_and_only_that() -> None:
    rows = pair_within_class(LABELS, 3, 40, np.random.default_rng(0))
    assert rows.shape == (3, 40)
    assert (LABELS[rows] == LABELS[rows[0]]).all()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (rows[a] != rows[b]).any()


def test_every_repeat_uses_every_source_once_in_every_modality() -> None:
    rows = pair_within_class(LABELS, 2, 25, np.random.default_rng(0))
    for modality in rows:
        for start in (0, 10):
            assert sorted(modality[start : start + 10]) == list(range(10))
        assert len(set(modality[20:])) == 5
    assert (rows[0, :10] != rows[0, 10:20]).any()


def test_colours_are_inverted_under_the_digit_and_nowhere_else() -> None:
    rng = np.random.default_rng(1)
    texture = rng.integers(256, size=(9, 11, 3), dtype=np.uint8)
    masks = rng.random((200, 4, 5)) < 0.5
    made = compose(masks, texture, rng)
    assert made.shape == (200, 3, 4, 5) and made.dtype == np.uint8
    crops = {
        texture[y : y + 4, x : x + 5].transpose(2, 0, 1).tobytes(): (y, x) for y in range(6) for x in range(7)
    }  # fmt: skip
    seen = set()
    for image, mask in zip(made, masks, strict=True):
        crop = np.where(mask, 255 - image.astype(int), image).astype(np.uint8)
        seen.add(crops[crop.tobytes()])
    assert {y for y, _ in seen} == set(range(6)) and {x for _, x in seen} == set(range(7))


def test_a_texture_of_the_digits_size_has_one_crop() -> None:
    texture = np.full((4, 4, 3), 10, dtype=np.uint8)
    made = compose(np.eye(4, dtype=bool)[None], texture, np.random.default_rng(0))
    assert (made[0, 1] == np.where(np.eye(4), 245, 10)).all()


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "test"}])
def test_seeds_and_splits_draw_other_tuples(change: dict[str, object]) -> None:
    masks = np.random.default_rng(0).random((10, 4, 4)) < 0.5
    textures = [np.random.default_rng(m).integers(256, size=(20, 20, 3), dtype=np.uint8) for m in range(2)]
    options: dict[str, object] = {"size": 30, "seed": 0, "name": "toy", "split": "train"}
    one = poly(masks, LABELS, textures, **options)  # type: ignore[arg-type]
    again = poly(masks, LABELS, textures, **options)  # type: ignore[arg-type]
    other = poly(masks, LABELS, textures, **{**options, **change})  # type: ignore[arg-type]
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()
