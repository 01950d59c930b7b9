"""CUB-200-2011: birds as pictures, captions, part locations and attributes of their class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmebm.data.captions import SPECIALS, encode, tokens, vocabulary
from mmebm.data.dataset import MultimodalDataset
from mmebm.data.files import read_lines, read_picture, read_table, root_folder
from mmebm.data.recipe import SPLITS, check_options

__all__ = ["ATTRIBUTES", "CAPTIONS", "MODALITIES", "PARTS", "cub"]

MODALITIES = ("image", "caption", "parts", "attributes")
CAPTIONS, PARTS, ATTRIBUTES = 10, 15, 312
TEXTS = {"train": "text_trainvalclasses.txt", "test": "text_testclasses.txt"}
PICTURES = (".jpg", ".jpeg", ".png")
FOLDERS = ("", "CUB_200_2011", *(f"{a}{b}" for a in ("", "CUB_200_2011/") for b in ("parts", "attributes")))
WHERE = (
    "pictures and annotations are at https://www.vision.caltech.edu/datasets/cub_200_2011/, captions and pictures in "
    "folders train and test at http://www.robots.ox.ac.uk/~yshi/mmdgm/datasets/cub.zip"
)
# Where only the test classes are there, the split belongs to the dataset: `seed` must not move a test image.
SPLIT_SEED = 2011
TEST_SHARE = 0.2


def cub(
    split: str,
    *,
    size: int | None = None,
    seed: int = 0,
    modalities: Sequence[str] | None = None,
    image_size: int = 64,
    length: int = 32,
    minimum: int = 3,
    unknown: str = "exc",
    validation: float = 0.1,
    data_dir: str | os.PathLike[str] | None = None,
) -> MultimodalDataset:
    """Birds in up to four modalities, a row for each caption (ten an image), or for each image without captions.

    - image: uint8 [N, 3, image_size, image_size], resized without keeping the aspect.
    - caption: codes int32 [N, length] of `vocabularies["caption"]`: <exc> (any other word), <pad>, <eos>, then the
      words that come more than `minimum` times in the training split's captions, in order of first appearance there.
      The first length - 1 words, <eos>, then <pad>.
    - parts: float32 [N, 45], x, y and visibility (0 or 1) of 15 parts in the order of parts.txt. x and y run from -1
      to 1 over the bounding box; a part that is not visible has 0, 0, 0.
    - attributes: float32 [N, 312], the share of annotators (0 to 1) who saw each attribute. They are the class's: all
      its images have the same.

    Reads `cub/` under `data_dir`, files gzipped or not, as they lie in the published archives. With
    text_trainvalclasses.txt or pictures in train/ the original split is used: 150 classes for training, with a share
    `validation` of each one's images for validation, and 50 others for the test. With the test classes' files alone,
    20% of each class's images are the test split and `validation` of the others validation. Both are the same for every
    seed; captions of one image never part.

    The images' order, which captions follow, is that of test_image_order.txt or train_image_order.txt, else of the
    pictures in test/ or train/ by name, else, for training, of images.txt by name without the test classes.

    Labels count the classes of the images found, in the order of their names: 0 to 199 where both parts are there.

    Args:
        split: "train", "validation" or "test".
        size: the first rows of the split; by default all.
        seed: of the order of rows.
        modalities: of "image", "caption", "parts", "attributes"; by default image and caption where pictures are
            found, else caption, parts and attributes.
        image_size: pixels on a side.
        length: codes a caption.
        minimum: see caption; 0 keeps every word of the training split.
        unknown: "exc", or "error" to refuse a word that the vocabulary lacks.
        validation: share of training images kept for validation; 0 leaves the published split and no validation.
        data_dir: by default the environment variable MMEBM_DATA_DIR.

    Raises:
        FileNotFoundError: says which file, where it was sought and where people get it.
        ValueError: a damaged file, named with its line; captions that do not fit the images; an option out of range.
    """
    check_options(split, size, seed)
    _check(image_size, length, minimum, unknown, validation, modalities)
    folder = root_folder(data_dir, "cub", f"cub/ ({WHERE})") / "cub"
    original = _find(folder, TEXTS["train"]) is not None or (folder / "train").is_dir()
    part, training = ("test" if split == "test" else "train", "train") if original else ("test", "test")
    order = _orders(folder, (part, training))
    names, source = order[part]
    classes = sorted({_class(name) for known, _ in order.values() for name in known})
    images = _rows(names, split, original, validation)
    if not len(images):
        raise ValueError(f"split {split!r}: expected at least one image, got none; validation is {validation}")
    if modalities is None:
        pictured = _picture(folder, names[0]) is not None
        modalities = ("image", "caption") if pictured else ("caption", "parts", "attributes")
    captioned = "caption" in modalities
    rows = np.repeat(images, CAPTIONS) * CAPTIONS + np.tile(np.arange(CAPTIONS), len(images)) if captioned else images
    rows = np.random.default_rng((seed, SPLITS.index(split))).permutation(rows)
    if size is not None and size > len(rows):
        raise ValueError(f"size: expected at most {len(rows)} rows of split {split!r}, got {size}")
    rows = rows[:size]
    images = rows // CAPTIONS if captioned else rows
    shown = [names[i] for i in images]

    found: dict[str, Tensor] = {}
    vocabularies = {}
    for name in modalities:
        if name == "image":
            found[name] = _images(folder, shown, image_size)
        elif name == "parts":
            found[name] = _parts(folder, shown)
        elif name == "attributes":
            found[name] = _attributes(folder, shown)
        else:
            text = _captions(folder, training, *order[training])
            chosen = _rows(order[training][0], "train", original, validation)
            words = vocabulary((tokens(text[i * CAPTIONS + k]) for i in chosen for k in range(CAPTIONS)), minimum)
            if part != training:
                text = _captions(folder, part, names, source)
            path = _need(folder, TEXTS[part])
            found[name] = _codes(path, text, rows, words, length, unknown)
            vocabularies[name] = words
    labels = torch.tensor([classes.index(_class(name)) for name in shown])
    return MultimodalDataset(found, labels, "cub", split, vocabularies=vocabularies)


def _check(
    image_size: int, length: int, minimum: int, unknown: str, validation: float, modalities: Sequence[str] | None
) -> None:
    for name, value, least in (("image_size", image_size, 1), ("length", length, 2), ("minimum", minimum, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
    if unknown not in ("exc", "error"):
        raise ValueError(f"unknown: expected exc or error, got {unknown!r}")
    if not 0.0 <= validation < 1.0:
        raise ValueError(f"validation: expected a share in [0, 1), got {validation}")
    if modalities is not None and (
        isinstance(modalities, str)
        or not modalities
        or len(set(modalities)) < len(modalities)
        or not set(modalities) <= set(MODALITIES)
    ):
        raise ValueError(f"modalities: expected a list of some of {', '.join(MODALITIES)}, got {modalities!r}")


def _find(folder: Path, name: str) -> Path | None:
    candidates = (folder / sub / f"{name}{end}" for sub in FOLDERS for end in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _need(folder: Path, name: str) -> Path:
    found = _find(folder, name)
    if found is None:
        raise FileNotFoundError(
            f"cub: expected {name} or {name}.gz in {folder} or its CUB_200_2011/, got neither; {WHERE}"
        )
    return found


def _class(name: str) -> str:
    return name.split("/")[0]


def _orders(folder: Path, needed: Sequence[str]) -> dict[str, tuple[list[str], Path]]:
    """part -> its image names in the captions' order, and where that stands; of every part that is there."""
    known: dict[str, tuple[list[str], Path]] = {}
    index = _find(folder, "images.txt")
    for part in ("test", "train"):
        listed, pictures = _find(folder, f"{part}_image_order.txt"), folder / part
        if listed is not None:
            known[part] = (_listed(listed, index), listed)
        elif pictures.is_dir():
            known[part] = (_sorted_pictures(pictures), pictures)
        elif part == "train" and part in needed and index is not None and "test" in known:
            others = {_class(name) for name in known["test"][0]}
            known[part] = (sorted((n for n in _index(index) if _class(n) not in others), key=_folder_order), index)
        elif part in needed:
            raise FileNotFoundError(
                f"cub: expected {part}_image_order.txt, or pictures in {part}/, in {folder}, got neither; {WHERE}"
            )
    return known


