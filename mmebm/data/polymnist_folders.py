"""The published pictures of PolyMNIST: a folder for each modality, a file <index>.<label>.png for each row."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmebm.data.dataset import MultimodalDataset
from mmebm.data.files import read_picture
from mmebm.data.mnist import validation_part

__all__ = ["published"]

SIDE = 28
NAME = re.compile(r"(\d+)\.(\d)\.png")
WHERE = "PolyMNIST.zip is at https://zenodo.org/record/4899160"


def published(
    folder: Path,
    split: str,
    *,
    size: int | None = None,
    n_validation: int = 5_000,
    cache: str | os.PathLike[str] | None = None,
) -> MultimodalDataset:
    """The rows of `folder`/{train,test}/m*/*.png in the order of their index; see `polymnist` for the options.

    Raises:
        FileNotFoundError: no such folder, or none of a modality in it.
        ValueError: modalities with other numbers of pictures, other indices or other labels, names of another form,
            damaged pictures; each named.
    """
    part = "test" if split == "test" else "train"
    names = _names(folder / part)
    labels = torch.tensor([int(name.split(".")[1]) for name in next(iter(names.values()))])
    rows = slice(None) if split == "test" else validation_part(split, len(labels), n_validation)
    count = len(labels[rows])
    if size is not None and size > count:
        raise ValueError(f"size: expected at most {count} rows of split {split!r}, got {size}")
    if cache is None:
        read = {m: _pictures(folder / part / m, files[rows][:size]) for m, files in names.items()}
    else:
        whole = _cached(Path(str(cache).replace("{part}", part)), folder / part, names)
        read = {m: pictures[rows][:size] for m, pictures in whole.items()}
    return MultimodalDataset(read, labels[rows][:size], "polymnist", split)


def _names(folder: Path) -> dict[str, list[str]]:
    """modality -> its files in the order of their index."""
    found = [p for p in folder.glob("m*") if p.is_dir() and p.name[1:].isdecimal()]
    if not found:
        raise FileNotFoundError(f"polymnist: expected folders m0, m1, ... in {folder}, got none; {WHERE}")
    names: dict[str, list[str]] = {}
    first, reference = "", {}
    for modality in sorted(found, key=lambda p: int(p.name[1:])):
        files: dict[int, tuple[str, str]] = {}
        for name in sorted(os.listdir(modality)):
            match = NAME.fullmatch(name)
            if match is None:
                if name.lower().endswith(".png"):
                    raise ValueError(f"{modality / name}: expected a name <index>.<label>.png")
                continue
            index, label = int(match[1]), match[2]
            if index in files:
                raise ValueError(f"{modality}: expected one picture of index {index}, got {files[index][0]} and {name}")
            files[index] = name, label
        if not files:
            raise FileNotFoundError(
                f"polymnist: expected pictures <index>.<label>.png in {modality}, got none; {WHERE}"
            )
        if not first:
            first, reference = modality.name, files
        if len(files) != len(reference):
            index = min(set(files) ^ set(reference))
            lacking = first if index in files else modality.name
            raise ValueError(
                f"{modality}: expected {len(reference)} pictures as in {first}, got {len(files)}; "
                f"{lacking} has none of index {index}"
            )
        for index in sorted(files):
            name, label = files[index]
            if index not in reference:
                raise ValueError(f"{modality / name}: expected a picture of index {index} in {first}, got none")
            if label != reference[index][1]:
                raise ValueError(f"{modality / name}: expected the label of {first}/{reference[index][0]}, got {label}")
        names[modality.name] = [files[index][0] for index in sorted(files)]
    return names


def _pictures(folder: Path, names: list[str]) -> Tensor:
    pixels = np.empty((len(names), 3, SIDE, SIDE), np.uint8)
    for row, name in enumerate(names):
        picture = read_picture(folder / name)
        if picture.shape[:2] != (SIDE, SIDE):
            raise ValueError(
                f"{folder / name}: expected {SIDE} x {SIDE} pixels, got {picture.shape[0]} x {picture.shape[1]}"
            )
        pixels[row] = picture.transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _cached(path: Path, folder: Path, names: dict[str, list[str]]) -> dict[str, Tensor]:
    """All pictures, from the file if it holds these, else from the folder and into the file."""
    told = hashlib.sha256("\0".join("/".join((m, *files)) for m, files in names.items()).encode()).hexdigest()
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                there = (file.metadata() or {}).get("names")
                found = {m: file.get_tensor(m) for m in file.keys()} if there == told else {}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path}: expected a safetensors file, got a damaged one ({error})") from error
        if set(found) != set(names):
            raise ValueError(f"cache: expected the pictures of {folder} in {path}, got those of other files; remove it")
        return {m: found[m] for m in names}
    made = {m: _pictures(folder / m, files) for m, files in names.items()}
    unfinished = path.with_suffix(".part")
    save_file(made, unfinished, metadata={"names": told})
    os.replace(unfinished, path)
    return made
