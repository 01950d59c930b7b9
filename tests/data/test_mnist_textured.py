"""The stand-in for MNIST-SVHN, from files of the original layout, made here."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmebm.data import load

COLOURS = ((200, 0, 100), (10, 20, 30))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digits that are a bar as long as the class, in a row that tells which of its class they are."""
    (tmp_path / "mnist").mkdir()
    (tmp_path / "polymnist_backgrounds").mkdir()
    for prefix, n in (("train", 60), ("t10k", 40)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = np.zeros((n, 28, 28), np.uint8)
        for i, label in enumerate(labels):
            images[i, i // 10, : label + 1] = 255
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            raw = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            (tmp_path / "mnist" / f"{prefix}-{kind}-ubyte").write_bytes(raw)
    for name, colour in zip("ab", COLOURS, strict=True):
        Image.new("RGB", (40, 33), colour).save(tmp_path / "polymnist_backgrounds" / f"{name}.png")
    monkeypatch.setenv("MMEBM_DATA_DIR", str(tmp_path))
    return tmp_path


def test_pairs_share_the_class_alone(root: Path) -> None:
    data = load("mnist_textured", "test", size=400)
    assert data.shapes == {"mnist": (1, 28, 28), "texture": (3, 32, 32)} and len(data) == 400
    assert data.labels is not None
    digits, pictures = data.modalities["mnist"], data.modalities["texture"].int()
    background = pictures[:, :, -1, -1]
    known = torch.tensor(COLOURS)
    which = (background.unsqueeze(1) == known).all(-1).long().argmax(1)
    assert torch.equal(background, known[which]) and 150 < int(which.sum()) < 250
    inverted = (pictures == 255 - background[..., None, None]).all(1)
    assert torch.equal(inverted.flatten(1).sum(1), data.labels + 1)
    assert torch.equal((digits == 255).flatten(1).sum(1), data.labels + 1)
    assert not bool(inverted[:, :2].any() | inverted[:, :, :2].any()), "centred"
    rows = [x.flatten(1).long().argmax(1) for x in ((digits == 255), inverted)]
    same = (rows[0] // 28 == rows[1] // 32 - 2).double().mean()
    assert 0.1 < float(same) < 0.45, "another digit of the class, of four"


def test_seeds_and_splits(root: Path) -> None:
    first = load("mnist_textured", "train", n_validation=10, seed=1)
    again = load("mnist_textured", "train", n_validation=10, seed=1)
    assert len(first) == 50 and first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != load("mnist_textured", "train", n_validation=10, seed=2).fingerprint()
    assert len(load("mnist_textured", "validation", n_validation=10)) == 10


def test_what_is_missing_is_named(root: Path) -> None:
    (root / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"mnist_textured: expected t10k-labels-idx1-ubyte.gz or"):
        load("mnist_textured", "test")
    (root / "polymnist_backgrounds" / "a.png").unlink()
    Image.new("RGB", (40, 31)).save(root / "polymnist_backgrounds" / "b.png")
    with pytest.raises(ValueError, match="expected a picture of at least 32 x 32 pixels, got 31 x 40"):
        load("mnist_textured", "train", n_validation=0)
