"""CUB on small files of the published layout, made here, and on the real captions where they are."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmebm.data import load
from mmebm.data.captions import sentence

EACH = 10
# Neither sorted by class nor within it, as in the published images.txt.
CLASSES = ("001.Albatross", "002.Auk", "003.Bunting", "004.Crow")
TEST = ("002.Auk", "004.Crow")
SPLITS = ("train", "validation", "test")


def images() -> list[str]:
    return [f"{c}/{c[4:]}_{k:04d}.jpg" for c in CLASSES for k in np.random.default_rng(0).permutation(EACH)]


def of(classes: tuple[str, ...]) -> list[str]:
    return sorted(name for name in images() if name.split("/")[0] in classes)


def said(name: str, k: int) -> str:
    """A caption that names its image and its place, which are words of one class only."""
    return f"a bird like {name.split('/')[1][:-4]}, caption{k}."


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def annotations(folder: Path) -> None:
    n = len(images())
    write(folder / "images.txt", [f"{i} {name}" for i, name in enumerate(images(), 1)])
    write(folder / "classes.txt", [f"{i} {name}" for i, name in enumerate(CLASSES, 1)])
    write(folder / "bounding_boxes.txt", [f"{i} {i}.0 20.0 100.0 50.0" for i in range(1, n + 1)])
    spots = [
        f"{i} {p} {i + p}.0 {20 + i}.0 1" if p != 7 else f"{i} 7 0.0 0.0 0"
        for i in range(1, n + 1)
        for p in range(1, 16)
    ]
    write(folder / "parts" / "part_locs.txt.gz", spots)
    shares = [" ".join(f"{(c + a) % 101}.0" for a in range(312)) for c in range(len(CLASSES))]
    write(folder / "attributes" / "class_attribute_labels_continuous.txt", shares)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The test classes' captions and what is known of all images, without pictures."""
    annotations(tmp_path / "cub")
    write(tmp_path / "cub" / "test_image_order.txt", of(TEST))
    write(tmp_path / "cub" / "text_testclasses.txt.gz", [said(name, k) for name in of(TEST) for k in range(10)])
    return tmp_path


@pytest.fixture
def whole(root: Path) -> Path:
    """The captions of all classes and small pictures: red is the image's row in images.txt."""
    others = tuple(c for c in CLASSES if c not in TEST)
    write(root / "cub" / "text_trainvalclasses.txt", [said(name, k) for name in of(others) for k in range(10)])
    for row, name in enumerate(images()):
        path = root / "cub" / ("test" if name.split("/")[0] in TEST else "train") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 7), (4 * row, 100, 200)).save(path, quality=100)
    return root


def captions(data: Any) -> list[str]:
    return [sentence(codes, data.vocabularies["caption"]) for codes in data.modalities["caption"]]


