"""MNIST-SVHN on small files written in the original formats: SVHN's own pictures are not at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from mmebm import data
from mmebm.data.mnist_svhn import mnist_svhn, pair, read_svhn


@pytest.fixture
def root(mnist_svhn_files: Path) -> Path:
    return mnist_svhn_files


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


def test_a_damaged_pairing_is_named(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairing.npz"
    load(root, pairing=path)
    whole = path.read_bytes()
    with np.load(path) as file:
        held = dict(file)
    for end in (0, 7, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"pairing.npz: expected an npz archive of plain arrays, got"):
            load(root, pairing=path)
    classes = load(root).labels
    assert classes is not None
    apart = held["rows"].copy()
    apart[3, 1] = held["rows"][int((classes != classes[3]).nonzero()[0]), 1]
    beyond = held["rows"].copy()
    beyond[5, 1] = 170
    for rows, message in (
        (beyond, r"pairing.npz, row 5: expected pictures below \[200, 170\], got \[\d+, 170\]"),
        (-beyond, r"pairing.npz, row \d: expected pictures below"),
        (apart, r"pairing.npz, row 3: expected two pictures of one digit, got"),
        (held["rows"].astype(np.int32), r"expected rows int64 \[N, 2\], got int32"),
        (held["rows"][:, 0], r"expected rows int64 \[N, 2\], got int64 \[\d+\]"),
    ):
        np.savez(path, **held | {"rows": rows})
        with pytest.raises(ValueError, match=message):
            load(root, pairing=path)
    del held["rows"]
    np.savez(path, **held)
    with pytest.raises(ValueError, match=r"expected rows int64 \[N, 2\], got none"):
        load(root, pairing=path)


def test_labels_out_of_range_are_named(root: Path, write_idx: Callable[[Path, np.ndarray], None]) -> None:
    labels = np.arange(200) % 10
    labels[17] = 10
    write_idx(root / "mnist" / "train-labels-idx1-ubyte.gz", labels)
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz: expected labels 0 to 9, got 10 in row 17"):
        load(root)


def test_pair_keeps_to_the_smaller_side() -> None:
    first, second = np.repeat(np.arange(10), 5), np.repeat(np.arange(10), 3)
    rows = pair(first, second, dm=2, most=100, generator=np.random.default_rng(0))
    assert rows.shape == (10 * 3 * 2, 2) and (first[rows[:, 0]] == second[rows[:, 1]]).all()


@pytest.mark.parametrize("compressed", [True, False], ids=["compressed", "plain"])
def test_damaged_pictures_are_refused(compressed: bool, tmp_path: Path) -> None:
    """Values of a file that is not compressed have no checksum: wrong bytes among them are read as they are."""
    path = tmp_path / "train_32x32.mat"
    rng = np.random.default_rng(2)
    held = {"X": rng.integers(0, 256, (32, 32, 3, 2)).astype(np.uint8), "y": np.array([[1], [10]], np.uint8)}
    scipy.io.savemat(path, held, do_compression=compressed)
    raw, whole = path.read_bytes(), read_svhn(path)
    damaged = [raw[:end] for end in (*range(0, 260, 5), *range(260, len(raw), 101), len(raw) - 1)]
    cuts = len(damaged)
    for trial in range(300):
        content = bytearray(raw)
        content[int(rng.integers(124, 220 if trial % 2 else len(raw)))] ^= int(rng.integers(1, 256))
        damaged.append(bytes(content))
    refused = 0
    for number, content in enumerate(damaged):
        path.write_bytes(content)
        try:
            found = read_svhn(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: expected ")
        else:
            assert all(a.dtype == b.dtype and a.shape == b.shape for a, b in zip(found, whole, strict=True))
            if compressed or number < cuts:
                assert all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True))
    assert refused > cuts


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
    for content in (b"", whole[: len(whole) // 2]):
        mat.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"train_32x32.mat: expected a MATLAB 5 file, got another or a damaged one"
        ):
            load(root)
    for held, message in (
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "expected arrays X and y, got .'X'."),
        (
            {"X": np.zeros((2, 32, 32, 3), np.uint8), "y": np.ones(2)},
            r"expected X uint8 \[32, 32, 3, N\], got uint8 \[2",
        ),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones(3)}, "got 2 pictures and 3 labels"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([1, 11])}, "expected labels 1 to 10, got 11 in row 1"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([1, np.nan])}, "1 to 10, got nan in row 1"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([1, 2.5])}, r"1 to 10, got 2.5 in row 1"),
        ({"X": np.zeros((32, 32, 3, 2)), "y": np.ones(2)}, r"expected X uint8 \[32, 32, 3, N\], got float64"),
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
