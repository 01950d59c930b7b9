"""`mmebm profile`: one real operator call, saved to disk and run again under Nsight Systems or Nsight Compute."""

from __future__ import annotations

import argparse
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from mmebm.devices import find
from mmebm.kernels import dispatch, ops
from mmebm.kernels.ops import capture
from mmebm.kernels.ranges import DOMAIN, Range

TOOLS = ("nsys", "ncu", "none")
WARM_UPS = 3


def capture_call(operator: str, folder: Path, source: str | Path = "digits", updates: int = 2) -> Path:
    """Train the preset or configuration for `updates` updates and save the operator's first call in `folder`.

    Errors: ValueError for what is no operator, or one that this training does not call; what it calls is named.
    """
    from mmebm import data
    from mmebm.training import build_model, load_config
    from mmebm.training.loop import Trainer

    every = (*ops.OPERATORS, *(f"{name}_backward" for name in ops.OPERATORS))
    if operator not in every:
        raise ValueError(f"call: expected a saved call or one of {', '.join(ops.OPERATORS)}, got {operator!r}")
    # Here and now, whatever device the configuration is for: a replay chooses its own.
    config = load_config(source, ["train.energy_start=0", "device=cpu", "train.cuda_graph=false"])
    dataset = data.load(config.data.name, "train", **config.data.options)
    trainer = Trainer(build_model(config, dataset.shapes), config)
    rows = torch.arange(min(config.train.batch_size, len(dataset)))
    with capture.captured(folder, [operator]) as files, torch.random.fork_rng():
        for _ in range(updates):
            trainer.update(dataset.batch(rows))
    if not files:
        with capture.captured(folder / "other") as others:
            trainer.update(dataset.batch(rows))
        called = sorted(path.stem.rpartition("-")[0] for path in others)
        shutil.rmtree(folder / "other")
        raise ValueError(f"call: expected an operator that {source} calls, {', '.join(called)}, got {operator!r}")
    return files[0]


def command(
    tool: str, call: Path, output: Path, *, repeat: int = 20, device: str = "auto", backend: str = "auto"
) -> list[str]:
    """What runs the call under the tool; "none" runs it alone. Ranges: mmebm@<operator>, and `replay` around all."""
    name = capture.load(call).operator
    replay = [sys.executable, "-m", "mmebm.profiling", str(call), "--repeat", str(repeat), "--device", device]
    replay += ["--backend", backend]
    if tool == "none":
        return replay
    if tool == "nsys":
        ranges = ["--trace=cuda,nvtx,osrt", "--cuda-graph-trace=node", "--force-overwrite=true"]
        if _on_gpu(device):
            ranges += ["--capture-range=cudaProfilerApi", "--capture-range-end=stop"]
        return ["nsys", "profile", *ranges, f"--output={output}", *replay]
    if tool == "ncu":
        # The first launches of the range warm caches; one is measured whole.
        where = ["--nvtx", "--nvtx-include", f"{DOMAIN}@{name}/", f"--launch-skip={WARM_UPS}", "--launch-count=1"]
        return ["ncu", "--set=full", "--import-source=yes", *where, "-f", f"--export={output}", *replay]
    raise ValueError(f"tool: expected one of {', '.join(TOOLS)}, got {tool!r}")


def profile(
    call: str, tool: str, folder: Path, *, source: str = "digits", repeat: int = 20, device: str = "auto",
    backend: str = "auto",
) -> tuple[str, str | None]:  # fmt: skip
    """Save the call if it is an operator's name, and run it under the tool.

    Returns the command and, where it was not run, why. Errors: ValueError for the arguments; RuntimeError where the
    tool fails.
    """
    if tool not in TOOLS:
        raise ValueError(f"tool: expected one of {', '.join(TOOLS)}, got {tool!r}")
    if backend not in ("auto", *dispatch.BACKENDS):
        raise ValueError(f"backend: expected 'auto' or one of {', '.join(dispatch.BACKENDS)}, got {backend!r}")
    path = Path(call) if Path(call).suffix == ".safetensors" else capture_call(call, folder, source)
    line = command(tool, path, folder / f"{path.stem}-{tool}", repeat=repeat, device=device, backend=backend)
    text = shlex.join(line)
    if shutil.which(line[0]) is None:
        return text, f"{line[0]} is not on the PATH; it comes with the CUDA toolkit or from NVIDIA's developer site"
    if tool == "ncu" and not _on_gpu(device):
        return text, "ncu measures kernels of a GPU, and the call would run on the CPU"
    done = subprocess.run(line, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} ended with {done.returncode}: {text}")
    return text, None


def _on_gpu(device: str) -> bool:
    """Of a replay, here or on the machine that a command is printed for."""
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def replay(path: Path, repeat: int, device: torch.device, backend: str) -> float:
    """Run a saved call `repeat` times inside the range "replay", after a warm-up outside; median seconds a call."""
    call, seconds = capture.load(path).to(device, backend), list[float]()
    on_gpu = device.type == "cuda"

    def once() -> None:
        began = time.perf_counter()
        call.run()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)

    for _ in range(WARM_UPS):
        once()
    seconds.clear()
    if on_gpu:
        torch.cuda.profiler.start()
    with Range("replay"):
        for _ in range(repeat):
            once()
    if on_gpu:
        torch.cuda.profiler.stop()
    return statistics.median(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mmebm.profiling", description="Run a saved operator call again.")
    parser.add_argument("call", type=Path)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args(arguments)
    device = find(options.device)
    seconds = replay(options.call, options.repeat, device, options.backend)
    print(capture.load(options.call).describe())
    print(f"{1e6 * seconds:.1f} us a call on {device}, median of {options.repeat}, launch and synchronisation included")


if __name__ == "__main__":
    main()
