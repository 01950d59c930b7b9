"""PolyMNIST from files of the original layout, made here, and from the real ones where they are."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmebm.data import load
from mmebm.data.mnist import read_idx

ROWS = {"train": 40, "t10k": 20}


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digits whose mask is a bar as long as the class, grey levels 128 and 129; plain backgrounds b, a, c."""
    (tmp_path / "mnist").mkdir()
    (tmp_path / "polymnist_backgrounds").mkdir()
    for prefix, n in ROWS.items():
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = np.full((n, 28, 28), 128, dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[5, : label + 1] = 129
        images[:, 20, 0] = np.where(np.arange(n) < n // 2, 255, 0)  # tells source digits of a class apart
        suffix = ".gz" if prefix == "train" else ""
        write_idx(tmp_path / "mnist" / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / "mnist" / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    for name, colour in (("b.png", (10, 20, 30)), ("a.PNG", (200, 0, 100)), ("c.png", (1, 2, 3))):
        Image.new("RGB", (31, 29), colour).save(tmp_path / "polymnist_backgrounds" / name)
    (tmp_path / "polymnist_backgrounds" / "notes.txt").write_text("not a picture")
    monkeypatch.setenv("MMEBM_DATA_DIR", str(tmp_path))
    return tmp_path


def test_built_from_files(root: Path) -> None:
    data = load("polymnist", "test")
    assert len(data) == 20 and data.shapes == {f"m{m}": (3, 28, 28) for m in range(3)}
    assert data.labels is not None
    for m, colour in enumerate(((200, 0, 100), (10, 20, 30), (1, 2, 3))):
        images = data.modalities[f"m{m}"].int()
        background = torch.tensor(colour)
        assert (images[:, :, 0, 0] == background).all()
        inverted = (images[:, :, 5] == 255 - background[:, None]).all(1)  # [N, 28]
        assert (inverted.sum(1) == data.labels + 1).all()


def test_validation_is_the_end_of_the_training_files(root: Path) -> None:
    def upper(split: str, **options: object) -> torch.Tensor:
        return load("polymnist", split, **options).modalities["m0"][:, 0, 20, 0] == 55

    assert len(upper("train", n_validation=20)) == len(upper("validation", n_validation=20)) == 20
    assert upper("train", n_validation=20).all() and not upper("validation", n_validation=20).any()
    assert len(upper("train", n_validation=0)) == 40
    with pytest.raises(ValueError, match="split 'validation': expected n_validation > 0"):
        load("polymnist", "validation", n_validation=0)
    with pytest.raises(ValueError, match="n_validation: expected 0 <= n < 40, got 40"):
        load("polymnist", "train", n_validation=40)


def test_sizes_and_seeds(root: Path) -> None:
    one = load("polymnist", "test", size=70, seed=1)
    assert len(one) == 70
    assert one.fingerprint() == load("polymnist", "test", size=70, seed=1, data_dir=root).fingerprint()
    assert one.fingerprint() != load("polymnist", "test", size=70, seed=2).fingerprint()


def test_missing_files_say_which_where_and_from_where(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte\.gz or t10k-labels.* in .*mnist.*https://"):
        load("polymnist", "test")
    for picture in (root / "polymnist_backgrounds").iterdir():
        picture.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"background picture .* in .*polymnist_backgrounds, got none; .*https://"
    ):
        load("polymnist", "train", n_validation=0)
    monkeypatch.delenv("MMEBM_DATA_DIR")
    with pytest.raises(FileNotFoundError, match="data_dir or the environment variable MMEBM_DATA_DIR, got neither"):
        load("polymnist", "train")


def test_damaged_files_are_named(root: Path) -> None:
    small = root / "polymnist_backgrounds" / "small.jpg"
    Image.new("RGB", (27, 40)).save(small)
    with pytest.raises(ValueError, match=r"small\.jpg: expected a picture of at least 28 x 28 pixels, got 40 x 27"):
        load("polymnist", "test")

    images = root / "mnist" / "t10k-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte: expected \[20, 28, 28\] values, got 15679"):
        load("polymnist", "test")
    images.write_bytes(b"\x00\x00\x0d\x03" + whole[4:])
    with pytest.raises(
        ValueError, match="expected an idx file of unsigned bytes with 3 dimensions, got header 00000d03"
    ):
        load("polymnist", "test")
    images.write_bytes(whole)
    write_idx(root / "mnist" / "t10k-labels-idx1-ubyte", np.zeros(19, dtype=np.uint8))
    with pytest.raises(ValueError, match="20 t10k images and 19 labels"):
        load("polymnist", "test")


def test_a_truncated_or_false_gzip_is_named(root: Path) -> None:
    path = root / "mnist" / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for damaged in (whole[:10], whole[:200], whole[:20] + b"\xff" * 40 + whole[60:], b"not gzip at all"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: expected a gzip file"):
            read_idx(path, 3)


def test_the_real_files(data_dir: Path) -> None:
    data = load("polymnist", "test", data_dir=data_dir)
    assert len(data) == 10_000 and data.shapes == {f"m{m}": (3, 28, 28) for m in range(5)}
    assert data.labels is not None
    published = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert torch.bincount(data.labels).tolist() == published
    assert all(x.float().std() > 20 for x in data.modalities.values())
    assert data.fingerprint() == load("polymnist", "test", data_dir=data_dir).fingerprint()
