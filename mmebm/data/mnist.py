"""MNIST's original files."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import numpy as np

from mmebm.data.files import read_bytes, root_folder

__all__ = ["WHERE_MNIST", "mnist_part", "read_idx", "read_mnist", "validation_part"]

CLASSES = 10
WHERE_MNIST = "the four MNIST files are at https://ossci-datasets.s3.amazonaws.com/mnist/"


def read_mnist(dataset: str, folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 28, 28] and labels [n] of the files "train" or "test" in a folder, gzipped or not."""
    prefix = "t10k" if part == "test" else "train"
    paths = [_find(dataset, folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    images, labels = read_idx(paths[0], ndim=3), read_idx(paths[1], ndim=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{folder}: expected a label an image, got {len(images)} {prefix} images and {len(labels)} labels"
        )
    if len(wrong := np.flatnonzero(labels >= CLASSES)):
        raise ValueError(f"{paths[1]}: expected labels 0 to 9, got {labels[wrong[0]]} in row {wrong[0]}")
    return images, labels


def mnist_part(
    name: str, split: str, n_validation: int, data_dir: str | os.PathLike[str] | None, reads: str
) -> tuple[Path, np.ndarray, np.ndarray]:
    """The data folder, and a split's images uint8 [n, 28, 28] and labels [n] of the MNIST files in it.

    The validation split is the last `n_validation` of the training files. `name` is the dataset's, `reads` what else it
    reads, for messages.
    """
    root = root_folder(data_dir, name, f"mnist/ ({WHERE_MNIST}) and {reads}")
    images, labels = read_mnist(name, root / "mnist", split)
    if split != "test":
        part = validation_part(split, len(labels), n_validation)
        images, labels = images[part], labels[part]
    return root, images, labels


def validation_part(split: str, rows: int, n_validation: int) -> slice:
    """Which of the training files' rows are the split's: the last `n_validation` are for validation."""
    if not 0 <= n_validation < rows:
        raise ValueError(f"n_validation: expected 0 <= n < {rows}, got {n_validation}")
    if split == "validation" and not n_validation:
        raise ValueError("split 'validation': expected n_validation > 0, got 0, which leaves it no rows")
    kept = rows - n_validation
    return slice(None, kept) if split == "train" else slice(kept, None)


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """An idx file of unsigned bytes with `ndim` dimensions, gzipped if its name ends in .gz.

    Raises:
        ValueError: the file is not what its header says.
    """
    raw = read_bytes(path)
    start = 4 + 4 * ndim
    if len(raw) < start or raw[:4] != bytes((0, 0, 8, ndim)):
        raise ValueError(
            f"{path}: expected an idx file of unsigned bytes with {ndim} dimensions, got header "
            f"{raw[:4].hex() or 'of no bytes'}"
        )
    shape = struct.unpack(f">{ndim}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise ValueError(f"{path}: expected {list(shape)} values, got {len(raw) - start}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def _find(dataset: str, folder: Path, file: str) -> Path:
    for candidate in (folder / f"{file}.gz", folder / file):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{dataset}: expected {file}.gz or {file} in {folder}, got neither; {WHERE_MNIST}")
