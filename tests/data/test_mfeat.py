"""Multiple Features from files of the original layouts, made here, and from the real ones where they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mmebm.data import load
from mmebm.data.mfeat import CLASSES, ROWS, VIEWS


def made() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), ROWS // CLASSES)
    views = {name: (5 * rng.normal(size=(ROWS, w)) + labels[:, None]).astype(np.float32) for name, w in VIEWS.items()}
    views["pix"][:, 3] = 2.0  # a feature that never changes
    return views | {"y": labels.astype(np.uint8)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "mfeat").mkdir()
    np.savez(folder / "mfeat" / "mfeat.npz", **made())
    return folder


def test_splits_share_no_row_and_keep_classes(root: Path) -> None:
    parts = {split: load("mfeat", split, data_dir=root) for split in ("train", "validation", "test")}
    assert [len(p) for p in parts.values()] == [1400, 200, 400]
    for part in parts.values():
        assert part.shapes == {name: (width,) for name, width in VIEWS.items()}
        assert (torch.bincount(part.labels) == len(part) // CLASSES).all()
        assert bool((part.labels[:50] != part.labels[0]).any()), "classes are mixed"
    rows = torch.cat([p.modalities["fac"] for p in parts.values()])
    assert len(torch.unique(rows, dim=0)) == ROWS
    again, other = load("mfeat", "test", data_dir=root), load("mfeat", "test", data_dir=root, seed=1)
    assert again.fingerprint() == parts["test"].fingerprint() != other.fingerprint()
    assert torch.equal(load("mfeat", "test", data_dir=root, size=7).labels, parts["test"].labels[:7])


def test_features_are_standard_in_training(root: Path) -> None:
    train, test = (load("mfeat", split, data_dir=root) for split in ("train", "test"))
    for name, values in train.modalities.items():
        changing = torch.ones(VIEWS[name], dtype=torch.bool)
        changing[3] = name != "pix"
        torch.testing.assert_close(values.mean(0), torch.zeros(VIEWS[name]), atol=1e-5, rtol=0.0)
        spread = values.std(0, correction=0)[changing]
        torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-4, rtol=0.0)
        assert torch.isfinite(test.modalities[name]).all()
    assert (train.modalities["pix"][:, 3] == 0).all()


def test_text_files_hold_the_same(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mfeat").mkdir()
    for name, values in made().items():
        if name != "y":
            np.savetxt(tmp_path / "mfeat" / f"mfeat-{name}", values, fmt="%.9g")
    for split in ("train", "test"):
        a, b = load("mfeat", split, data_dir=root), load("mfeat", split, data_dir=tmp_path)
        assert torch.equal(a.labels, b.labels)
        assert all(torch.equal(a.modalities[name], b.modalities[name]) for name in VIEWS)
    (tmp_path / "mfeat" / "mfeat-zer").write_text("1 2 three\n")
    with pytest.raises(ValueError, match=r"mfeat-zer, line 1: expected 47 finite numbers, got '1 2 three'"):
        load("mfeat", "train", data_dir=tmp_path)
    (tmp_path / "mfeat" / "mfeat-zer").write_text("1 2 3\n")
    with pytest.raises(ValueError, match=r"mfeat-zer, line 1: expected 47 finite numbers, got '1 2 3'"):
        load("mfeat", "train", data_dir=tmp_path)
    (tmp_path / "mfeat" / "mfeat-zer").unlink()
    with pytest.raises(FileNotFoundError, match=r"mfeat.npz or mfeat-zer in .*archive.ics.uci.edu"):
        load("mfeat", "train", data_dir=tmp_path)


def test_bad_files_and_options(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="size: expected at most 400 rows of split 'test', got 401"):
        load("mfeat", "test", data_dir=root, size=401)
    monkeypatch.delenv("MMEBM_DATA_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match="mfeat: expected its files under data_dir or the environment variable"):
        load("mfeat", "test")
    (tmp_path / "mfeat").mkdir()
    archive = tmp_path / "mfeat" / "mfeat.npz"
    for change, message in (
        ({"kar": np.zeros((ROWS, 63), np.float32)}, r"expected 'kar' of shape \[2000, 64\], got \[2000, 63\]"),
        ({"y": np.full(ROWS, 10)}, "expected labels 0 to 9, got 10 in row 0"),
        ({"mor": np.full((ROWS, 6), "6")}, "mfeat.npz: expected numbers in 'mor', got <U1"),
    ):
        np.savez(archive, **made() | change)
        with pytest.raises(ValueError, match=message):
            load("mfeat", "test", data_dir=tmp_path)
    whole = archive.read_bytes()
    for end in (0, 10, 1000, len(whole) // 2, len(whole) - 30):
        archive.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"mfeat.npz: expected an npz archive of plain arrays"):
            load("mfeat", "test", data_dir=tmp_path)


@pytest.mark.skipif("MMEBM_DATA_DIR" not in os.environ, reason="MMEBM_DATA_DIR is not set")
def test_the_real_views_tell_digits_apart() -> None:
    """The nearest class mean in each view alone is right far more often than one time in ten."""
    train, test = load("mfeat", "train"), load("mfeat", "test")
    for name in VIEWS:
        x, y = train.modalities[name], train.labels
        means = torch.stack([x[y == c].mean(0) for c in range(CLASSES)])
        right = (torch.cdist(test.modalities[name], means).argmin(1) == test.labels).double().mean()
        assert right > 0.5, name
