"""Modalities resident in memory, checked once, read by index."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MultimodalDataset"]


class MultimodalDataset:
    """Rows seen by several modalities.

    Args:
        modalities: name -> tensor of N rows: uint8 images [N, C, H, W], float32 [N, ...] used as it is, or integer
            codes [N, ...] of a vocabulary, which come as one-hot rows [..., V].
        labels: int64 [N], or None where the data has none.
        name: the dataset's name, for messages and reports.
        split: "train", "validation" or "test".
        masks: name -> bool [N], False where the row lacks the modality; what is not named is there in every row. The
            values behind a False are ignored.
        vocabularies: name -> the V words that a modality's codes stand for.

    Raises:
        TypeError: something that is not a tensor, or of another dtype.
        ValueError: no modalities, no rows, unequal numbers of rows, NaN or infinite values, codes beyond a vocabulary,
            labels or masks of another length.
    """

    def __init__(
        self,
        modalities: Mapping[str, Tensor],
        labels: Tensor | None,
        name: str,
        split: str,
        *,
        masks: Mapping[str, Tensor] | None = None,
        vocabularies: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if not modalities:
            raise ValueError(f"modalities of {name!r}: expected at least one, got none")
        self.vocabularies: dict[str, list[str]] = {key: list(words) for key, words in (vocabularies or {}).items()}
        for argument, named in (("masks", masks), ("vocabularies", self.vocabularies)):
            if unknown := [key for key in named or () if key not in modalities]:
                raise ValueError(
                    f"{argument} of {name!r}: unknown modality {', '.join(unknown)}; there are {', '.join(modalities)}"
                )
        for key, value in modalities.items():
            seen = None if masks is None else masks.get(key)
            if seen is not None:
                _check_mask(key, seen, value, name)
            if key in self.vocabularies:
                _check_codes(key, value, seen, len(self.vocabularies[key]), name)
            else:
                _check_modality(key, value, seen, name)
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
        self.masks: dict[str, Tensor] | None = None
        if masks is not None and not all(bool(mask.all()) for mask in masks.values()):
            everywhere = torch.ones(len(reference), dtype=torch.bool, device=reference.device)
            self.masks = {key: masks[key].to(reference.device) if key in masks else everywhere for key in modalities}
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
        """name -> shape of one row, as `batch` gives it."""
        return {
            key: (*value.shape[1:], *((len(self.vocabularies[key]),) if key in self.vocabularies else ()))
            for key, value in self.modalities.items()
        }

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
        moved.masks = None if self.masks is None else {key: mask.to(device) for key, mask in self.masks.items()}
        moved.vocabularies = self.vocabularies
        moved.name, moved.split, moved._fingerprint = self.name, self.split, self._fingerprint
        return moved

    def batch(self, index: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Rows `index` (int64 [B]) of every modality, or of those named: float32 [B, ...], uint8 images in [0, 1].

        What a row lacks is 0.
        """
        index = self._index(index)
        return {key: self._rows(key, index) for key in (self.modalities if names is None else names)}

    def observed(self, index: Tensor) -> dict[str, Tensor] | None:
        """Which of rows `index` have each modality, bool [B]; None where the dataset lacks nothing."""
        if self.masks is None:
            return None
        index = self._index(index)
        return {key: mask[index] for key, mask in self.masks.items()}

    def _index(self, index: Tensor) -> Tensor:
        if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 1:
            got = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
            raise TypeError(f"index: expected an int64 tensor [B], got {got}")
        return index.to(self.device)

    def _rows(self, key: str, index: Tensor) -> Tensor:
        rows = self.modalities[key][index]
        if key in self.vocabularies:
            rows = F.one_hot(rows.long().clamp(0, len(self.vocabularies[key]) - 1), len(self.vocabularies[key])).float()
        elif rows.dtype == torch.uint8:
            rows = rows.to(torch.float32) / 255
        if self.masks is None:
            return rows
        seen = self.masks[key][index].view(-1, *(1 for _ in rows.shape[1:]))
        return torch.where(seen, rows, 0.0)

    def fingerprint(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of modalities, labels and masks, and over vocabularies.

        Computed once: changes made in place after the first call are not seen.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            named = dict(sorted(self.modalities.items()))
            parts = [(f"modality {key}", value) for key, value in named.items()]
            if self.labels is not None:
                parts.append(("labels", self.labels))
            parts += [(f"mask {key}", mask) for key, mask in sorted((self.masks or {}).items())]
            for key, value in parts:
                digest.update(f"{key}\0{value.dtype}\0{list(value.shape)}\0".encode())
                digest.update(value.detach().cpu().contiguous().numpy().data)
            for key, words in sorted(self.vocabularies.items()):
                digest.update("\0".join((f"words {key}", *words)).encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def _check_mask(key: str, mask: Tensor, value: Tensor, name: str) -> None:
    where = f"mask of {key!r} of {name!r}"
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{where}: expected bool [N], got {mask.dtype if isinstance(mask, Tensor) else type(mask)}")
    if isinstance(value, Tensor) and mask.shape != value.shape[:1]:
        raise ValueError(f"{where}: expected shape {list(value.shape[:1])}, got {list(mask.shape)}")


def _check_codes(key: str, value: Tensor, seen: Tensor | None, words: int, name: str) -> None:
    where = f"modality {key!r} of {name!r}"
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(
            f"{where}: expected integer codes of its vocabulary, got "
            f"{value.dtype if isinstance(value, Tensor) else type(value).__name__}"
        )
    if value.ndim < 1:
        raise ValueError(f"{where}: expected rows [N, ...], got a scalar")
    codes = value.reshape(len(value), -1).long()
    bad = ((codes < 0) | (codes >= words)).any(1)
    if seen is not None:
        bad &= seen
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        wrong = codes[row][(codes[row] < 0) | (codes[row] >= words)]
        raise ValueError(f"{where}: expected codes in [0, {words}), got {int(wrong[0])} in row {row}")


def _check_modality(key: str, value: Tensor, seen: Tensor | None, name: str) -> None:
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
        if seen is not None:
            finite |= ~seen
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
