"""Run folders: configuration, versions, metrics (JSON lines), weights and training state (safetensors), figures."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmebm.devices import find
from mmebm.models import MultimodalVAE
from mmebm.version import VERSION

from .build import build_model
from .config import Config, load_config


@dataclass(frozen=True)
class Run:
    """A folder and where things are in it."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @classmethod
    def create(
        cls, path: Path | str, config: Config, shapes: Mapping[str, tuple[int, ...]], *, force: bool = False
    ) -> Run:
        """A new folder; one that holds anything is refused unless `force`, and then only a run is replaced."""
        run = cls(Path(path))
        if run.path.exists() and any(run.path.iterdir()):
            if not force:
                raise FileExistsError(f"{run.path}: exists and is not empty; resume it, choose another, or force")
            # Others' folders of weights have a config.json too.
            if not (run.config.is_file() and (run.path / "environment.json").is_file()):
                raise FileExistsError(f"{run.path}: is not a run folder; nothing in it was touched")
            for stale in (run.metrics, run.weights, run.checkpoint, *run.path.glob("evaluation*.json")):
                stale.unlink(missing_ok=True)
            for stale in (run.figures, run.path / "fitted-prior"):
                shutil.rmtree(stale, ignore_errors=True)
        run.path.mkdir(parents=True, exist_ok=True)
        _write_json(run.config, config.model_dump(mode="json"))
        _write_json(run.path / "environment.json", environment() | {"shapes": {m: list(s) for m, s in shapes.items()}})
        return run

    @classmethod
    def open(cls, path: Path | str) -> Run:
        run = cls(Path(path))
        if not run.config.is_file():
            raise FileNotFoundError(f"{run.path}: not a run folder, it has no config.json")
        return run

    def shapes(self) -> dict[str, tuple[int, ...]]:
        recorded = json.loads((self.path / "environment.json").read_text())["shapes"]
        return {m: tuple(s) for m, s in recorded.items()}

    def log(self, row: Mapping[str, Any]) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        if not self.metrics.exists():
            return []
        # A line that a kill cut short has no end.
        return [json.loads(line) for line in self.metrics.read_text().splitlines(True) if line.endswith("\n")]

    def keep_rows_until(self, update: int) -> None:
        """Forget metrics after `update`: a resumed run writes them again."""
        kept = [row for row in self.rows() if row["update"] <= update]
        self.metrics.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def save(self, model: MultimodalVAE, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """The weights for use, and the checkpoint to resume from: one file, whole or not there."""
        weights = model.state_dict()
        _save(self.weights, weights)
        state = {f"weights.{name}": t for name, t in weights.items()} | dict(tensors)
        _save(self.checkpoint, state, {"counters": json.dumps(counters)})

    def counters(self) -> dict[str, Any]:
        """How far the checkpoint is: updates and noise offsets."""
        if not self.checkpoint.is_file():
            raise FileNotFoundError(f"{self.path}: has no checkpoint to resume from")
        with safe_open(self.checkpoint, "pt") as file:
            return json.loads(file.metadata()["counters"])

    def restore(self, model: MultimodalVAE) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Loads the weights into `model`; returns the training state's tensors and counters."""
        counters, tensors = self.counters(), load_file(self.checkpoint)
        weights = {name: tensors.pop(name) for name in list(tensors) if name.startswith("weights.")}
        model.load_state_dict({name.removeprefix("weights."): t for name, t in weights.items()})
        return tensors, counters


def load(path: Path | str, device: torch.device | str = "cpu") -> MultimodalVAE:
    """The trained model of a run folder, in evaluation mode, on a device (as `mmebm.devices.find` knows them)."""
    run = Run.open(path)
    if not run.weights.is_file():
        raise FileNotFoundError(f"{run.path}: has no weights yet")
    model = build_model(load_config(run.config), run.shapes())
    model.load_state_dict(load_file(run.weights))
    return model.to(find(device)).eval()


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    return {
        "mmebm": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "machine": platform.machine(),
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor()


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    temporary = path.with_suffix(".tmp")
    save_file({name: t.detach().contiguous().clone() for name, t in tensors.items()}, temporary, metadata)
    os.replace(temporary, path)


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)
