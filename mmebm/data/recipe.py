"""PolyMNIST's recipe: a digit inverts the colours of a random crop of its modality's texture.

Every modality shows another source digit of the same class on another crop, so that the class is all they share.
Source: Sutter, Daunhawer, Vogt, "Generalized Multimodal ELBO", ICLR 2021, whose generator was not seeded; this one is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mmebm.data.dataset import MultimodalDataset

__all__ = ["SPLITS", "check_options", "compose", "pair_within_class", "poly"]

SPLITS = ("train", "validation", "test")


def check_options(split: str, size: int | None, seed: int) -> None:
    """Raises ValueError or TypeError where a dataset's common options are not what they should be."""
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise TypeError(f"size: expected a number of rows or None, got {type(size).__name__}")
    if size is not None and size < 1:
        raise ValueError(f"size: expected at least 1 row, got {size}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed: expected an int, got {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"seed: expected an int >= 0, got {seed}")


def pair_within_class(labels: np.ndarray, modalities: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Which source digit each modality shows in each tuple.

    Args:
        labels: [n] class of every source digit.
        modalities: M.
        size: N. Any n consecutive tuples starting at a multiple of n use every source digit once in every modality.
        rng: independent permutations within the class for every modality and repeat.

    Returns:
        int64 [M, N]: rows of one column are source digits of one class.
    """
    n = len(labels)
    by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    blocks = []
    for _ in range(-(-size // n)):
        order = rng.permutation(n)
        block = np.stack([np.concatenate([rng.permutation(rows) for rows in by_class]) for _ in range(modalities)])
        blocks.append(block[:, order])
    return np.concatenate(blocks, axis=1)[:, :size]


def compose(masks: np.ndarray, texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random crops of a texture, their colours inverted under the digits.

    Args:
        masks: bool [N, h, w], True on the digit.
        texture: uint8 [H, W, 3], H >= h and W >= w.
        rng: draws the crops, uniform over all positions.

    Returns:
        uint8 [N, 3, h, w].
    """
    h, w = masks.shape[1:]
    windows = np.lib.stride_tricks.sliding_window_view(texture, (h, w), axis=(0, 1))  # [H-h+1, W-w+1, 3, h, w]
    y = rng.integers(windows.shape[0], size=len(masks))
    x = rng.integers(windows.shape[1], size=len(masks))
    return windows[y, x] ^ (masks[:, None] * np.uint8(255))  # x ^ 255 = 255 - x


def poly(
    masks: np.ndarray,
    labels: np.ndarray,
    textures: Sequence[np.ndarray],
    *,
    size: int,
    seed: int,
    name: str,
    split: str,
) -> MultimodalDataset:
    """`size` tuples of modalities m0, m1, ..., one for each texture.

    Args:
        masks: bool [n, h, w], the split's source digits.
        labels: int [n].
        textures: uint8 [H, W, 3] each.
        size: number of tuples N.
        seed: pairing and crops; splits and modalities draw from independent streams.
        name, split: given to the dataset.
    """
    key = (seed, SPLITS.index(split))
    sources = pair_within_class(labels, len(textures), size, np.random.default_rng((*key, 0)))
    modalities = {}
    for m, texture in enumerate(textures):
        images = compose(masks[sources[m]], texture, np.random.default_rng((*key, 1, m)))
        modalities[f"m{m}"] = torch.from_numpy(images)
    return MultimodalDataset(modalities, torch.from_numpy(labels[sources[0]].astype(np.int64)), name, split)
