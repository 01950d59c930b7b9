"""Your own rows: a folder of .npy files, one .npz or one .safetensors file, with a modality for each array."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmebm.data.dataset import MultimodalDataset
from mmebm.data.files import read_lines, read_npy, read_npz
from mmebm.data.recipe import check_options

__all__ = ["arrays"]

LABELS = "labels"
MASK = "_mask"
WORDS = "_words.txt"
_KINDS = ("a folder of .npy files", "an .npz file", "a .safetensors file")


def arrays(
    split: str, *, path: str | os.PathLike[str], size: int | None = None, seed: int = 0, name: str = "arrays"
) -> MultimodalDataset:
    """The rows of a split of your own data.

    `path` may have {split} in it, which is replaced: data/{split}.npz. A folder, or a file, has one array for each
    modality, all with N rows: uint8 images [N, C, H, W], or floating-point [N, ...], taken as float32. Beside them:

    - `labels`: integers >= 0 [N], the rows' classes;
    - `<name>_mask`, for a modality `<name>`: bool [N], or integers 0 and 1, False or 0 where the row lacks it. What
      stands there is ignored;
    - a text file `<name>_words.txt`, in the folder or beside the file, with a word a line: the modality `<name>` holds
      integer codes [N, ...] of these words, 0 for the first line.

    Args:
        split: put into the path; the same rows come for every split where the path has no {split}.
        path: a folder of .npy files, an .npz or a .safetensors file.
        size: so many rows, drawn by `seed` without repetition; by default all, in their order.
        seed: of the choice of rows.
        name: for messages and reports.

    Raises:
        FileNotFoundError: nothing at the path.
        TypeError: an array of another dtype, named.
        ValueError: a damaged file, unequal numbers of rows (each is named), values that are not finite, codes without a
            word, labels that are no classes, masks of no modality; pickled arrays are refused.
    """
    check_options(split, size, seed)
    source = Path(str(path).replace("{split}", split))
    found = _read(source)
    counts = {key: len(value) if value.dim() else 0 for key, value in found.items()}
    if scalars := [key for key, value in found.items() if not value.dim()]:
        raise ValueError(f"{source}: {scalars[0]!r}: expected rows [N, ...], got a scalar")
    if len(set(counts.values())) > 1:
        raise ValueError(f"{source}: expected equal numbers of rows, got {counts}")
    if size is not None:
        rows = next(iter(counts.values()), 0)
        if size > rows:
            raise ValueError(f"size: expected at most the {rows} rows in {source}, got {size}")
        chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:size]
    labels = found.pop(LABELS, None)
    labels = None if labels is None else _labels(source, labels)
    masks = _masks(source, found)
    words = _words(source, found)
    modalities = {key: _modality(source, key, value, key in words) for key, value in sorted(found.items())}
    if size is not None:
        modalities = {key: value[chosen] for key, value in modalities.items()}
        masks = {key: mask[chosen] for key, mask in masks.items()}
        labels = None if labels is None else labels[chosen]
    try:
        return MultimodalDataset(modalities, labels, name, split, masks=masks or None, vocabularies=words)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{source}: {error}") from error


def _labels(source: Path, labels: Tensor) -> Tensor:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.dim() != 1:
        raise ValueError(f"{source}: expected {LABELS} [N] of integers >= 0, got {labels.dtype} {list(labels.shape)}")
    whole = labels.to(torch.int64)
    if len(wrong := (whole < 0).nonzero()):
        row = int(wrong[0])
        asked = "integers below 2**63" if labels.dtype == torch.uint64 else "integers >= 0"
        raise ValueError(f"{source}: expected {LABELS} [N] of {asked}, got {labels[row].item()} in row {row}")
    return whole


def _masks(source: Path, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes the masks out of the arrays."""
    masks = {}
    for key in sorted(found):
        modality = key.removesuffix(MASK)
        if key.endswith(MASK) and modality in found:
            masks[modality] = _mask(source, key, found[key], modality)
        elif found[key].dtype == torch.bool:
            raise TypeError(f"{source}: {key!r}: expected a mask to be called after a modality, <name>{MASK}, got bool")
    for modality in masks:
        del found[modality + MASK]
    return masks


def _mask(source: Path, key: str, mask: Tensor, modality: str) -> Tensor:
    where = f"{source}: {key!r}: expected a mask, bool or 0 and 1 [N], of {modality!r}"
    if mask.is_floating_point() or mask.is_complex() or mask.dim() != 1:
        raise TypeError(f"{where}, got {mask.dtype} {list(mask.shape)}")
    if mask.dtype == torch.bool:
        return mask
    whole = mask.to(torch.int64)
    if len(wrong := ((whole != 0) & (whole != 1)).nonzero()):
        row = int(wrong[0])
        raise ValueError(f"{where}, got {mask[row].item()} in row {row}")
    return whole == 1


def _words(source: Path, found: Mapping[str, Tensor]) -> dict[str, list[str]]:
    folder = source if source.is_dir() else source.parent
    words = {}
    for key in found:
        if (file := folder / f"{key}{WORDS}").is_file():
            words[key] = read_lines(file)
            if not words[key]:
                raise ValueError(f"{file}: expected a word a line, got an empty file")
    return words


def _modality(source: Path, key: str, value: Tensor, coded: bool) -> Tensor:
    if coded:
        return value
    if value.is_floating_point():
        return value.to(torch.float32)
    if value.dtype != torch.uint8:
        raise TypeError(
            f"{source}: {key!r}: expected uint8 images or floating-point values, got {value.dtype}; integer codes need "
            f"their words in {key}{WORDS}"
        )
    return value


def _read(source: Path) -> dict[str, Tensor]:
    if source.is_dir():
        files = sorted(source.glob("*.npy"))
        if not files:
            raise FileNotFoundError(f"path: expected .npy files in {source}, got none")
        return {file.stem: _tensor(file, read_npy(file)) for file in files}
    if not source.is_file():
        raise FileNotFoundError(f"path: expected {', '.join(_KINDS)}, got {source}, which is not there")
    if source.suffix == ".safetensors":
        try:
            return dict(load_file(source))
        except SafetensorError as error:
            raise ValueError(f"{source}: expected a safetensors file, got a damaged one ({error})") from error
    if source.suffix == ".npz":
        return {key: _tensor(source, array) for key, array in read_npz(source).items()}
    raise ValueError(f"path: expected {', '.join(_KINDS)}, got {source}")


def _tensor(source: Path, array: np.ndarray) -> Tensor:
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{source}: expected numbers that torch knows, got {array.dtype}") from error
