"""A stand-in for MNIST-SVHN where SVHN is not at hand: clean MNIST, and digits of the same class on colour textures.

Like SVHN the second modality is [3, 32, 32], in colour and cluttered; unlike it, its digits are MNIST's.
"""

from __future__ import annotations

import os

import numpy as np
import torch

from mmebm.data.dataset import MultimodalDataset
from mmebm.data.mnist import mnist_part
from mmebm.data.polymnist import READS, backgrounds
from mmebm.data.recipe import SPLITS, check_options, compose, pair_within_class

__all__ = ["mnist_textured"]

MARGIN = 2  # of 28 x 28 digits in 32 x 32 pictures


def mnist_textured(
    split: str,
    *,
    size: int | None = None,
    seed: int = 0,
    n_validation: int = 5_000,
    data_dir: str | os.PathLike[str] | None = None,
) -> MultimodalDataset:
    """Modalities `mnist`, uint8 [N, 1, 28, 28], and `texture`, uint8 [N, 3, 32, 32], that share only the class.

    A texture is a random crop of one of the background pictures, its colours inverted under another digit of the class
    (the recipe of PolyMNIST, on textures of all kinds). Files and options as for `polymnist`.

    Raises:
        FileNotFoundError: says which file, where it was sought and where people get it.
        ValueError: a damaged file, a picture smaller than 32 x 32, an option out of its range.
    """
    check_options(split, size, seed)
    root, images, labels = mnist_part("mnist_textured", split, n_validation, data_dir, READS)
    textures = backgrounds("mnist_textured", root, (32, 32))
    count = size or len(labels)
    key = (seed, SPLITS.index(split))
    sources = pair_within_class(labels, 2, count, np.random.default_rng((*key, 0)))
    digits = np.pad(images > 128, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))[sources[1]]
    which = np.random.default_rng((*key, 2)).integers(len(textures), size=count)
    pictures = np.empty((count, 3, 32, 32), np.uint8)
    for i, texture in enumerate(textures):
        at = np.flatnonzero(which == i)
        pictures[at] = compose(digits[at], texture, np.random.default_rng((*key, 1, i)))
    modalities = {
        "mnist": torch.from_numpy(images[sources[0]][:, None].copy()),
        "texture": torch.from_numpy(pictures),
    }
    return MultimodalDataset(modalities, torch.from_numpy(labels[sources[0]].astype(np.int64)), "mnist_textured", split)
