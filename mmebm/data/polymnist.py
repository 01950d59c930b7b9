"""PolyMNIST, built from the original MNIST files and one background picture for each modality."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from mmebm.data.dataset import MultimodalDataset
from mmebm.data.recipe import check_options, poly

__all__ = ["polymnist", "read_idx"]

PICTURES = (".jpeg", ".jpg", ".png")
WHERE_MNIST = "the four MNIST files are at https://ossci-datasets.s3.amazonaws.com/mnist/"
WHERE_PICTURES = (
    "they are yours to choose, as for the original generator (https://github.com/thomassutter/MoPoE): any colour "
    "pictures larger than a digit, taken in the order of their names"
)


def polymnist(
    split: str,
    *,
    size: int | None = None,
    seed: int = 0,
    n_validation: int = 5_000,
    data_dir: str | os.PathLike[str] | None = None,
) -> MultimodalDataset:
    """Modalities m0, m1, ..., uint8 [N, 3, 28, 28], that share only the class: one a background picture, by name.

    Reads `mnist/` (idx files, gzipped or not) and `polymnist_backgrounds/` (jpg or png) under `data_dir`. MNIST is
    binarised at > 128. The validation split is made of the last source digits of MNIST's training files.

    Args:
        split: "train", "validation" or "test".
        size: number of tuples; by default one a source digit (55,000, 5,000 and 10,000).
        seed: pairing and crops.
        n_validation: source digits kept from training; 0 leaves the published 60,000 and no validation split.
        data_dir: by default the environment variable MMEBM_DATA_DIR.

    Raises:
        FileNotFoundError: says which file, where it was sought and where people get it.
        ValueError: a damaged file, a picture smaller than a digit, an option out of its range.
    """
    check_options(split, size, seed)
    root, images, labels = mnist_part("polymnist", split, n_validation, data_dir)
    textures = backgrounds("polymnist", root, images.shape[1:])
    return poly(images > 128, labels, textures, size=size or len(labels), seed=seed, name="polymnist", split=split)


def mnist_part(
    name: str, split: str, n_validation: int, data_dir: str | os.PathLike[str] | None
) -> tuple[Path, np.ndarray, np.ndarray]:
    """The data folder, and a split's images uint8 [n, 28, 28] and labels [n] of the MNIST files in it.

    The validation split is the last `n_validation` of the training files. `name` is the dataset's, for messages.
    """
    root = _data_dir(name, data_dir)
    prefix = "t10k" if split == "test" else "train"
    images = read_idx(_find(name, root / "mnist", f"{prefix}-images-idx3-ubyte"), ndim=3)
    labels = read_idx(_find(name, root / "mnist", f"{prefix}-labels-idx1-ubyte"), ndim=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{root / 'mnist'}: expected a label an image, got {len(images)} {prefix} images and {len(labels)} labels"
        )
    if split != "test":
        if not 0 <= n_validation < len(labels):
            raise ValueError(f"n_validation: expected 0 <= n < {len(labels)}, got {n_validation}")
        kept = len(labels) - n_validation
        part = slice(None, kept) if split == "train" else slice(kept, None)
        images, labels = images[part], labels[part]
        if not len(labels):
            raise ValueError("split 'validation': expected n_validation > 0, got 0, which leaves it no rows")
    return root, images, labels


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """An idx file of unsigned bytes with `ndim` dimensions, gzipped if its name ends in .gz.

    Raises:
        ValueError: the file is not what its header says.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a gzip file, got a damaged one ({error})") from error
    start = 4 + 4 * ndim
    if len(raw) < start or raw[:4] != bytes((0, 0, 8, ndim)):
        raise ValueError(
            f"{path}: expected an idx file of unsigned bytes with {ndim} dimensions, got header "
            f"{raw[:4].hex() or 'of no bytes'}"
        )
    shape = struct.unpack(f">{ndim}I", raw[4:start])
    if len(raw) - start != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path}: expected {list(shape)} values, got {len(raw) - start}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def _data_dir(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    found = data_dir if data_dir is not None else os.environ.get("MMEBM_DATA_DIR")
    if not found:
        raise FileNotFoundError(
            f"{name}: expected its files under data_dir or the environment variable MMEBM_DATA_DIR, got neither; "
            f"it reads mnist/ ({WHERE_MNIST}) and polymnist_backgrounds/ ({WHERE_PICTURES})"
        )
    return Path(found)


def _find(name: str, folder: Path, file: str) -> Path:
    for candidate in (folder / f"{file}.gz", folder / file):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{name}: expected {file}.gz or {file} in {folder}, got neither; {WHERE_MNIST}")


def backgrounds(name: str, root: Path, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The pictures in the data folder, uint8 [H, W, 3] each, by their names; all at least as large as `shape`."""
    folder = root / "polymnist_backgrounds"
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in PICTURES)
    if not paths:
        raise FileNotFoundError(
            f"{name}: expected one background picture (jpg or png) for each modality in {folder}, got none; "
            f"{WHERE_PICTURES}"
        )
    pictures = []
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        if pixels.shape[0] < shape[0] or pixels.shape[1] < shape[1]:
            raise ValueError(
                f"{path}: expected a picture of at least {shape[0]} x {shape[1]} pixels, "
                f"got {pixels.shape[0]} x {pixels.shape[1]}"
            )
        pictures.append(pixels)
    return pictures
