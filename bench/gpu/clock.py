"""Seconds of a call: CUDA events around many, caches flushed between, contenders interleaved."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

Call = Callable[[], object]


class Spread(NamedTuple):
    """Seconds of a call over the rounds."""

    rounds: int
    least: float
    median: float
    p80: float


class Clock:
    """Of one device; on the CPU a wall clock."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        # Twice an H200's L2; writing it leaves nothing of a call's operands there.
        size = 1 << 27 if self.on_gpu else 1 << 20
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def once(self, call: Call) -> float:
        """With cold caches; launch included on the CPU, not on a GPU."""
        self._flush.fill_(1)
        if not self.on_gpu:
            began = time.perf_counter()
            call()
            return time.perf_counter() - began
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The GPU is kept busy while the call is launched, so that events enclose its kernels and not their launches.
        torch.cuda._sleep(2_000_000)
        begin.record()
        call()
        end.record()
        self.wait()
        return begin.elapsed_time(end) * 1e-3

    def wall(self, call: Call) -> float:
        """From the call to its result, launches included."""
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - began

    def interleaved(
        self, calls: Mapping[str, Call], rounds: int, seconds: float, *, wall: bool = False, seed: int = 0
    ) -> dict[str, Spread]:
        """Each once a round in random order, after a warm-up, until `rounds` are done or the seconds are over."""
        measure, shuffle = self.wall if wall else self.once, random.Random(seed).shuffle
        for call in calls.values():
            call()
            call()
        self.wait()
        samples: dict[str, list[float]] = {name: [] for name in calls}
        order, end = list(calls), time.monotonic() + seconds
        for done in range(rounds):
            if done >= 3 and time.monotonic() > end:
                break
            shuffle(order)
            for name in order:
                samples[name].append(measure(calls[name]))
        return {name: _spread(values) for name, values in samples.items()}


def _spread(values: list[float]) -> Spread:
    ordered = sorted(values)
    return Spread(len(values), ordered[0], statistics.median(values), ordered[int(0.8 * (len(ordered) - 1))])
