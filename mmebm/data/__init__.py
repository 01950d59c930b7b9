"""Datasets by name, and your own arrays as a `MultimodalDataset`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmebm.data.arrays import arrays
from mmebm.data.cub import cub
from mmebm.data.dataset import MultimodalDataset
from mmebm.data.digits import digits
from mmebm.data.mfeat import mfeat
from mmebm.data.mnist_svhn import mnist_svhn
from mmebm.data.mnist_svhn_text import mnist_svhn_text
from mmebm.data.mnist_textured import mnist_textured
from mmebm.data.polymnist import polymnist
from mmebm.data.torch_dataset import from_dataset

__all__ = [
    "DATASETS",
    "MultimodalDataset",
    "arrays",
    "cub",
    "digits",
    "from_dataset",
    "load",
    "mfeat",
    "mnist_svhn",
    "mnist_svhn_text",
    "mnist_textured",
    "polymnist",
]

DATASETS: dict[str, Callable[..., MultimodalDataset]] = {
    "digits": digits,
    "polymnist": polymnist,
    "mfeat": mfeat,
    "cub": cub,
    "mnist_svhn": mnist_svhn,
    "mnist_svhn_text": mnist_svhn_text,
    "mnist_textured": mnist_textured,
    "arrays": arrays,
}


def load(name: str, split: str, **options: Any) -> MultimodalDataset:
    """The split ("train", "validation" or "test") of a dataset.

    Args:
        name: "digits" (nothing to download), "polymnist", "mnist_svhn", "mnist_svhn_text", "mnist_textured", "cub" and
            "mfeat" (from files under `data_dir`, by default MMEBM_DATA_DIR), or "arrays" (your own, under `path`).
        split: which part.
        options: given to the dataset; all know `size` (number of rows) and `seed`.

    Raises:
        ValueError: an unknown name or split.
        FileNotFoundError: files that are not where they should be.
    """
    if name not in DATASETS:
        raise ValueError(f"name: expected one of {', '.join(sorted(DATASETS))}, got {name!r}")
    return DATASETS[name](split, **options)
