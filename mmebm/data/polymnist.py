"""PolyMNIST: the published pictures, or built from the original MNIST files and one background for each modality."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mmebm.data.dataset import MultimodalDataset
from mmebm.data.files import read_picture, root_folder
from mmebm.data.mnist import WHERE_MNIST, mnist_part
from mmebm.data.polymnist_folders import published
from mmebm.data.recipe import check_options, poly

__all__ = ["backgrounds", "polymnist"]

PICTURES = (".jpeg", ".jpg", ".png")
WHERE_PICTURES = (
    "they are yours to choose, as for the original generator (https://github.com/thomassutter/MoPoE): any colour "
    "pictures larger than a digit, taken in the order of their names"
)
READS = f"polymnist_backgrounds/ ({WHERE_PICTURES})"


def polymnist(
    split: str,
    *,
    size: int | None = None,
    seed: int = 0,
    n_validation: int = 5_000,
    folder: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> MultimodalDataset:
    """Modalities m0, m1, ..., uint8 [N, 3, 28, 28], that share only the class.

    The published pictures `{train,test}/m0/<index>.<label>.png`, m1, ..., of `folder` or, where it is there, `MMNIST/`
    under `data_dir`: row by row in the order of their index, whatever `seed` is. The validation split is the last
    `n_validation` of train; a source digit of it may be another training row's in another modality, as published.

    Else they are built from `mnist/` (idx files, gzipped or not) and `polymnist_backgrounds/` (jpg or png, a modality
    for each by name) under `data_dir`. MNIST is binarised at > 128. The validation split is made of the last source
    digits of MNIST's training files.

    Args:
        split: "train", "validation" or "test".
        size: number of tuples; by default one a source digit (55,000, 5,000 and 10,000). Of published pictures the
            first of the split.
        seed: pairing and crops of what is built.
        n_validation: source digits kept from training; 0 leaves the published 60,000 and no validation split.
        folder: of the published pictures, with train/ and test/ in it.
        cache: a .safetensors file that published pictures are written to, or read from if it is there; {part} in it
            becomes train or test.
        data_dir: by default the environment variable MMEBM_DATA_DIR.

    Raises:
        FileNotFoundError: says which file, where it was sought and where people get it.
        ValueError: a damaged file, a picture smaller than a digit, an option out of its range.
    """
    check_options(split, size, seed)
    if folder is None:
        found = root_folder(data_dir, "polymnist", f"MMNIST/, or mnist/ ({WHERE_MNIST}) and {READS}") / "MMNIST"
        folder = found if found.is_dir() else None
    if folder is not None:
        return published(Path(folder), split, size=size, n_validation=n_validation, cache=cache)
    if cache is not None:
        raise ValueError("cache: expected published pictures, got none: what is built needs no cache")
    root, images, labels = mnist_part("polymnist", split, n_validation, data_dir, READS)
    textures = backgrounds("polymnist", root, images.shape[1:])
    return poly(images > 128, labels, textures, size=size or len(labels), seed=seed, name="polymnist", split=split)


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
        pixels = read_picture(path)
        if pixels.shape[0] < shape[0] or pixels.shape[1] < shape[1]:
            raise ValueError(
                f"{path}: expected a picture of at least {shape[0]} x {shape[1]} pixels, "
                f"got {pixels.shape[0]} x {pixels.shape[1]}"
            )
        pictures.append(pixels)
    return pictures
