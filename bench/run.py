"""Runs a case: the gate, then the clock, then its rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from bench.case import SUBJECT, Call, Case, Contender, environment
from bench.gate import judge
from bench.measure import SAMPLE_SECONDS, Summary, Timed, interleave, summarise
from mmebm.kernels import dispatch, native

KEY = ("case", "threads")
# A chain whose call takes longer is run with fewer steps, and its seconds scaled to all of them.
SLOW_SECONDS = 2.0


@dataclass(frozen=True)
class Effort:
    rounds: int = 11
    least: int = 5
    budget_s: float = 120.0
    sample_seconds: float = SAMPLE_SECONDS


QUICK = Effort(rounds=3, least=2, budget_s=10.0, sample_seconds=0.005)


def _steps(case: Case, contender: Contender) -> int | None:
    """How many of a chain's K steps a call may take; from one step against three, so that set-up does not count."""
    if case.steps is None or contender.gate == "none":
        return None
    took = []
    for steps in (1, 3):
        call = contender.make(case.inputs(steps))
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    each = max(1e-9, (took[1] - took[0]) / 2 if took[1] > took[0] else took[1] / 3)
    return max(1, min(case.steps, int(SLOW_SECONDS / each)))


def _serving(case: Case, name: str) -> tuple[str, str]:
    """The backend and the instruction set of a contender's call; nothing where the call is none of mmebm's."""
    contender = case.contenders[name]
    with environment(contender.environment):
        if contender.rate:
            backend = "cpu"
        elif name.startswith(SUBJECT):
            backend = dispatch.choose("auto", case.operator, torch.device("cpu"), torch.float32)
        else:
            return "", ""
        return backend, native.isa() if backend == "cpu" else ""


def rows(case: Case, threads: int, effort: Effort, facts: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """One row per contender. Absent and refused ones have a note and no timing; without a subject nothing is timed."""
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    notes = {name: f"absent: {why}" for name, contender in case.contenders.items() if (why := contender.absent())}
    calls: dict[str, tuple[Call, Any]] = {}
    steps: dict[str, int | None] = {}
    summaries: dict[str, Summary] = {}
    if case.subject not in notes:
        calls, steps = _made(case, notes)
    if case.subject not in notes:
        gate_inputs = case.inputs(case.gate_steps) if case.steps else calls[case.subject][1]
        verdicts = judge(case, gate_inputs, calls)
        notes |= {name: f"refused: {why}" for name, why in verdicts.items() if why}
    if why := notes.get(case.subject):
        notes = {name: notes.get(name) or f"not timed: {case.subject} is {why}" for name in case.contenders}
    else:
        summaries = _timed(case, {n: call for n, (call, _) in calls.items() if n not in notes}, steps, effort, seed)
    return [
        _row(case, name, notes.get(name, ""), summaries.get(name), steps.get(name), threads) | facts
        for name in case.contenders
    ]


def _timed(
    case: Case, calls: dict[str, Call], steps: dict[str, int | None], effort: Effort, seed: int
) -> dict[str, Summary]:
    timed = {
        name: Timed(call, _work(case, name), case.contenders[name].rate, case.contenders[name].environment)
        for name, call in calls.items()
    }
    samples = interleave(
        timed,
        effort.rounds,
        seed=seed,
        budget_s=effort.budget_s,
        least=effort.least,
        sample_seconds=effort.sample_seconds,
        title=case.name,
    )
    scaled = {name: [s * _times(case, steps[name]) for s in values] for name, values in samples.items()}
    return summarise(scaled, {name: _work(case, name) for name in timed}, case.subject)


def _work(case: Case, name: str) -> float:
    return case.contenders[name].work or case.work


def _times(case: Case, steps: int | None) -> float:
    """What a call of `steps` steps is multiplied by to stand for all K."""
    return 1.0 if steps is None or case.steps is None else case.steps / steps


def _made(case: Case, notes: dict[str, str]) -> tuple[dict[str, tuple[Call, Any]], dict[str, int | None]]:
    """The calls to time with the inputs they were made for, and the steps each takes."""
    calls: dict[str, tuple[Call, Any]] = {}
    steps: dict[str, int | None] = {}
    whole = case.inputs(case.steps) if case.steps else case.inputs()
    for name, contender in case.contenders.items():
        if name in notes:
            continue
        like = contender.steps_like if contender.steps_like in steps else None
        try:
            with environment(contender.environment):
                steps[name] = steps[like] if like else _steps(case, contender)
                inputs = whole if steps[name] in (None, case.steps) else case.inputs(steps[name])
                calls[name] = contender.make(inputs), inputs
        except Exception as error:
            notes[name] = f"refused: it raises {type(error).__name__}: {error}"
    return calls, steps


def _row(case: Case, name: str, note: str, summary: Summary | None, steps: int | None, threads: int) -> dict[str, Any]:
    contender, work, mine = case.contenders[name], _work(case, name), name == case.subject
    numbers = (
        summary._asdict() | {"rate": work / summary.median_s, "best_rate": work / summary.min_s} if summary else {}
    )
    here = not note.startswith("absent")
    backend, isa = _serving(case, name) if here else ("", contender.environment.get("MMEBM_ISA", ""))
    return {
        "case": case.name,
        "operator": case.operator,
        "sizes": " ".join(f"{key}={value}" for key, value in case.sizes.items()),
        "contender": name,
        "note": note,
        **{key: f"{numbers[key]:.5g}" if summary else "" for key in (*Summary._fields, "rate", "best_rate")},
        "unit": f"{contender.unit or case.unit}/s",
        "scaled_from": "" if steps in (None, case.steps) else f"K={steps}",
        "limit": case.limit if mine else "",
        "model": " + ".join(f"{value:.6g} {part}" for part, value in case.model.items()) if mine else "",
        "threads": threads,
        "backend": backend,
        "isa": isa,
        "version": contender.version() if here else "",
    }
