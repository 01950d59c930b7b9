"""UCI Multiple Features: 2,000 handwritten digits, each described in six ways; real views, paired by instance."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from mmebm.data.dataset import MultimodalDataset
from mmebm.data.files import read_npz, read_table, root_folder
from mmebm.data.recipe import SPLITS, check_options

__all__ = ["VIEWS", "mfeat"]

# Name and number of features: profile correlations, Fourier coefficients, Karhunen-Loeve coefficients, morphological
# features, pixel averages in windows of 2 x 3, Zernike moments.
VIEWS = {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}
ROWS, CLASSES = 2000, 10
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
WHERE = "the files mfeat-fac .. mfeat-zer are at https://archive.ics.uci.edu/dataset/72/multiple+features"


def mfeat(
    split: str, *, size: int | None = None, seed: int = 0, data_dir: str | os.PathLike[str] | None = None
) -> MultimodalDataset:
    """Six modalities float32 [N, features], every feature with mean 0 and variance 1 in the training split.

    Reads `mfeat/mfeat.npz` (arrays fac .. zer and labels y) or the original text files `mfeat/mfeat-fac` .. under
    `data_dir`. Splits are 70, 10 and 20% of each class, drawn by `seed`.

    Args:
        split: "train", "validation" or "test".
        size: the first rows of the split; by default all (1,400, 200 and 400).
        seed: of the splits.
        data_dir: by default the environment variable MMEBM_DATA_DIR.

    Raises:
        FileNotFoundError: says which files, where they were sought and where people get them.
        ValueError: a damaged file, or a size beyond the split's.
    """
    check_options(split, size, seed)
    views, labels = _read(data_dir)
    rows = _rows(labels, seed)
    chosen = rows[split] if size is None else rows[split][:size]
    if size is not None and size > len(rows[split]):
        raise ValueError(f"size: expected at most {len(rows[split])} rows of split {split!r}, got {size}")
    modalities = {}
    for name, values in views.items():
        train = values[rows["train"]].astype(np.float64)
        spread = train.std(0)
        # A feature that never changes in training says nothing.
        standard = (values[chosen] - train.mean(0)) / np.where(spread > 0, spread, 1.0)
        modalities[name] = torch.from_numpy(standard.astype(np.float32))
    return MultimodalDataset(modalities, torch.from_numpy(labels[chosen].astype(np.int64)), "mfeat", split)


def _rows(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Row numbers of each split, classes mixed."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    for c in range(CLASSES):
        rows = rng.permutation(np.flatnonzero(labels == c))
        ends = np.cumsum([round(share * len(rows)) for share in SHARES.values()])[:-1]
        for name, part in zip(SHARES, np.split(rows, ends), strict=True):
            parts[name].append(part)
    return {name: rng.permutation(np.concatenate(found)) for name, found in parts.items()}


def _read(data_dir: str | os.PathLike[str] | None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    folder = root_folder(data_dir, "mfeat", f"mfeat/ ({WHERE})") / "mfeat"
    archive = folder / "mfeat.npz"
    if archive.is_file():
        return _from_archive(archive)
    missing = [f"mfeat-{name}" for name in VIEWS if not (folder / f"mfeat-{name}").is_file()]
    if missing:
        raise FileNotFoundError(f"mfeat: expected mfeat.npz or {', '.join(missing)} in {folder}; {WHERE}")
    views = {name: _from_text(folder / f"mfeat-{name}", width) for name, width in VIEWS.items()}
    return views, np.repeat(np.arange(CLASSES), ROWS // CLASSES)  # the files' order


def _from_archive(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    arrays = read_npz(path, (*VIEWS, "y"))
    for name, shape in {**{name: (ROWS, width) for name, width in VIEWS.items()}, "y": (ROWS,)}.items():
        if name not in arrays or arrays[name].shape != shape:
            got = list(arrays[name].shape) if name in arrays else "no such array"
            raise ValueError(f"{path}: expected {name!r} of shape {list(shape)}, got {got}")
    labels = arrays.pop("y")
    if len(wrong := np.flatnonzero(~np.isin(labels, range(CLASSES)))):
        raise ValueError(f"{path}: expected labels 0 to {CLASSES - 1}, got {labels[wrong[0]]} in row {wrong[0]}")
    for name, values in arrays.items():
        if values.dtype.kind not in "fiu":
            raise ValueError(f"{path}: expected numbers in {name!r}, got {values.dtype}")
    return arrays, labels


def _from_text(path: Path, width: int) -> np.ndarray:
    values = read_table(path, width).astype(np.float32)
    if len(values) != ROWS:
        raise ValueError(f"{path}: expected {ROWS} lines, got {len(values)}")
    return values
