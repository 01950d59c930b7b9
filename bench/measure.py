"""Interleaved rounds and what is made of them: minima, medians, paired ratios."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.case import Call, environment
from mmebm.kernels.ranges import Range

SAMPLE_SECONDS = 0.03


@dataclass(frozen=True)
class Timed:
    """A call to time. `work` is what one call does; a call with `rate` returns its work per second itself."""

    call: Call
    work: float
    rate: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


class Summary(NamedTuple):
    rounds: int
    min_s: float
    median_s: float
    ratio_median: float
    ratio_q1: float
    ratio_q3: float


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def seconds(timed: Timed, repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Mean seconds of one call."""
    with environment(timed.environment):
        if timed.rate:
            return timed.work / timed.call()
        start = clock()
        for _ in range(repeats):
            timed.call()
        return (clock() - start) / repeats


def repeats_for(timed: Timed, sample_seconds: float = SAMPLE_SECONDS) -> int:
    """How many calls make a sample of `sample_seconds`; the first call is thrown away."""
    if timed.rate:
        return 1
    seconds(timed, 1)
    once = seconds(timed, 1)
    few = max(1, min(10, math.ceil(0.2 * sample_seconds / max(once, 1e-9))))
    once = min(once, seconds(timed, few))
    return max(1, math.ceil(sample_seconds / max(once, 1e-9)))


def interleave(
    contenders: Mapping[str, Timed],
    rounds: int,
    *,
    seed: int = 0,
    budget_s: float = math.inf,
    least: int = 5,
    sample_seconds: float = SAMPLE_SECONDS,
    title: str = "bench",
) -> dict[str, list[float]]:
    """Seconds per call, one value a round for each contender; the order within a round is random.

    After `budget_s` no round begins if `least` are done. A profiler shows each sample as "title: contender".
    """
    spans = {name: Range(f"{title}: {name}") for name in contenders}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order, shuffle = list(contenders), random.Random(seed).shuffle
    with _no_collection():
        start = time.perf_counter()
        repeats = {name: repeats_for(timed, sample_seconds) for name, timed in contenders.items()}
        for done in range(rounds):
            if done >= least and time.perf_counter() - start > budget_s:
                break
            shuffle(order)
            for name in order:
                with spans[name]:
                    samples[name].append(seconds(contenders[name], repeats[name]))
    return samples


def summarise(samples: Mapping[str, list[float]], work: Mapping[str, float], subject: str) -> dict[str, Summary]:
    """Ratios are paired: within a round, the subject's rate over the contender's; above 1, the subject is faster."""
    out = {}
    pace = [s / work[subject] for s in samples[subject]]
    for name, values in samples.items():
        ratios = [v / work[name] / p for v, p in zip(values, pace, strict=True)]
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        out[name] = Summary(
            len(values), min(values), statistics.median(values), quartiles[1], quartiles[0], quartiles[2]
        )
    return out
