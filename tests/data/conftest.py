"""Small files of published layouts."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def mnist_svhn_files(tmp_path: Path) -> Path:
    """MNIST's and SVHN's files. A picture's first pixel is its row, its second its class."""
    rng = np.random.default_rng(0)
    for folder in ("mnist", "svhn"):
        (tmp_path / folder).mkdir()
    for prefix, part, sizes in (("train", "train", (200, 170)), ("t10k", "test", (60, 80))):
        labels = [np.concatenate([np.arange(10), rng.integers(10, size=n - 10)]) for n in sizes]
        images = np.zeros((sizes[0], 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.arange(sizes[0]), labels[0]
        _write_idx(tmp_path / "mnist" / f"{prefix}-images-idx3-ubyte.gz", images)
        _write_idx(tmp_path / "mnist" / f"{prefix}-labels-idx1-ubyte.gz", labels[0])
        pictures = np.zeros((32, 32, 3, sizes[1]), np.uint8)
        pictures[0, 0, 2], pictures[0, 1, 2] = np.arange(sizes[1]), labels[1]
        held = {"X": pictures, "y": np.where(labels[1] == 0, 10, labels[1])[:, None].astype(np.uint8)}
        scipy.io.savemat(tmp_path / "svhn" / f"{part}_32x32.mat", held)
    return tmp_path


@pytest.fixture
def write_idx() -> Callable[[Path, np.ndarray], None]:
    return _write_idx
