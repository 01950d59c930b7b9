"""Modalities resident in memory, checked once, read by index."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["MultimodalDataset"]


class MultimodalDataset:
    """Rows seen by several modalities.

    Args:
        modalities: name -> tensor of N rows: uint8 images [N, C, H, W], or float32 [N, ...] used as it is.
        labels: int64 [N], or None where the data has none.
        name: the dataset's name, for messages and reports.
        split: "train", "validation" or "test".

    Raises:
        TypeError: something that is not a tensor, or of another dtype.
        ValueError: no modalities, no rows, unequal numbers of rows, NaN or infinite values, labels of another length.
    """

    def __init__(self, modalities: Mapping[str, Tensor], labels: Tensor | None, name: str, split: str) -> None:
        if not modalities:
            raise ValueError(f"modalities of {name!r}: expected at least one, got none")
        for key, value in modalities.items():
            _check_modality(key, value, name)
        first, reference = next(iter(modalities.items()))
        for key, value in modalities.items():
            if value.shape[0] != reference.shape[0]:
                raise ValueError(
                    f"modalities of {name!r}: expected equal numbers of rows, got {first!r} with {reference.shape[0]} "
                    f"and {key!r} with {value.shape[0]}"
                )
            if value.device != reference.device:
                raise ValueError(
                    f"modalities of {name!r}: expected one device, got {first!r} on {reference.device} "
                    f"and {key!r} on {value.device}"
                )
        if reference.shape[0] == 0:
            raise ValueError(f"dataset {name!r}, split {split!r}: expected at least one row, got an empty dataset")
        if labels is not None:
            _check_labels(labels, reference.shape[0], name)
            labels = labels.to(reference.device)
        self.modalities: dict[str, Tensor] = dict(modalities)
        self.labels = labels
        self.name = name
        self.split = split
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return next(iter(self.modalities.values())).shape[0]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{key} {list(shape)}" for key, shape in self.shapes.items())
        return f"MultimodalDataset({self.name!r}, {self.split!r}, {len(self)} rows: {shapes})"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """name -> shape of one row."""
        return {key: tuple(value.shape[1:]) for key, value in self.modalities.items()}

    @property
    def device(self) -> torch.device:
        return next(iter(self.modalities.values())).device

    def to(self, device: torch.device | str) -> MultimodalDataset:
        """The same rows on another device; itself where they are there already."""
        if torch.device(device) == self.device:
            return self
        moved = object.__new__(MultimodalDataset)
        moved.modalities = {key: value.to(device) for key, value in self.modalities.items()}
        moved.labels = None if self.labels is None else self.labels.to(device)
        moved.name, moved.split, moved._fingerprint = self.name, self.split, self._fingerprint
        return moved

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """Rows `index` (int64 [B]) of every modality, float32 [B, ...]; uint8 images come scaled to [0, 1]."""
        if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 1:
            got = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
            raise TypeError(f"index: expected an int64 tensor [B], got {got}")
        index = index.to(self.device)
        return {key: _as_float(value[index]) for key, value in self.modalities.items()}

    def fingerprint(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of modalities and labels.

        Computed once: changes made in place after the first call are not seen.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            named = dict(sorted(self.modalities.items()))
            parts = [(f"modality {key}", value) for key, value in named.items()]
            if self.labels is not None:
                parts.append(("labels", self.labels))
            for key, value in parts:
                digest.update(f"{key}\0{value.dtype}\0{list(value.shape)}\0".encode())
                digest.update(value.detach().cpu().contiguous().numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def _as_float(rows: Tensor) -> Tensor:
    return rows.to(torch.float32) / 255 if rows.dtype == torch.uint8 else rows


def _check_modality(key: str, value: Tensor, name: str) -> None:
    where = f"modality {key!r} of {name!r}"
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in (torch.uint8, torch.float32):
        raise TypeError(f"{where}: expected uint8 images or float32 values, got {value.dtype}")
    if value.dtype == torch.uint8 and value.ndim != 4:
        raise ValueError(f"{where}: expected uint8 images [N, C, H, W], got shape {list(value.shape)}")
    if value.ndim < 1:
        raise ValueError(f"{where}: expected rows [N, ...], got a scalar")
    if value.dtype == torch.float32 and value.numel():
        finite = torch.isfinite(value.reshape(value.shape[0], -1)).all(dim=1)
        if not bool(finite.all()):
            rows = (~finite).nonzero().flatten()
            raise ValueError(
                f"{where}: expected finite values, got NaN or infinity in {rows.numel()} of {value.shape[0]} rows, "
                f"the first is row {int(rows[0])}"
            )


def _check_labels(labels: Tensor, rows: int, name: str) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels of {name!r}: expected an int64 tensor or None, got {type(labels).__name__}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels of {name!r}: expected int64, got {labels.dtype}")
    if labels.shape != (rows,):
        raise ValueError(f"labels of {name!r}: expected shape [{rows}], one label a row, got {list(labels.shape)}")
