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
    ({"labels": np.where(np.arange(30) == 4, -1, 3)}, r"rows.*: expected labels \[N\] .* >= 0, got -1 in row 4"),
    (
        {"labels": np.where(np.arange(30) == 7, 2**63 + 5, 3).astype(np.uint64)},
        r"rows.*: expected labels \[N\] of integers below 2\*\*63, got 9223372036854775813 in row 7",
    ),
    ({"labels": np.zeros((30, 1), np.int64)}, r"labels .* of integers >= 0, got torch.int64 \[30, 1\]"),
    ({"sound": np.array(1.0)}, "'sound': expected rows .*got a scalar"),
    ({"sound_mask": np.ones(29, bool)}, "expected equal numbers of rows, got .*'sound_mask': 29"),
    (
        {"sound_mask": np.where(np.arange(30) == 5, 2, 1)},
        r"rows.*: 'sound_mask': expected a mask, bool or 0 and 1 \[N\], of 'sound', got 2 in row 5",
    ),
    ({"sound_mask": np.full(30, -1, np.int8)}, "'sound_mask': expected a mask, .*, got -1 in row 0"),
    ({"labels": np.zeros(30)}, "labels .* of integers >= 0, got torch.float64"),
    ({"sound": np.full((30, 7), np.nan)}, "'sound' of 'arrays': expected finite values, got NaN or infinity in 30"),
    ({"image": np.zeros((30, 4, 5), np.uint8)}, r"expected uint8 images \[N, C, H, W\]"),
])  # fmt: skip
@each_form
def test_bad_values(write: Callable[[Path, Arrays], Path], change: Arrays, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load("arrays", "train", path=write(tmp_path, made() | change))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.int64, np.uint64])
@each_form
def test_masks(write: Callable[[Path, Arrays], Path], dtype: type, tmp_path: Path) -> None:
    arrays = made()
    arrays["sound"][3] = np.nan
    arrays |= {"sound_mask": (np.arange(30) != 3).astype(dtype), "labels": np.arange(30, dtype=np.uint16)}
    path = write(tmp_path, arrays)
    data = load("arrays", "train", path=path)
    assert data.shapes == {"image": (3, 4, 5), "sound": (7,)}
    observed = data.observed(torch.arange(30))
    assert observed is not None and observed["image"].all() and (~observed["sound"]).nonzero().tolist() == [[3]]
    part = load("arrays", "train", path=path, size=25, seed=2)
    assert part.masks is not None and part.labels is not None
    assert torch.equal(part.masks["sound"], part.labels != 3)


@pytest.mark.parametrize(("change", "message"), [
    ({"sound_mask": np.ones(30)}, r"expected a mask, bool or 0 and 1 \[N\], of 'sound', got torch.float64 \[30\]"),
    ({"sound_mask": np.ones((30, 2), bool)}, r"'sound_mask': expected a mask, .*got torch.bool \[30, 2\]"),
    ({"smell_mask": np.ones(30, bool)}, "'smell_mask': expected a mask to be called after a modality, <name>_mask"),
    ({"seen": np.ones(30, bool)}, "'seen': expected a mask to be called after a modality, <name>_mask, got bool"),
])  # fmt: skip
@each_form
def test_bad_masks(write: Callable[[Path, Arrays], Path], change: Arrays, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        load("arrays", "train", path=write(tmp_path, made() | change))


@each_form
def test_codes_and_their_words(write: Callable[[Path, Arrays], Path], tmp_path: Path) -> None:
    codes = np.arange(60).reshape(30, 2) % 3
    path = write(tmp_path, made() | {"text": codes})
    words = (path if path.is_dir() else path.parent) / "text_words.txt"
    words.write_text("a\nb\nc\n")
    data = load("arrays", "train", path=path)
    assert data.vocabularies == {"text": ["a", "b", "c"]} and data.shapes["text"] == (2, 3)
    assert torch.equal(data.modalities["text"], torch.from_numpy(codes))
    words.write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"rows.*'text' of 'arrays': expected codes in \[0, 2\), got 2 in row 1"):
        load("arrays", "train", path=path)
    words.write_text("")
    with pytest.raises(ValueError, match=r"text_words.txt: expected a word a line, got an empty file"):
        load("arrays", "train", path=path)
    words.unlink()
    with pytest.raises(TypeError, match=r"'text': expected uint8 .*, got torch.int64; .* words in text_words.txt"):
        load("arrays", "train", path=path)


@pytest.mark.parametrize("write", [as_npz, as_safetensors], ids=["npz", "safetensors"])
def test_damaged_bytes_are_named(write: Callable[[Path, Arrays], Path], tmp_path: Path) -> None:
    """Wrong bytes among the values of a .safetensors file can not be seen: it has no checksum."""
    path = write(tmp_path, made(4))
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(200):
        damaged = bytearray(raw[: int(rng.integers(len(raw)))] if trial % 4 == 0 else raw)
        if trial % 4:
            damaged[int(rng.integers(len(raw)))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            load("arrays", "train", path=path)
        except (ValueError, TypeError) as error:
            refused += 1
            assert path.name in str(error)
    assert refused > 50


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    path = as_npz(tmp_path, made(4))
    raw = path.read_bytes()
    for end in (*range(0, len(raw), 37), len(raw) - 1):
        path.write_bytes(raw[:end])
        with pytest.raises(ValueError, match=r"rows\.npz: expected an npz archive of plain arrays, got"):
            load("arrays", "train", path=path)


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
    with pytest.raises(ValueError, match=r"objects.npy: expected a plain array"):
        load("arrays", "train", path=tmp_path)
