"""Your own arrays, in each of the three forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmebm.data import load

Arrays = dict[str, np.ndarray]


def made(rows: int = 30) -> Arrays:
    rng = np.random.default_rng(rows)
    return {
        "image": rng.integers(0, 256, (rows, 3, 4, 5)).astype(np.uint8),
        "sound": rng.normal(size=(rows, 7)),
        "labels": np.arange(rows) % 4,
    }


def as_folder(folder: Path, arrays: Arrays) -> Path:
    (folder / "rows").mkdir()
    for name, value in arrays.items():
        np.save(folder / "rows" / f"{name}.npy", value)
    return folder / "rows"


def as_npz(folder: Path, arrays: Arrays) -> Path:
    np.savez(folder / "rows.npz", **arrays)
    return folder / "rows.npz"


def as_safetensors(folder: Path, arrays: Arrays) -> Path:
    save_file({name: torch.from_numpy(value) for name, value in arrays.items()}, folder / "rows.safetensors")
    return folder / "rows.safetensors"


FORMS = {"folder": as_folder, "npz": as_npz, "safetensors": as_safetensors}
each_form = pytest.mark.parametrize("write", FORMS.values(), ids=FORMS)


@each_form
def test_rows_come_as_they_are(write: Callable[[Path, Arrays], Path], tmp_path: Path) -> None:
    data = load("arrays", "train", path=write(tmp_path, made()))
    assert data.shapes == {"image": (3, 4, 5), "sound": (7,)} and len(data) == 30
    assert torch.equal(data.modalities["image"], torch.from_numpy(made()["image"]))
    assert torch.equal(data.modalities["sound"], torch.from_numpy(made()["sound"]).float())
    assert torch.equal(data.labels, torch.arange(30) % 4)


@each_form
def test_labels_are_optional(write: Callable[[Path, Arrays], Path], tmp_path: Path) -> None:
    arrays = made()
    del arrays["labels"]
    assert load("arrays", "train", path=write(tmp_path, arrays)).labels is None


def test_the_split_is_put_into_the_path(tmp_path: Path) -> None:
    for split, rows in (("train", 30), ("test", 8)):
        np.savez(tmp_path / f"{split}.npz", **made(rows))
    pattern = str(tmp_path / "{split}.npz")
    assert [len(load("arrays", split, path=pattern)) for split in ("train", "test")] == [30, 8]
    with pytest.raises(FileNotFoundError, match=r"validation\.npz, which is not there"):
        load("arrays", "validation", path=pattern)


def test_a_part_is_drawn_by_its_seed_and_keeps_rows_together(tmp_path: Path) -> None:
    path = as_npz(tmp_path, made())
    whole, part = load("arrays", "train", path=path), load("arrays", "train", path=path, size=10)
    where = [int((whole.modalities["sound"] == row).all(1).nonzero()) for row in part.modalities["sound"]]
    assert len(set(where)) == 10
    assert torch.equal(whole.modalities["image"][where], part.modalities["image"])
    assert torch.equal(whole.labels[where], part.labels)
    assert part.fingerprint() != load("arrays", "train", path=path, size=10, seed=1).fingerprint()


@pytest.mark.parametrize(("change", "message"), [
    ({"sound": np.zeros((29, 7))}, "expected equal numbers of rows, got .*'sound': 29"),
    ({"labels": np.zeros(29, np.int64)}, "expected equal numbers of rows, got .*'labels': 29"),
    ({"labels": np.full(30, -1)}, "labels .* of integers >= 0"),
    ({"labels": np.zeros(30)}, "labels .* of integers >= 0, got torch.float64"),
    ({"sound": np.full((30, 7), np.nan)}, "'sound' of 'arrays': expected finite values, got NaN or infinity in 30"),
    ({"image": np.zeros((30, 4, 5), np.uint8)}, r"expected uint8 images \[N, C, H, W\]"),
])  # fmt: skip
@each_form
def test_bad_values(write: Callable[[Path, Arrays], Path], change: Arrays, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load("arrays", "train", path=write(tmp_path, made() | change))


@each_form
def test_other_dtypes_are_named(write: Callable[[Path, Arrays], Path], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'sound': expected uint8 images or floating-point values, got torch.int32"):
        load("arrays", "train", path=write(tmp_path, made() | {"sound": np.zeros((30, 7), np.int32)}))


def test_bad_files_and_options(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: expected .npy files in"):
        load("arrays", "train", path=tmp_path)
    with pytest.raises(ValueError, match=r"path: expected a folder of .npy files, .*, got .*rows\.csv"):
        (tmp_path / "rows.csv").write_text("1,2")
        load("arrays", "train", path=tmp_path / "rows.csv")
    with pytest.raises(ValueError, match="size: expected at most the 30 rows in"):
        load("arrays", "train", path=as_npz(tmp_path, made()), size=31)
    for path in (as_safetensors(tmp_path, made()), tmp_path / "rows.npz"):
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(ValueError, match=f"{path.name}: expected"):
            load("arrays", "train", path=path)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects.npy: expected plain arrays"):
        load("arrays", "train", path=tmp_path)
