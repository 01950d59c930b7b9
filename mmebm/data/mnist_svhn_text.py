"""MNIST-SVHN-Text: MNIST-SVHN and the digit's English word in a string of eight characters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmebm.data.dataset import MultimodalDataset
from mmebm.data.mnist_svhn import mnist_svhn
from mmebm.data.recipe import SPLITS

__all__ = ["ALPHABET", "DIGITS", "LENGTH", "mnist_svhn_text"]

LENGTH = 8
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# The published alphabet of 71 characters, in its order. It has the hyphen twice; the second is never used.
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"\\/|_@#$%^&*~`+-=<>()[]{} \n"


def mnist_svhn_text(split: str, *, size: int | None = None, seed: int = 0, **options: Any) -> MultimodalDataset:
    """Modalities mnist, svhn and text: codes int8 [N, 8] of the vocabulary of 71 characters.

    As in mmJSD and MoPoE (Sutter et al., NeurIPS 2020, ICLR 2021) the digit's word begins at a random place, all others
    are blank, and the last place is always blank. Where a row's word begins follows from `seed`, split and row.

    Args:
        split: "train", "validation" or "test".
        size: the first rows of the split; by default all.
        seed: of pairing, order and places.
        options: as for `mnist_svhn`: dm, most, validation, pairing, data_dir. mmJSD and MoPoE have dm = 20.

    Raises:
        FileNotFoundError, ValueError, TypeError: as `mnist_svhn`.
    """
    pairs = mnist_svhn(split, size=size, seed=seed, **options)
    assert pairs.labels is not None
    text = place_words(pairs.labels.numpy(), np.random.default_rng((seed, SPLITS.index(split))))
    return MultimodalDataset(
        {**pairs.modalities, "text": torch.from_numpy(text)},
        pairs.labels,
        "mnist_svhn_text",
        split,
        vocabularies={"text": list(ALPHABET)},
    )


def place_words(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Codes int8 [N, 8] of the labels' words; row i follows from the generator's i-th number alone."""
    text = np.full((len(labels), LENGTH), ALPHABET.index(" "), np.int8)
    where = generator.random(len(labels))
    for digit, word in enumerate(DIGITS):
        rows = np.flatnonzero(labels == digit)
        start = (where[rows] * (LENGTH - len(word))).astype(np.int64)
        text[rows[:, None], start[:, None] + np.arange(len(word))] = [ALPHABET.index(letter) for letter in word]
    return text