def _folder_order(name: str) -> tuple[str, ...]:
    return tuple(name.split("/"))


def _listed(path: Path, index: Path | None) -> list[str]:
    names = read_lines(path)
    known = None if index is None else set(_index(index))
    if not names:
        raise ValueError(f"{path}: expected the images' names, got an empty file")
    for number, name in enumerate(names, 1):
        if name.count("/") != 1:
            raise ValueError(f"{path}, line {number}: expected class/picture, got {name!r}")
        if known is not None and name not in known:
            raise ValueError(f"{path}, line {number}: expected an image of {index}, got {name!r}")
        if number > 1 and _folder_order(name) <= _folder_order(names[number - 2]):
            raise ValueError(
                f"{path}, line {number}: expected images in the order of their folders and names, got {name!r} after "
                f"{names[number - 2]!r}"
            )
    return names


def _sorted_pictures(folder: Path) -> list[str]:
    found = [f"{p.parent.name}/{p.name}" for p in folder.glob("*/*") if p.suffix.lower() in PICTURES]
    if not found:
        raise FileNotFoundError(f"cub: expected pictures in folders of {folder}, got none; {WHERE}")
    return sorted(found, key=_folder_order)


def _index(path: Path) -> dict[str, int]:
    """images.txt or classes.txt: name -> row."""
    found = {}
    for number, line in enumerate(read_lines(path), 1):
        words = line.split()
        if len(words) != 2 or words[0] != str(number):
            raise ValueError(f"{path}, line {number}: expected number {number} and a name, got {line!r}")
        found[words[1]] = number - 1
    return found


