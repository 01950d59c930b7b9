"""MNIST-SVHN-Text: the pairs of MNIST-SVHN, and the digit's word somewhere in eight places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmebm import data
from mmebm.data.captions import sentence
from mmebm.data.mnist_svhn_text import ALPHABET, DIGITS, place_words


@pytest.fixture
def root(mnist_svhn_files: Path) -> Path:
    return mnist_svhn_files


def load(root: Path, split: str = "train", **options: Any) -> data.MultimodalDataset:
    return data.load("mnist_svhn_text", split, data_dir=root, **options)


def test_the_word_is_the_rows_digit(root: Path) -> None:
    found, pairs = load(root, dm=2), data.load("mnist_svhn", "train", data_dir=root, dm=2)
    assert found.shapes == {"mnist": (1, 28, 28), "svhn": (3, 32, 32), "text": (8, 71)}
    assert torch.equal(found.modalities["svhn"], pairs.modalities["svhn"]) and found.labels is not None
    texts = [sentence(codes, found.vocabularies["text"]) for codes in found.modalities["text"]]
    assert [t.strip() for t in texts] == [DIGITS[label] for label in found.labels]
    assert all(len(t) == 8 and t[-1] == " " for t in texts)
    batch = found.batch(torch.tensor([0]))["text"]
    assert batch.shape == (1, 8, 71) and batch.sum() == 8


def test_the_place_follows_from_seed_split_and_row(root: Path) -> None:
    one, again, other = load(root), load(root), load(root, seed=1)
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()
    assert torch.equal(load(root, size=9).modalities["text"], one.modalities["text"][:9])


def test_words_begin_at_every_place_that_leaves_the_last_blank() -> None:
    assert len(ALPHABET) == 71 and len(set(ALPHABET)) == 70
    labels = np.repeat(np.arange(10), 400)
    text = place_words(labels, np.random.default_rng(0))
    first = (text != ALPHABET.index(" ")).argmax(1)
    for digit, word in enumerate(DIGITS):
        counts = np.bincount(first[labels == digit])
        assert len(counts) == 8 - len(word) and counts.min() > 300 / len(counts)
