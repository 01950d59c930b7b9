"""Your own rows: a folder of .npy files, one .npz or one .safetensors file, with a modality for each array."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmebm.data.dataset import MultimodalDataset
from mmebm.data.recipe import check_options

__all__ = ["arrays"]

LABELS = "labels"
_KINDS = ("a folder of .npy files", "an .npz file", "a .safetensors file")


def arrays(
    split: str, *, path: str | os.PathLike[str], size: int | None = None, seed: int = 0, name: str = "arrays"
) -> MultimodalDataset:
    """The rows of a split of your own data; the array called `labels`, if there is one, holds classes.

    `path` may have {split} in it, which is replaced: data/{split}.npz. A folder, or a file, has one array for each
    modality, all with N rows: uint8 images [N, C, H, W], or floating-point [N, ...], taken as float32.

    Args:
        split: put into the path; the same rows come for every split where the path has no {split}.
        path: a folder of .npy files, an .npz or a .safetensors file.
        size: so many rows, drawn by `seed` without repetition; by default all, in their order.
        seed: of the choice of rows.
        name: for messages and reports.

    Raises:
        FileNotFoundError: nothing at the path.
        TypeError: an array of another dtype, named.
        ValueError: a damaged file, unequal numbers of rows (each is named), values that are not finite, labels that
            are no classes; pickled arrays are refused.
    """
    check_options(split, size, seed)
    source = Path(str(path).replace("{split}", split))
    found = _read(source)
    labels = found.pop(LABELS, None)
    counts = {key: len(value) for key, value in (*found.items(), *(() if labels is None else ((LABELS, labels),)))}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{source}: expected equal numbers of rows, got {counts}")
    modalities = {key: _modality(source, key, value) for key, value in sorted(found.items())}
    if labels is not None:
        if labels.is_floating_point() or labels.dtype == torch.bool or labels.dim() != 1 or bool((labels < 0).any()):
            raise ValueError(
                f"{source}: expected {LABELS} [N] of integers >= 0, got {labels.dtype} {list(labels.shape)}"
            )
        labels = labels.to(torch.int64)
    if size is not None:
        rows = next(iter(counts.values()), 0)
        if size > rows:
            raise ValueError(f"size: expected at most the {rows} rows in {source}, got {size}")
        chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:size]
        modalities = {key: value[chosen] for key, value in modalities.items()}
        labels = None if labels is None else labels[chosen]
    return MultimodalDataset(modalities, labels, name, split)


def _modality(source: Path, key: str, value: Tensor) -> Tensor:
    if value.is_floating_point():
        return value.to(torch.float32)
    if value.dtype != torch.uint8:
        raise TypeError(f"{source}: {key!r}: expected uint8 images or floating-point values, got {value.dtype}")
    return value


def _read(source: Path) -> dict[str, Tensor]:
    if source.is_dir():
        files = sorted(source.glob("*.npy"))
        if not files:
            raise FileNotFoundError(f"path: expected .npy files in {source}, got none")
        return {file.stem: _tensor(file, _loaded(file)) for file in files}
    if not source.is_file():
        raise FileNotFoundError(f"path: expected {', '.join(_KINDS)}, got {source}, which is not there")
    if source.suffix == ".safetensors":
        try:
            return dict(load_file(source))
        except SafetensorError as error:
            raise ValueError(f"{source}: expected a safetensors file, got a damaged one ({error})") from error
    if source.suffix == ".npz":
        loaded = _loaded(source)
        try:
            with loaded:
                return {key: _tensor(source, loaded[key]) for key in loaded.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{source}: expected plain arrays, got {error}") from error
    raise ValueError(f"path: expected {', '.join(_KINDS)}, got {source}")


def _loaded(file: Path) -> Any:
    """An array, or the archive of a .npz file."""
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: expected plain arrays, got {error}") from error


def _tensor(source: Path, array: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(array))
    except TypeError as error:
        raise TypeError(f"{source}: expected numbers that torch knows, got {array.dtype}") from error
