"""MNIST-SVHN: pictures of the same digit in two datasets, paired at random within their class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from mmebm.data.dataset import MultimodalDataset
from mmebm.data.files import read_npz, root_folder
from mmebm.data.matlab import read_matlab
from mmebm.data.mnist import WHERE_MNIST, read_mnist
from mmebm.data.recipe import check_options

__all__ = ["mnist_svhn", "pair", "read_svhn"]

CLASSES = 10
WHERE_SVHN = "train_32x32.mat and test_32x32.mat are at http://ufldl.stanford.edu/housenumbers/"


def mnist_svhn(
    split: str,
    *,
    size: int | None = None,
    seed: int = 0,
    dm: int = 5,
    most: int = 10_000,
    validation: float = 0.1,
    pairing: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> MultimodalDataset:
    """Modalities mnist uint8 [N, 1, 28, 28] and svhn uint8 [N, 3, 32, 32] that share the class.

    Reads `mnist/` (idx files, gzipped or not) and `svhn/` (the cropped digits' .mat files) under `data_dir`. As in
    MMVAE (Shi et al., NeurIPS 2019): of each class n = min(MNIST's, SVHN's, `most`) pictures, paired `dm` times by
    random permutations of both; then rows are mixed. The literature's figures differ in dm (papers' 30 and 20,
    MultiVae's 5): state it. Pairs of the validation split are made of the last `validation` of each source class of the
    training files.

    Args:
        split: "train", "validation" or "test".
        size: the first rows of the split; by default all.
        seed: of pairing and order.
        dm: pairings of each class.
        most: pictures of a class at most.
        validation: share of each class kept from training; 0 leaves no validation split.
        pairing: an .npz file that the pairing is written to, with its seed and dm, or read from if it is there.
        data_dir: by default the environment variable MMEBM_DATA_DIR.

    Raises:
        FileNotFoundError: says which file, where it was sought and where people get it.
        ValueError: a damaged file, a pairing of other options, an option out of its range.
    """
    check_options(split, size, seed)
    for name, value in (("dm", dm), ("most", most)):
        if value < 1:
            raise ValueError(f"{name}: expected an integer >= 1, got {value}")
    if not 0.0 <= validation < 1.0:
        raise ValueError(f"validation: expected a share in [0, 1), got {validation}")
    root = root_folder(data_dir, "mnist_svhn", f"mnist/ ({WHERE_MNIST}) and svhn/ ({WHERE_SVHN})")
    part = "test" if split == "test" else "train"
    mnist, digits = read_mnist("mnist_svhn", root / "mnist", part)
    svhn, numbers = read_svhn(root / "svhn" / f"{part}_32x32.mat")
    rows = _pairing(pairing, split, (digits, numbers), dm, most, validation, seed)
    if not len(rows):
        raise ValueError(f"split {split!r}: expected at least one pair, got none; validation is {validation}")
    if size is not None:
        if size > len(rows):
            raise ValueError(f"size: expected at most {len(rows)} pairs of split {split!r}, got {size}")
        rows = rows[:size]
    modalities = {
        "mnist": torch.from_numpy(mnist[rows[:, 0]][:, None]),
        "svhn": torch.from_numpy(svhn[rows[:, 1]]),
    }
    return MultimodalDataset(modalities, torch.from_numpy(digits[rows[:, 0]].astype(np.int64)), "mnist_svhn", split)


def pair(first: np.ndarray, second: np.ndarray, *, dm: int, most: int, generator: np.random.Generator) -> np.ndarray:
    """Index pairs int64 [N, 2] into two sets of labels, equal in every pair, in mixed order."""
    found = []
    for label in range(CLASSES):
        sides = [np.flatnonzero(labels == label) for labels in (first, second)]
        n = min(*map(len, sides), most)
        for _ in range(dm):
            found.append(np.stack([generator.permutation(side[:n]) for side in sides], 1))
    return generator.permutation(np.concatenate(found).astype(np.int64))


def read_svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, 3, 32, 32] and digits [N] of a file of cropped digits; the file's class 10 is digit 0."""
    if not path.is_file():
        raise FileNotFoundError(f"mnist_svhn: expected {path}, which is not there; {WHERE_SVHN}")
    held = read_matlab(path)
    pictures, labels = held.get("X"), held.get("y")
    if pictures is None or labels is None:
        raise ValueError(f"{path}: expected arrays X and y, got {sorted(held)}")
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[:3] != (32, 32, 3):
        raise ValueError(f"{path}: expected X uint8 [32, 32, 3, N], got {pictures.dtype} {list(pictures.shape)}")
    labels = labels.reshape(-1)
    if len(labels) != pictures.shape[3]:
        raise ValueError(
            f"{path}: expected a label a picture, got {pictures.shape[3]} pictures and {len(labels)} labels"
        )
    wrong = np.flatnonzero(~np.isin(labels, range(1, CLASSES + 1)))
    if len(wrong):
        raise ValueError(f"{path}: expected labels 1 to 10, got {labels[wrong[0]]} in row {wrong[0]}")
    return np.ascontiguousarray(pictures.transpose(3, 2, 0, 1)), (labels % CLASSES).astype(np.int64)


def _pairing(
    path: str | os.PathLike[str] | None, split: str, labels: tuple[np.ndarray, np.ndarray], dm: int, most: int,
    validation: float, seed: int,
) -> np.ndarray:  # fmt: skip
    told = {"split": split, "seed": seed, "dm": dm, "most": most, "validation": validation}
    if path is not None and Path(path).is_file():
        held = read_npz(Path(path))
        there = {key: held[key].item() for key in told if key in held and held[key].ndim == 0}
        if there != told:
            raise ValueError(f"pairing: expected one of {told} in {path}, got {there}")
        return _check_pairs(Path(path), held.get("rows"), labels)
    kept = [_part(side, split, validation) for side in labels]
    generator = np.random.Generator(np.random.PCG64([seed, ("train", "validation", "test").index(split)]))
    found = pair(*(side[k] for side, k in zip(labels, kept, strict=True)), dm=dm, most=most, generator=generator)
    rows = np.stack([k[found[:, i]] for i, k in enumerate(kept)], 1)
    if path is not None:
        part = Path(path).with_suffix(".part")
        with part.open("wb") as file:
            np.savez_compressed(file, rows=rows, **told)  # type: ignore[arg-type]
        os.replace(part, path)
    return rows


def _check_pairs(path: Path, rows: np.ndarray | None, labels: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The pairs of a file, if they are pairs of these pictures."""
    if rows is None or rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 2:
        got = "none" if rows is None else f"{rows.dtype} {list(rows.shape)}"
        raise ValueError(f"{path}: expected rows int64 [N, 2], got {got}")
    counts = [len(side) for side in labels]
    beyond = ((rows < 0) | (rows >= counts)).any(1)
    if beyond.any():
        row = int(beyond.argmax())
        raise ValueError(f"{path}, row {row}: expected pictures below {counts}, got {rows[row].tolist()}")
    apart = labels[0][rows[:, 0]] != labels[1][rows[:, 1]]
    if apart.any():
        row = int(apart.argmax())
        raise ValueError(f"{path}, row {row}: expected two pictures of one digit, got {rows[row].tolist()}")
    return rows


def _part(labels: np.ndarray, split: str, validation: float) -> np.ndarray:
    """Rows of a split, in their order."""
    if split == "test":
        return np.arange(len(labels))
    chosen = np.zeros(len(labels), bool)
    for label in range(CLASSES):
        rows = np.flatnonzero(labels == label)
        held = int(len(rows) * validation)
        chosen[rows[len(rows) - held :]] = True
    return np.flatnonzero(chosen if split == "validation" else ~chosen)
