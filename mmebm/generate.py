"""Joint and cross generation of any number of rows: streamed, in files, resumable, with memory that does not grow.

Rows pass through the networks in blocks of `BLOCK`, which begin at multiples of it and are always whole, what is beyond
the end being dropped; draws and chains are numbered by row. So row i is the same to the bit whatever the number of rows
and of shards, and however often the work was cut off. A folder has one index, index.json, written before the first row,
and numbered files, each written beside its name and then renamed: what is there is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmebm import data
from mmebm.data import MultimodalDataset
from mmebm.models import MultimodalVAE
from mmebm.priors import EnergyPrior
from mmebm.sampling import langevin
from mmebm.training.run import Run, load

__all__ = ["BLOCK", "cross_generate", "generate"]

BLOCK = 1024
FORMATS = ("safetensors", "npy")
DTYPES = {"float32": torch.float32, "uint8": torch.uint8}
_FILE_BYTES = 256 << 20  # about, of a file

Shard = tuple[int, int]
Progress = Callable[[int], None]  # rows of this shard that are done


def generate(
    run: Path | str, output: Path | str, *, rows: int, gen_mod: str | Iterable[str] | None = None,
    steps: int | None = None, seed: int = 0, shard: Shard = (0, 1), file_format: str = "safetensors",
    dtype: str = "float32", file_rows: int | None = None, device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Path:  # fmt: skip
    """`rows` joint samples of a run's model, likelihood means {modality: [rows, *shape]}, in files under `output`.

    `steps` of the energy prior's chains; `shard` (i, n) writes every n-th file from the i-th on, 0-based; `file_rows` a
    file, a multiple of BLOCK. `dtype` uint8 scales images from [0, 1]. `device` computes, as `mmebm.devices.find` knows
    it; a GPU rounds otherwise than a CPU, so that a folder is of one of them. Returns the index.
    Errors: ValueError naming the argument; FileExistsError where `output` holds another call's files.
    """
    model = load(run, device)
    names = _names(model, "gen_mod", gen_mod)
    call = {"kind": "joint", "steps": steps, "gen_mod": names}
    if steps is not None and not isinstance(model.prior, EnergyPrior):
        raise ValueError(f"steps: {type(model.prior).__name__} is drawn without chains")

    def block(first: int) -> dict[str, Tensor]:
        return model.generate(BLOCK, names, steps=steps, seed=seed, first_row=first)

    return _write(Run.open(run), model, output, call, rows, seed, shard, file_format, dtype, file_rows, block, progress)


def cross_generate(
    run: Path | str, output: Path | str, source: MultimodalDataset | Path | str, *, cond_mod: str | Iterable[str],
    gen_mod: str | Iterable[str] | None = None, rows: int | None = None, refine_steps: int = 0,
    refine_step_size: float = 0.05, seed: int = 0, shard: Shard = (0, 1), file_format: str = "safetensors",
    dtype: str = "float32", file_rows: int | None = None, device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Path:  # fmt: skip
    """`gen_mod` (default: what is not observed) given `cond_mod`, for `rows` rows (default: as many as the input has).

    `source`: a dataset, NAME:SPLIT of one, or a path as for `mmebm.data.arrays`, of which .npy folders are mapped and
    not read whole. Row i is conditioned on input row i modulo their number, on what a dataset's row has of `cond_mod`;
    a row that has nothing is drawn from the prior. `refine_steps` Langevin steps, of short-run
    size `refine_step_size`, move z from the posterior on U = E - log p_0 - sum over cond_mod of lambda_m log p(x_m|z).
    Everything else as in `generate`.
    """
    model = load(run, device)
    given = _names(model, "cond_mod", cond_mod)
    rest = [m for m in model.modalities if m not in given]
    names = _names(model, "gen_mod", rest if gen_mod is None else gen_mod)
    if refine_steps < 0 or not refine_step_size > 0:
        raise ValueError(
            f"refine_steps, refine_step_size: expected >= 0 and > 0, got {refine_steps} and {refine_step_size}"
        )
    inputs = _Rows(source, given, model)
    call = {
        "kind": "cross", "cond_mod": given, "gen_mod": names, "input": inputs.fingerprint, "refine_steps": refine_steps,
        "refine_step_size": refine_step_size,
    }  # fmt: skip

    def block(first: int) -> dict[str, Tensor]:
        x, masks = inputs.block(first)
        if not refine_steps:
            return model.cross_generate(x, given, names, masks=masks, seed=seed, first_row=first)
        z = model.encode(x, given, masks=masks, seed=seed, first_row=first)
        z = refine(model, x, z, refine_steps, refine_step_size, masks=masks, seed=seed, first_row=first)
        return model.decode(z, names, seed=seed, first_row=first)

    count = len(inputs) if rows is None else rows
    return _write(
        Run.open(run), model, output, call, count, seed, shard, file_format, dtype, file_rows, block, progress
    )


def refine(
    model: MultimodalVAE, inputs: Mapping[str, Tensor], z: Tensor, steps: int, step_size: float, *,
    masks: Mapping[str, Tensor] | None = None, seed: int = 0, first_row: int = 0,
) -> Tensor:  # fmt: skip
    """z [B, d] after Langevin steps on U = E - log p_0 - sum over `inputs` of lambda_m log p(x_m | z).

    Private latents stay where the posterior has its middle. A state that is lost comes back as it was.
    """
    own = model.own_latents(inputs)

    def energy(at: Tensor) -> Tensor:
        total = model.log_prior(at, 0.0)[1]
        for m, x in inputs.items():
            u = torch.cat((own[m], at), -1) if m in own else at
            log_x = model.rescale[m] * model.likelihoods[m].log_prob(x, model.decoder_output(m, u))
            total = total - (log_x if masks is None or m not in masks else torch.where(masks[m], log_x, 0.0))
        return total

    law, scale = model.reference()
    moved = langevin(
        energy, z, steps=steps, step_size=step_size, reference=law, reference_scale=scale, seed=seed,
        offset=_REFINEMENT, chain_offset=first_row, check="off",
    )  # fmt: skip
    assert isinstance(moved, Tensor)
    return torch.where(torch.isfinite(moved).all(-1, keepdim=True), moved, z)


_REFINEMENT = 1 << 32  # noise steps: far from those of posteriors and private latents


# Input ---------------------------------------------------------------------------------------------------------------


class _Rows:
    """What is observed, by row; of files nothing but the rows asked for is read."""

    def __init__(self, source: MultimodalDataset | Path | str, names: list[str], model: MultimodalVAE) -> None:
        self.names, self.device = names, next(model.parameters()).device
        self.mapped: dict[str, np.ndarray] = {}
        self.dataset: MultimodalDataset | None = None
        if not isinstance(source, MultimodalDataset) and Path(source).is_dir():
            self.mapped, self.fingerprint = _mapped(Path(source), names)
            shapes = {m: tuple(a.shape[1:]) for m, a in self.mapped.items()}
            counts = {m: len(a) for m, a in self.mapped.items()}
        else:
            self.dataset = _dataset(source, names)
            self.fingerprint = self.dataset.fingerprint()
            shapes, counts = self.dataset.shapes, dict.fromkeys(names, len(self.dataset))
        if len(set(counts.values())) > 1:
            raise ValueError(f"input: expected equal numbers of rows, got {counts}")
        self.rows = counts[names[0]]
        if not self.rows:
            raise ValueError("input: expected at least one row, got none")
        for m in names:
            if shapes[m] != model.shapes[m]:
                expected = ", ".join(map(str, model.shapes[m]))
                raise ValueError(f"input: expected {m!r} [N, {expected}], got {[counts[m], *shapes[m]]}")

    def __len__(self) -> int:
        return self.rows

    def block(self, first: int) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """BLOCK rows from `first` on, and which of them have what, where any lack something."""
        index = np.arange(first, first + BLOCK) % self.rows
        if self.dataset is not None:
            at = torch.from_numpy(index)
            rows, seen = self.dataset.batch(at, self.names), self.dataset.observed(at)
            masks = None if seen is None else {m: seen[m].to(self.device) for m in self.names}
            return {m: x.to(self.device) for m, x in rows.items()}, masks
        found = {}
        for m, a in self.mapped.items():
            values = torch.as_tensor(np.ascontiguousarray(a[index])).to(self.device)
            found[m] = values.float() / 255.0 if values.dtype == torch.uint8 else values.float()
        return found, None


def _mapped(folder: Path, names: list[str]) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a folder, and what tells it from another."""
    paths = {m: folder / f"{m}.npy" for m in names}
    if missing := [str(p) for p in paths.values() if not p.is_file()]:
        raise FileNotFoundError(f"input: expected {', '.join(missing)}, which {folder} lacks")
    mapped = {}
    for m, path in paths.items():
        try:
            mapped[m] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path}: expected a plain array, got {error}") from error
        if mapped[m].dtype != np.uint8 and not np.issubdtype(mapped[m].dtype, np.floating):
            raise TypeError(f"{path}: expected uint8 images or floating-point values, got {mapped[m].dtype}")
    told = [(m, path.stat().st_size, path.stat().st_mtime_ns) for m, path in paths.items()]
    return mapped, hashlib.sha256(repr(told).encode()).hexdigest()


