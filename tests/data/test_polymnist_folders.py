"""PolyMNIST's published layout, in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmebm.data import load

ROWS = {"train": 24, "test": 11}
MODALITIES = (0, 1, 2, 10)


def put(path: Path, colour: tuple[int, int, int], side: int = 28) -> None:
    Image.new("RGB", (side, side), colour).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Red is the modality, green the index."""
    for part, n in ROWS.items():
        for m in MODALITIES:
            folder = tmp_path / "MMNIST" / part / f"m{m}"
            folder.mkdir(parents=True)
            for index in range(n):
                put(folder / f"{index}.{index * 7 % 10}.png", (m, index, 0))
            (folder / "notes.txt").write_text("not a picture")
    return tmp_path


def test_rows_are_paired_by_index(root: Path) -> None:
    data = load("polymnist", "test", data_dir=root)
    assert list(data.shapes) == ["m0", "m1", "m2", "m10"] and data.shapes["m0"] == (3, 28, 28) and len(data) == 11
    assert data.labels is not None and data.labels.tolist() == [i * 7 % 10 for i in range(11)]
    for m in MODALITIES:
        pictures = data.modalities[f"m{m}"]
        assert (pictures[:, 0] == m).all() and pictures[:, 1, 5, 5].tolist() == list(range(11)), "9 stands before 10"


def test_splits_and_sizes(root: Path) -> None:
    def rows(split: str, **options: object) -> list[int]:
        found = load("polymnist", split, folder=root / "MMNIST", n_validation=4, **options)
        return found.modalities["m2"][:, 1, 0, 0].tolist()

    assert rows("train") == list(range(20)) and rows("validation") == [20, 21, 22, 23]
    assert rows("train", size=3, seed=5) == [0, 1, 2]
    with pytest.raises(ValueError, match="size: expected at most 4 rows of split 'validation', got 5"):
        rows("validation", size=5)
    with pytest.raises(ValueError, match="n_validation: expected 0 <= n < 24, got 24"):
        load("polymnist", "train", data_dir=root, n_validation=24)
    with pytest.raises(ValueError, match="split 'validation': expected n_validation > 0"):
        load("polymnist", "validation", data_dir=root, n_validation=0)


def test_the_cache_holds_the_same(root: Path, tmp_path: Path) -> None:
    options = {"data_dir": root, "n_validation": 4, "cache": tmp_path / "kept_{part}.safetensors"}
    plain = {
        split: load("polymnist", split, data_dir=root, n_validation=4) for split in ("train", "validation", "test")
    }
    for _ in range(2):
        for split, data in plain.items():
            assert load("polymnist", split, **options).fingerprint() == data.fingerprint()
            assert list(load("polymnist", split, **options).shapes) == list(data.shapes)
    for picture in (root / "MMNIST" / "test").glob("m*/3.1.png"):
        picture.write_bytes(b"")
    assert load("polymnist", "test", **options).fingerprint() == plain["test"].fingerprint(), "no picture is read"
    for picture in (root / "MMNIST" / "test").glob("m*/3.1.png"):
        picture.unlink()
    with pytest.raises(
        ValueError, match=r"cache: expected the pictures of .*test in .*kept_test\.safetensors, got those"
    ):
        load("polymnist", "test", **options)
    kept = tmp_path / "kept_train.safetensors"
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"kept_train\.safetensors: expected a safetensors file, got a damaged one"):
        load("polymnist", "train", **options)


def test_modalities_that_do_not_fit_are_named(root: Path) -> None:
    m1 = root / "MMNIST" / "test" / "m1"
    (m1 / "4.8.png").rename(m1 / "4.9.png")
    with pytest.raises(ValueError, match=r"m1/4\.9\.png: expected the label of m0/4\.8\.png, got 9"):
        load("polymnist", "test", data_dir=root)
    (m1 / "4.9.png").rename(m1 / "44.8.png")
    with pytest.raises(ValueError, match=r"m1/44\.8\.png: expected a picture of index 44 in m0, got none"):
        load("polymnist", "test", data_dir=root)
    (m1 / "44.8.png").unlink()
    with pytest.raises(ValueError, match=r"m1: expected 11 pictures as in m0, got 10; m1 has none of index 4"):
        load("polymnist", "test", data_dir=root)
    put(m1 / "4.8.png", (0, 0, 0))
    put(m1 / "99.3.png", (0, 0, 0))
    with pytest.raises(ValueError, match=r"m1: expected 11 pictures as in m0, got 12; m0 has none of index 99"):
        load("polymnist", "test", data_dir=root)
    for name in ("4.8.png", "99.3.png"):
        (m1 / name).unlink()
    put(m1 / "3.8.png", (0, 0, 0))
    with pytest.raises(ValueError, match=r"test/m1: expected one picture of index 3, got 3\.1\.png and 3\.8\.png"):
        load("polymnist", "test", data_dir=root)
    (m1 / "3.8.png").rename(m1 / "three.png")
    with pytest.raises(ValueError, match=r"m1/three\.png: expected a name <index>\.<label>\.png"):
        load("polymnist", "test", data_dir=root)
    for file in m1.iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected pictures <index>.<label>.png in .*m1, got none; .*zenodo"):
        load("polymnist", "test", data_dir=root)
    with pytest.raises(
        FileNotFoundError, match=r"expected folders m0, m1, \.\.\. in .*nowhere.test, got none; .*zenodo"
    ):
        load("polymnist", "test", folder=root / "nowhere")


def test_bad_pictures_are_named(root: Path) -> None:
    path = root / "MMNIST" / "test" / "m2" / "5.5.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (28, 28, 3)).astype(np.uint8)).save(path)
    whole = path.read_bytes()
    for end in (0, 4, 20, 40, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:end])
        with pytest.raises(
            ValueError, match=r"m2/5\.5\.png: expected a picture, got a file that is none or is damaged"
        ):
            load("polymnist", "test", data_dir=root)
    put(path, (0, 0, 0), side=32)
    with pytest.raises(ValueError, match=r"m2/5\.5\.png: expected 28 x 28 pixels, got 32 x 32"):
        load("polymnist", "test", data_dir=root)


def test_what_is_built_needs_no_cache(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache: expected published pictures, got none"):
        load("polymnist", "test", data_dir=tmp_path, cache=tmp_path / "kept.safetensors")
