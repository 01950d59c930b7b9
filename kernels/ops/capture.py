"""Operator calls on disk: saved while somebody asks for it, to be run again later, under a profiler for instance.

A call is one safetensors file: its tensors by number, and in the metadata the operator's name and its arguments.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """An operator's name, and its arguments in the order of its schema."""

    operator: str
    arguments: tuple[Any, ...]

    def to(self, device: torch.device | str, backend: str | None = None) -> Call:
        """The same on another device, and served by another backend where one is given."""

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device)
            return [t.to(device) for t in value] if isinstance(value, list) else value

        arguments = list(map(moved, self.arguments))
        if backend is not None:
            arguments[self._names().index("backend")] = backend
        return Call(self.operator, tuple(arguments))

    def run(self) -> Any:
        with torch.no_grad():
            return getattr(torch.ops.mmebm, self.operator)(*self.arguments)

    def describe(self) -> str:
        """One line: sizes of tensors, values of the rest."""
        shown = (f"{name}={_shown(value)}" for name, value in zip(self._names(), self.arguments, strict=True))
        return f"{self.operator}({', '.join(shown)})"

    def _names(self) -> list[str]:
        return [argument.name for argument in getattr(torch.ops.mmebm, self.operator).default._schema.arguments]


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(list(value.shape))
    return str([list(t.shape) for t in value]) if isinstance(value, list) else repr(value)


class _Capture:
    """Where calls go, and how many of each operator have gone there."""

    def __init__(self, folder: Path, operators: Sequence[str], most: int) -> None:
        self.folder, self.operators, self.most = folder, operators, most
        self.files: list[Path] = []
        self.counts: dict[str, int] = {}

    def take(self, operator: str, arguments: tuple[Any, ...]) -> None:
        count = self.counts.get(operator, 0)
        if count < self.most and (not self.operators or operator in self.operators):
            self.counts[operator] = count + 1
            path = self.folder / f"{operator}-{count}.safetensors"
            save(Call(operator, arguments), path)
            self.files.append(path)


active: _Capture | None = None


@contextmanager
def captured(folder: Path | str, operators: Sequence[str] = (), most: int = 1) -> Iterator[list[Path]]:
    """Within it, the first `most` calls of every operator, or of these, are saved in `folder`; yields their files."""
    global active
    before, active = active, _Capture(Path(folder), operators, most)
    active.folder.mkdir(parents=True, exist_ok=True)
    try:
        yield active.files
    finally:
        active = before


def save(call: Call, path: Path | str) -> None:
    tensors: dict[str, Tensor] = {}

    def kept(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value.detach().cpu().contiguous().clone()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, list | tuple):
            return {"tensors": [kept(t)["tensor"] for t in value]}
        return {"value": value}

    arguments = [kept(value) for value in call.arguments]
    metadata = {"operator": call.operator, "arguments": json.dumps(arguments)}
    save_file(tensors, path, metadata=metadata)


def load(path: Path | str) -> Call:
    """Errors: ValueError for a file that is no call, or one of an operator that is not there."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if not {"operator", "arguments"} <= metadata.keys() or not hasattr(torch.ops.mmebm, metadata["operator"]):
            raise ValueError(f"call: expected a saved call of an operator, got {path} with metadata {metadata}")

        def found(value: dict[str, Any]) -> Any:
            if "tensors" in value:
                return [file.get_tensor(name) for name in value["tensors"]]
            return file.get_tensor(value["tensor"]) if "tensor" in value else value["value"]

        return Call(metadata["operator"], tuple(map(found, json.loads(metadata["arguments"]))))