def _row(index: dict[str, int], path: Path, name: str) -> int:
    if name not in index:
        raise ValueError(f"{path}: expected a line of {name!r}, got none")
    return index[name]


def _rows(names: list[str], split: str, original: bool, validation: float) -> np.ndarray:
    """Which images of the part are the split's, in their order; within each class by chance."""
    if original and split == "test":
        return np.arange(len(names))
    rng = np.random.default_rng(SPLIT_SEED)
    by_class: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        by_class.setdefault(_class(name), []).append(row)
    chosen = []
    for members in by_class.values():
        mixed = rng.permutation(members)
        test = 0 if original else round(TEST_SHARE * len(mixed))
        held = test + round(validation * (len(mixed) - test))
        chosen.append({"test": mixed[:test], "validation": mixed[test:held], "train": mixed[held:]}[split])
    return np.sort(np.concatenate(chosen))


def _captions(folder: Path, part: str, names: list[str], source: Path) -> list[str]:
    path = _need(folder, TEXTS[part])
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        if not line:
            raise ValueError(f"{path}, line {number}: expected a caption, got an empty line")
    if len(lines) != CAPTIONS * len(names):
        after = (
            f"line {CAPTIONS * len(names) + 1} has no image"
            if len(lines) > CAPTIONS * len(names)
            else f"after line {len(lines)} captions of {names[len(lines) // CAPTIONS]!r} are missing"
        )
        raise ValueError(
            f"{path}: expected {CAPTIONS} captions of each of the {len(names)} images of {source}, got {len(lines)}: "
            f"{after}"
        )
    return lines