def test_without_pictures_images_of_the_test_classes_are_split(root: Path) -> None:
    parts = {split: load("cub", split, data_dir=root, minimum=0) for split in SPLITS}
    assert [len(d) for d in parts.values()] == [140, 20, 40], "ten rows an image, 20 images"
    for d in parts.values():
        assert d.shapes == {"caption": (32, len(d.vocabularies["caption"])), "parts": (45,), "attributes": (312,)}
        assert d.vocabularies == parts["train"].vocabularies
        assert torch.bincount(d.labels).tolist() == [len(d) // 2] * 2, "classes count those found, each in every split"
    rows = {split: {tuple(x.tolist()) for x in d.modalities["parts"]} for split, d in parts.items()}
    assert [len(r) for r in rows.values()] == [14, 2, 4], "all rows of an image are in one split"
    assert len(set.union(*rows.values())) == 20


def test_rows_belong_together(root: Path) -> None:
    data = load("cub", "train", data_dir=root, minimum=0)
    index = {name.split("/")[1][:-4].lower(): (row, name) for row, name in enumerate(images(), 1)}
    seen = set()
    for text, spots, shares, label in zip(
        captions(data), data.modalities["parts"], data.modalities["attributes"], data.labels, strict=True
    ):
        row, name = index[text.split()[3].rstrip(",")]
        seen.add(text)
        x, y, visible = spots.reshape(15, 3).T
        expected = torch.tensor([2 * p / 100 - 1 if p != 7 else 0.0 for p in range(1, 16)])
        torch.testing.assert_close(x, expected)
        assert visible.tolist() == [p != 7 for p in range(1, 16)]
        torch.testing.assert_close(y, (2 * row / 50 - 1) * visible)
        c = CLASSES.index(name.split("/")[0])
        torch.testing.assert_close(shares, torch.tensor([(c + a) % 101 / 100 for a in range(312)]))
        assert label == TEST.index(CLASSES[c])
    assert len(seen) == len(data), "every caption once"


def test_the_original_split_with_pictures(whole: Path) -> None:
    parts = {split: load("cub", split, data_dir=whole, minimum=0, image_size=8) for split in SPLITS}
    assert [len(d) for d in parts.values()] == [180, 20, 200]
    for split, d in parts.items():
        assert d.shapes["image"] == (3, 8, 8) and list(d.shapes) == ["image", "caption"]
        known = {4 * row: name for row, name in enumerate(images())}
        for pixels, text, label in zip(d.modalities["image"], captions(d), d.labels, strict=True):
            name = known[min(known, key=lambda red: abs(red - int(pixels[0, 4, 4])))]
            assert (name.split("/")[0] in TEST) == (split == "test") and CLASSES[label] == name.split("/")[0]
            if split == "train":
                assert text == said(name, int(text[-2])).lower()
    assert "<exc>" in captions(parts["test"])[0], "names of test images are no words of training"
    assert len(load("cub", "train", data_dir=whole, validation=0.0)) == 200
    with pytest.raises(
        ValueError, match=r"split 'validation': expected at least one image, got none; validation is 0.0"
    ):
        load("cub", "validation", data_dir=whole, validation=0.0)


def test_pictures_and_annotations_as_caltech_has_them(whole: Path) -> None:
    archive = whole / "cub" / "CUB_200_2011"
    before = load("cub", "test", data_dir=whole, modalities=["image", "caption", "parts", "attributes"])
    for name in ("images.txt", "classes.txt", "bounding_boxes.txt", "parts", "attributes"):
        archive.mkdir(exist_ok=True)
        (whole / "cub" / name).rename(archive / name)
    for part in ("train", "test"):
        for folder in (whole / "cub" / part).iterdir():
            (archive / "images").mkdir(exist_ok=True)
            folder.rename(archive / "images" / folder.name)
        (whole / "cub" / part).rmdir()
    after = load("cub", "test", data_dir=whole, modalities=["image", "caption", "parts", "attributes"])
    assert before.fingerprint() == after.fingerprint()


def test_without_captions_an_image_is_a_row(root: Path) -> None:
    data = load("cub", "train", data_dir=root, modalities=["parts", "attributes"])
    assert len(data) == 14 and data.vocabularies == {}


def test_sizes_and_seeds(root: Path) -> None:
    one, again, other = (load("cub", "test", data_dir=root, seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()
    assert sorted(captions(one)) == sorted(captions(other)), "a seed mixes rows and moves none to another split"
    assert torch.equal(load("cub", "test", data_dir=root, size=7).labels, one.labels[:7])
    assert load("cub", "test", data_dir=root, length=5).modalities["caption"].shape == (40, 5)
    with pytest.raises(ValueError, match="size: expected at most 40 rows of split 'test', got 41"):
        load("cub", "test", data_dir=root, size=41)


def test_rare_words(root: Path) -> None:
    data = load("cub", "train", data_dir=root, minimum=10)
    words = data.vocabularies["caption"]
    assert words[:6] == ["<exc>", "<pad>", "<eos>", "a", "bird", "like"] and "auk_0000" not in words
    assert captions(data)[0].startswith("a bird like <exc>,")
    with pytest.raises(
        ValueError, match=r"text_testclasses\.txt\.gz, line \d+: expected the vocabulary's .*got '\w+_00"
    ):
        load("cub", "train", data_dir=root, minimum=10, unknown="error")


@pytest.mark.parametrize(("options", "message"), [
    ({"modalities": ["sound"]}, r"modalities: expected a list of some of image, .*, got \['sound'\]"),
    ({"modalities": "caption"}, "modalities: expected a list of some of image, .*, got 'caption'"),
    ({"modalities": []}, "modalities: expected a list"),
    ({"image_size": 0}, "image_size: expected an integer >= 1, got 0"),
    ({"length": 1}, "length: expected an integer >= 2, got 1"),
    ({"minimum": -1}, "minimum: expected an integer >= 0, got -1"),
    ({"unknown": "skip"}, "unknown: expected exc or error, got 'skip'"),
    ({"validation": 1.0}, r"validation: expected a share in \[0, 1\), got 1.0"),
])  # fmt: skip
def test_options_out_of_range(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("cub", "train", data_dir=root, **options)


def edited(change: Callable[[list[str]], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().splitlines()
        change(lines)
        write(path, lines)

    return edit


def put(line: int, text: str) -> Callable[[Path], None]:
    return edited(lambda lines: lines.__setitem__(line - 1, text))


@pytest.mark.parametrize(("name", "damage", "message"), [
    ("text_testclasses.txt.gz", put(7, " "), "line 7: expected a caption, got an empty line"),
    ("text_testclasses.txt.gz", edited(lambda lines: lines.append("one more.")),
     r"expected 10 captions of each of the 20 images of .*test_image_order.txt, got 201: line 201 has no image"),
    ("text_testclasses.txt.gz", edited(lambda lines: lines.pop()),
     "got 199: after line 199 captions of '004.Crow/Crow_0009.jpg' are missing"),
    ("text_testclasses.txt.gz", lambda path: path.write_bytes(path.read_bytes()[:-12]), "expected a gzip file"),
    ("text_testclasses.txt.gz", lambda path: path.write_bytes(gzip.compress(b"a bird.\n\xff\n")),
     "line 2: expected UTF-8 text, got byte 0xff"),
    ("test_image_order.txt", put(3, "002.Auk/Other.jpg"), r"line 3: expected an image of .*images.txt, got '002.Auk/O"),
    ("test_image_order.txt", put(3, "Auk.jpg"), "line 3: expected class/picture, got 'Auk.jpg'"),
    ("test_image_order.txt", put(3, "002.Auk/Auk_0001.jpg"), "line 3: expected images in the order of their folders"),
    ("images.txt", put(4, "5 002.Auk/Auk_0001.jpg"), "line 4: expected number 4 and a name, got '5 002"),
    ("classes.txt", put(2, "2"), "line 2: expected number 2 and a name, got '2'"),
    ("classes.txt", put(2, "2 002.Auklet"), "classes.txt: expected a line of '002.Auk', got none"),
    ("bounding_boxes.txt", put(6, "6 1.0 2.0 3.0"), "line 6: expected 5 finite numbers, got '6 1.0 2.0 3.0'"),
    ("bounding_boxes.txt", put(6, "6 1.0 2.0 x 1"), "line 6: expected 5 finite numbers, got '6 1.0 2.0 x 1'"),
    ("bounding_boxes.txt", put(6, "6 1.0 2.0 nan 1"), "line 6: expected 5 finite numbers"),
    ("bounding_boxes.txt", put(6, "7 1.0 2.0 3.0 4.0"), r"line 6: expected it to begin with \[6\], got \[7.0\]"),
    ("bounding_boxes.txt", put(6, "6 1.0 2.0 0.0 4.0"), r"line 6: expected a width and a height > 0, got \[0.0, 4.0\]"),
    ("bounding_boxes.txt", edited(lambda lines: lines.pop()), "bounding_boxes.txt: expected 40 lines, got 39"),
    ("parts/part_locs.txt.gz", put(17, "2 2 1.0 1.0 2"), "line 17: expected visibility 0 or 1, got .*2.0"),
    ("parts/part_locs.txt.gz", put(17, "2 3 1.0 1.0 1"), r"line 17: expected it to begin with \[2, 2\], got \[2.0, 3"),
    ("attributes/class_attribute_labels_continuous.txt", put(2, " ".join(["101"] * 312)), "line 2: expected shares"),
    ("attributes/class_attribute_labels_continuous.txt", put(2, "1 2"), "line 2: expected 312 finite numbers"),
    ("attributes/class_attribute_labels_continuous.txt", edited(lambda lines: lines.pop()),
     "expected a line for each of the 4 classes of"),
])  # fmt: skip
def test_damage_is_named_with_file_and_line(
    root: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(root / "cub" / name)
    with pytest.raises(ValueError, match=message) as raised:
        load("cub", "train", data_dir=root)
    assert Path(name).name in str(raised.value)


@pytest.mark.parametrize("name", [
    "text_testclasses.txt.gz", "test_image_order.txt", "images.txt", "bounding_boxes.txt", "parts/part_locs.txt.gz",
    "classes.txt", "attributes/class_attribute_labels_continuous.txt",
])  # fmt: skip
def test_missing_files_say_which_where_and_from_where(root: Path, name: str) -> None:
    (root / "cub" / name).unlink()
    stem = Path(name).name.removesuffix(".gz")
    with pytest.raises(FileNotFoundError, match=rf"cub: expected {stem}.* in .*cub.*https://www.*http://www\.robots"):
        load("cub", "train", data_dir=root)


def test_missing_and_damaged_pictures(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = whole / "cub" / "train" / of(("001.Albatross",))[4]
    content = path.read_bytes()
    for damaged in (b"", b"no picture", content[:200], content[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=rf"{path.name}: expected a picture, got a file that is none or is damaged"
        ):
            load("cub", "train", data_dir=whole, validation=0.0)
    write(whole / "cub" / "train_image_order.txt", of(("001.Albatross", "003.Bunting")))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"expected the picture 001.Albatross/{path.name} in train/.*https"):
        load("cub", "train", data_dir=whole, validation=0.0)
    monkeypatch.delenv("MMEBM_DATA_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match="cub: expected its files under data_dir or the environment variable"):
        load("cub", "train")


def test_the_real_captions(data_dir: Path) -> None:
    parts = {split: load("cub", split, data_dir=data_dir) for split in SPLITS}
    assert {split: len(d) for split, d in parts.items()} == {"train": 21_000, "validation": 2_440, "test": 5_890}
    train = parts["train"]
    assert train.shapes == {"caption": (32, 850), "parts": (45,), "attributes": (312,)}
    assert train.vocabularies["caption"][3:8] == ["the", "medium", "sized", "bird", "has"]
    for d in parts.values():
        assert len(torch.bincount(d.labels)) == 50
        codes, where = d.modalities["caption"], d.modalities["parts"]
        assert ((codes == 2).sum(1) == 1).all() and (codes == 0).float().mean() < 0.005
        assert where.abs().max() <= 1 and 0.7 < where[:, 2::3].mean() < 0.9
    assert not set(map(tuple, train.modalities["parts"].tolist())) & set(
        map(tuple, parts["test"].modalities["parts"].tolist())
    )
