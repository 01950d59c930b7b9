"""Any torch Dataset, or list, of multimodal rows, taken into memory once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmebm.data.dataset import MultimodalDataset

__all__ = ["from_dataset"]


def from_dataset(
    dataset: Any,
    split: str = "train",
    *,
    name: str = "dataset",
    vocabularies: Mapping[str, Sequence[str]] | None = None,
) -> MultimodalDataset:
    """The rows `dataset[0]`, `dataset[1]`, ... up to its length, stacked.

    A row is {modality: values}, ({modality: values}, label), or has the fields data, labels and masks, as MultiVae's
    have. Values are tensors or arrays: uint8 images [C, H, W], floating-point of any shape, taken as float32, or
    integer codes of a modality in `vocabularies`. A row that lacks a modality says so by its mask (False), or has None
    for it.

    Args:
        dataset: what has a length and rows by number.
        split: "train", "validation" or "test", for messages and reports.
        name: for messages and reports.
        vocabularies: name -> words, as in `MultimodalDataset`.

    Raises:
        TypeError: rows or values of another form, dtypes that differ; row and modality are named.
        ValueError: no rows, a modality that a row lacks or that the first row has not, other shapes, labels that are no
            classes or that only some rows have; row and modality are named.
    """
    try:
        count = len(dataset)
    except TypeError:
        raise TypeError(f"dataset: expected a length and rows by number, got {type(dataset).__name__}") from None
    if not count:
        raise ValueError(f"dataset {name!r}, split {split!r}: expected at least one row, got an empty dataset")
    stacked: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    labels: list[int | None] = []
    for row in range(count):
        where = f"row {row} of {name!r}"
        data, label, masks = _parts(dataset[row], where)
        labels.append(_label(label, where))
        if row == 0:
            seen = {key: torch.zeros(count, dtype=torch.bool) for key in data}
        _check_names(data, masks, seen, where)
        for key, given in data.items():
            if given is None or not _mask(masks.get(key), f"{where}, mask of {key!r}"):
                continue
            value = _value(given, key in (vocabularies or {}), f"{where}, {key!r}")
            if key not in stacked:
                stacked[key] = torch.zeros(count, *value.shape, dtype=value.dtype)
            elif value.dtype != stacked[key].dtype:
                raise TypeError(f"{where}, {key!r}: expected {stacked[key].dtype} as before, got {value.dtype}")
            if value.shape != stacked[key].shape[1:]:
                shape = list(stacked[key].shape[1:])
                raise ValueError(f"{where}, {key!r}: expected shape {shape} as before, got {list(value.shape)}")
            stacked[key][row] = value
            seen[key][row] = True
    if missing := [key for key in seen if key not in stacked]:
        raise ValueError(f"dataset {name!r}: expected {missing[0]!r} in at least one row, got none")
    if len(absent := [row for row, label in enumerate(labels) if label is None]) not in (0, count):
        raise ValueError(f"row {absent[0]} of {name!r}: expected a label as other rows have, got none")
    return MultimodalDataset(
        {key: stacked[key] for key in seen},
        None if absent else torch.tensor(labels, dtype=torch.int64),
        name,
        split,
        masks=seen,
        vocabularies=vocabularies,
    )


def _parts(item: Any, where: str) -> tuple[Mapping[str, Any], Any, Mapping[str, Any]]:
    """A row's values, its label and its masks."""
    data, label, masks = item, None, None
    if isinstance(item, tuple | list) and len(item) == 2:
        data, label = item
    elif isinstance(item, Mapping) and isinstance(item.get("data"), Mapping):
        data, label, masks = item["data"], item.get("labels"), item.get("masks")
    elif not isinstance(item, Mapping) and isinstance(getattr(item, "data", None), Mapping):
        data, label, masks = item.data, getattr(item, "labels", None), getattr(item, "masks", None)
    if not isinstance(data, Mapping):
        raise TypeError(
            f"{where}: expected {{modality: values}}, ({{modality: values}}, label) or fields data, labels and masks, "
            f"got {type(item).__name__}"
        )
    return data, label, masks or {}


def _check_names(data: Mapping[str, Any], masks: Mapping[str, Any], known: Mapping[str, Tensor], where: str) -> None:
    for key in (*data, *masks):
        if key not in known:
            raise ValueError(f"{where}: expected modalities {', '.join(known)} as in row 0, got {key!r} too")
    for key in known:
        if key not in data and _mask(masks.get(key), f"{where}, mask of {key!r}"):
            raise ValueError(f"{where}: expected modalities {', '.join(known)} as in row 0, got no {key!r}")


def _mask(mask: Any, where: str) -> bool:
    if mask is None:
        return True
    try:
        value = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{where}: expected True or False, got {mask!r}") from None
    if value.numel() != 1 or not bool(((value == 0) | (value == 1)).all()):
        raise ValueError(f"{where}: expected True or False, got {mask!r}")
    return bool(value)


def _value(given: Any, coded: bool, where: str) -> Tensor:
    if not isinstance(given, Tensor | np.ndarray | np.generic):
        raise TypeError(f"{where}: expected a tensor or an array, got {type(given).__name__}")
    try:
        value = torch.as_tensor(given).detach().cpu()
    except TypeError:
        raise TypeError(f"{where}: expected numbers that torch knows, got {given.dtype}") from None
    if coded:
        return value
    if value.is_floating_point():
        return value.to(torch.float32)
    if value.dtype != torch.uint8:
        raise TypeError(f"{where}: expected uint8 images or floating-point values, got {value.dtype}")
    return value


def _label(given: Any, where: str) -> int | None:
    if given is None:
        return None
    value = given if isinstance(given, int) else None
    if isinstance(given, Tensor | np.ndarray | np.generic):
        number = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
        if number.size == 1 and number.dtype.kind in "iu":
            value = number.item()
    if value is None or isinstance(given, bool):
        raise TypeError(f"{where}: expected an integer label, got {given!r}")
    if value < 0:
        raise ValueError(f"{where}: expected a label >= 0, got {value}")
    if value > torch.iinfo(torch.int64).max:
        raise ValueError(f"{where}: expected a label below 2**63, got {value}")
    return value