def _codes(path: Path, text: list[str], rows: np.ndarray, words: list[str], length: int, unknown: str) -> Tensor:
    codes = {word: code for code, word in enumerate(words)}
    found = np.empty((len(rows), length), np.int32)
    for place, row in enumerate(rows):
        said = tokens(text[row])
        if unknown == "error":
            for word in said[: length - 1]:
                if word not in codes:
                    raise ValueError(
                        f"{path}, line {row + 1}: expected the vocabulary's {len(words) - len(SPECIALS)} words, got "
                        f"{word!r}"
                    )
        found[place] = encode(said, codes, length)
    return torch.from_numpy(found)


def _picture(folder: Path, name: str) -> Path | None:
    places = ("train", "test", "images", "CUB_200_2011/images")
    return next((path for place in places if (path := folder / place / name).is_file()), None)


def _images(folder: Path, names: list[str], size: int) -> Tensor:
    distinct = {name: row for row, name in enumerate(dict.fromkeys(names))}
    pixels = np.empty((len(distinct), 3, size, size), np.uint8)
    for name, row in distinct.items():
        path = _picture(folder, name)
        if path is None:
            raise FileNotFoundError(
                f"cub: expected the picture {name} in train/, test/, images/ or CUB_200_2011/images/ of {folder}, got "
                f"none; {WHERE}"
            )
        pixels[row] = read_picture(path, (size, size)).transpose(2, 0, 1)
    return torch.from_numpy(pixels)[[distinct[name] for name in names]]


def _numbered(folder: Path, name: str, columns: int, keys: np.ndarray) -> np.ndarray:
    """A table without its first columns, which must be `keys`."""
    path = _need(folder, name)
    table = read_table(path, columns)
    width = keys.shape[1]
    if len(table) != len(keys):
        raise ValueError(f"{path}: expected {len(keys)} lines, got {len(table)}")
    wrong = (table[:, :width] != keys).any(1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{path}, line {row + 1}: expected it to begin with {keys[row].tolist()}, got {table[row, :width].tolist()}"
        )
    return table[:, width:]


def _parts(folder: Path, names: list[str]) -> Tensor:
    path = _need(folder, "images.txt")
    index = _index(path)
    numbers = np.arange(1, len(index) + 1)
    boxes = _numbered(folder, "bounding_boxes.txt", 5, numbers[:, None])
    pairs = np.stack([np.repeat(numbers, PARTS), np.tile(np.arange(1, PARTS + 1), len(numbers))], 1)
    places = _numbered(folder, "part_locs.txt", 5, pairs)
    for name, wrong, what in (
        ("bounding_boxes.txt", (boxes[:, 2:] <= 0).any(1), "a width and a height > 0"),
        ("part_locs.txt", (places[:, 2] != 0) & (places[:, 2] != 1), "visibility 0 or 1"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            got = (boxes if name == "bounding_boxes.txt" else places)[row, 2:].tolist()
            raise ValueError(f"{_need(folder, name)}, line {row + 1}: expected {what}, got {got}")
    rows = np.array([_row(index, path, name) for name in names])
    corner, extent = boxes[rows, None, :2], boxes[rows, None, 2:]
    spot = places.reshape(-1, PARTS, 3)[rows]
    visible = spot[..., 2:]
    relative = (2 * (spot[..., :2] - corner) / extent - 1) * visible
    return torch.from_numpy(np.concatenate([relative, visible], 2).reshape(len(rows), -1).astype(np.float32))


def _attributes(folder: Path, names: list[str]) -> Tensor:
    listed = _need(folder, "classes.txt")
    path = _need(folder, "class_attribute_labels_continuous.txt")
    index, table = _index(listed), read_table(path, ATTRIBUTES)
    if len(table) != len(index):
        raise ValueError(f"{path}: expected a line for each of the {len(index)} classes of {listed}, got {len(table)}")
    wrong = ((table < 0) | (table > 100)).any(1)
    if wrong.any():
        raise ValueError(f"{path}, line {int(wrong.argmax()) + 1}: expected shares from 0 to 100, got others")
    rows = [_row(index, listed, _class(name)) for name in names]
    return torch.from_numpy((table[rows] / 100).astype(np.float32))
