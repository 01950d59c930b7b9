"""MNIST-SVHN on small files written in the original formats: SVHN's own pictures are not at hand."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from mmebm import data
from mmebm.data.mnist_svhn import mnist_svhn, pair, read_svhn


def idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A picture's first pixel is its row, its second its class."""
    rng = np.random.default_rng(0)
    for folder in ("mnist", "svhn"):
        (tmp_path / folder).mkdir()
    for prefix, part, sizes in (("train", "train", (200, 170)), ("t10k", "test", (60, 80))):
        labels = [np.concatenate([np.arange(10), rng.integers(10, size=n - 10)]) for n in sizes]
        images = np.zeros((sizes[0], 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.arange(sizes[0]), labels[0]
        idx(tmp_path / "mnist" / f"{prefix}-images-idx3-ubyte.gz", images)
        idx(tmp_path / "mnist" / f"{prefix}-labels-idx1-ubyte.gz", labels[0])
        pictures = np.zeros((32, 32, 3, sizes[1]), np.uint8)
        pictures[0, 0, 2], pictures[0, 1, 2] = np.arange(sizes[1]), labels[1]
        held = {"X": pictures, "y": np.where(labels[1] == 0, 10, labels[1])[:, None].astype(np.uint8)}
        scipy.io.savemat(tmp_path / "svhn" / f"{part}_32x32.mat", held)
    return tmp_path


def load(root: Path, split: str = "train", **options: Any) -> data.MultimodalDataset:
    return data.load("mnist_svhn", split, data_dir=root, **options)


def test_pairs_share_their_class(root: Path) -> None:
    found = load(root, dm=3)
    assert found.shapes == {"mnist": (1, 28, 28), "svhn": (3, 32, 32)} and found.labels is not None
    mnist, svhn = found.modalities["mnist"], found.modalities["svhn"]
    assert torch.equal(mnist[:, 0, 0, 1].long(), found.labels)
    assert torch.equal(svhn[:, 2, 0, 1].long(), found.labels), "channels come first, class 10 is digit 0"
    assert not torch.equal(found.labels, found.labels.sort().values), "classes are mixed"
    for label in range(10):
        at = found.labels == label
        for rows in (mnist[at, 0, 0, 0], svhn[at, 2, 0, 0]):
            counts = torch.bincount(rows.long())
            assert set(counts[counts > 0].tolist()) == {3}, "each picture once a pairing"


def test_splits_have_no_picture_in_common(root: Path) -> None:
    train, validation = (load(root, split, validation=0.25) for split in ("train", "validation"))
    for name, channel in (("mnist", 0), ("svhn", 2)):
        seen = [set(d.modalities[name][:, channel, 0, 0].tolist()) for d in (train, validation)]
        assert seen[0] and seen[1] and not seen[0] & seen[1]
    assert len(load(root, "test")) > 0
    with pytest.raises(ValueError, match=r"split 'validation': expected at least one pair, got none; validation"):
        load(root, "validation", validation=0.0)


def test_the_same_options_give_the_same_rows(root: Path) -> None:
    first, again, other = load(root), load(root), load(root, seed=1)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert load(root, size=7).modalities["svhn"].equal(first.modalities["svhn"][:7])
    assert len(load(root, dm=2)) * 2 == len(load(root, dm=4))
    assert torch.bincount(load(root, dm=1, most=4).labels).tolist() == [4] * 10  # type: ignore[arg-type]


def test_the_pairing_is_kept(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairing.npz"
    first = load(root, pairing=path)
    with np.load(path) as held:
        assert (held["seed"], held["dm"], str(held["split"])) == (0, 5, "train") and held["rows"].shape[1] == 2
    assert load(root, pairing=path).fingerprint() == first.fingerprint()
    with pytest.raises(ValueError, match=r"pairing: expected one of .*'dm': 2.* got .*'dm': 5"):
        load(root, pairing=path, dm=2)


def test_pair_keeps_to_the_smaller_side() -> None:
    first, second = np.repeat(np.arange(10), 5), np.repeat(np.arange(10), 3)
    rows = pair(first, second, dm=2, most=100, generator=np.random.default_rng(0))
    assert rows.shape == (10 * 3 * 2, 2) and (first[rows[:, 0]] == second[rows[:, 1]]).all()


def test_refusals(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"dm": 0}, "dm: expected an integer >= 1, got 0"),
        ({"most": 0}, "most: expected an integer >= 1, got 0"),
        ({"validation": 1.0}, r"validation: expected a share in \[0, 1\), got 1.0"),
        ({"size": 10**6}, r"size: expected at most \d+ pairs of split 'train', got 1000000"),
    ):
        with pytest.raises(ValueError, match=message):
            load(root, **options)
    mat = root / "svhn" / "train_32x32.mat"
    whole = mat.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "train_32x32.mat: expected a MATLAB file of SVHN's cropped digits, got"),
        (b"", "train_32x32.mat: expected a MATLAB file of SVHN's cropped digits, got"),
    ):
        mat.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(root)
    for held, message in (
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "expected arrays X and y, got .'X'."),
        (
            {"X": np.zeros((2, 32, 32, 3), np.uint8), "y": np.ones(2)},
            r"expected X uint8 \[32, 32, 3, N\], got uint8 \[2",
        ),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones(3)}, "got 2 pictures and 3 labels"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([1, 11])}, "expected labels 1 to 10, got 11 in row 1"),
    ):
        scipy.io.savemat(mat, held)
        with pytest.raises(ValueError, match=message):
            read_svhn(mat)
    mat.unlink()
    with pytest.raises(FileNotFoundError, match=r"train_32x32\.mat, which is not there; train_32x32\.mat and test"):
        load(root)
    (root / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected train-labels-idx1-ubyte\.gz or train-labels-idx1-ubyte in"):
        load(root)
    monkeypatch.delenv("MMEBM_DATA_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match="mnist_svhn: expected its files under data_dir or the environment"):
        mnist_svhn("train")