def _dataset(source: MultimodalDataset | Path | str, names: list[str]) -> MultimodalDataset:
    if isinstance(source, MultimodalDataset):
        dataset = source
    else:
        name, _, split = str(source).partition(":")
        known = name in data.DATASETS and not Path(source).exists()
        dataset = data.load(name, split or "test") if known else data.arrays("test", path=source)
    if missing := [m for m in names if m not in dataset.modalities]:
        raise ValueError(f"input: expected {', '.join(missing)}, it has {', '.join(dataset.modalities)}")
    return dataset


def _names(model: MultimodalVAE, argument: str, names: str | Iterable[str] | None) -> list[str]:
    chosen = model.modalities if names is None else [names] if isinstance(names, str) else list(names)
    unknown = [n for n in chosen if n not in model.shapes]
    if unknown:
        raise ValueError(f"{argument}: unknown modality {', '.join(unknown)}; the model has {', '.join(model.shapes)}")
    if not chosen:
        raise ValueError(f"{argument}: expected at least one modality, got none")
    return list(dict.fromkeys(chosen))


# Output --------------------------------------------------------------------------------------------------------------


def _write(
    run: Run, model: MultimodalVAE, output: Path | str, call: dict[str, Any], rows: int, seed: int, shard: Shard,
    file_format: str, dtype: str, file_rows: int | None, block: Callable[[int], dict[str, Tensor]],
    progress: Progress | None,
) -> Path:  # fmt: skip
    for name, value, known in (("file_format", file_format, FORMATS), ("dtype", dtype, tuple(DTYPES))):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if rows < 0:
        raise ValueError(f"rows: expected >= 0, got {rows}")
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard: expected (i, n) with 0 <= i < n, got {shard}")
    names = call["gen_mod"]
    size = sum(int(np.prod(model.shapes[m])) for m in names) * (1 if dtype == "uint8" else 4)
    file_rows = max(1, _FILE_BYTES // (size * BLOCK)) * BLOCK if file_rows is None else file_rows
    if file_rows < 1 or file_rows % BLOCK:
        raise ValueError(f"file_rows: expected a multiple of {BLOCK}, got {file_rows}")
    folder = Path(output)
    told = call | {
        "model": _digest(run.weights), "rows": rows, "seed": seed, "format": file_format, "dtype": dtype,
        "file_rows": file_rows, "device": next(model.parameters()).device.type,
        "modalities": {m: list(model.shapes[m]) for m in names},
        "files": [_stem(first // file_rows) for first in range(0, rows, file_rows)],
    }  # fmt: skip
    path = _index(folder, told)
    done = 0
    for number in range(index, len(told["files"]), count):
        first = number * file_rows
        last = min(rows, first + file_rows)
        paths = _paths(folder, number, names, file_format)
        if not all(p.is_file() for p in paths.values()):
            _write_file(paths, file_format, names, model, dtype, first, last, block)
        done += last - first
        if progress is not None:
            progress(done)
    return path


def _write_file(
    paths: dict[str, Path], file_format: str, names: list[str], model: MultimodalVAE, dtype: str, first: int, last: int,
    block: Callable[[int], dict[str, Tensor]],
) -> None:  # fmt: skip
    out = {m: torch.empty((last - first, *model.shapes[m]), dtype=_dtype(model, m, dtype)) for m in names}
    for start in range(first, last, BLOCK):
        stop = min(last, start + BLOCK)
        for m, x in block(start).items():
            x = x[: stop - start]
            if out[m].dtype == torch.uint8:
                x = (x * 255.0).round_().clamp_(0.0, 255.0).to(torch.uint8)
            out[m][start - first : stop - first].copy_(x)
    if file_format == "safetensors":
        (path,) = set(paths.values())
        part = path.with_suffix(".part")
        save_file(out, part, {"first": str(first)})
        os.replace(part, path)
        return
    for m, path in paths.items():
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, out[m].numpy(), allow_pickle=False)
        os.replace(part, path)


def _dtype(model: MultimodalVAE, name: str, dtype: str) -> torch.dtype:
    """uint8 is for images [C, H, W]."""
    return DTYPES[dtype] if len(model.shapes[name]) == 3 else torch.float32


def _stem(number: int) -> str:
    return f"part-{number:06d}"


def _paths(folder: Path, number: int, names: list[str], file_format: str) -> dict[str, Path]:
    if file_format == "safetensors":
        return dict.fromkeys(names, folder / f"{_stem(number)}.safetensors")
    return {m: folder / f"{_stem(number)}-{m}.npy" for m in names}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _index(folder: Path, told: dict[str, Any]) -> Path:
    """Writes the index, or finds that the folder has this very one: all shards write the same."""
    path = folder / "index.json"
    text = json.dumps(told, indent=2) + "\n"
    if path.is_file():
        there = json.loads(path.read_text())
        if there != told:
            differing = sorted(key for key in told.keys() | there.keys() if told.get(key) != there.get(key))
            raise FileExistsError(
                f"output: {folder} holds another call's files, which differ in {', '.join(differing)}; choose another"
            )
        return path
    if folder.exists() and any(not p.name.startswith(".index-") for p in folder.iterdir()):
        raise FileExistsError(f"output: {folder} is not empty and has no index; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".index-{os.getpid()}.part"
    part.write_text(text)
    os.replace(part, path)
    return path
