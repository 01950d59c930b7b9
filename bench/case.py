"""What is measured: a case is one operator at one size, with its contenders and the oracle they answer to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

SUBJECT = "mmebm"
Call = Callable[[], Any]


def never() -> str | None:
    return None


@dataclass(frozen=True)
class Contender:
    """One way to do a case's work.

    `make(inputs)` does the set-up, outside the clock, and returns the call to time. `gate` says how its result is
    checked: "values" against the oracle; "moments" against the subject, where noise cannot be shared; "none" for what
    only stands beside, such as fill_. `checked`, where given, makes what the gate calls instead: the same code on
    recorded noise. `rate` says that the call returns its own rate, in `unit`. `work` and `unit` stand in for the
    case's. `environment` holds while the contender runs. `steps_like` names the contender of a chain whose number of
    steps it takes, where probing it is dear. `absent` gives the reason why it cannot run here.
    """

    make: Callable[[Any], Call]
    gate: str = "values"
    checked: Callable[[Any], Call] | None = None
    work: float | None = None
    unit: str | None = None
    rate: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    steps_like: str | None = None
    absent: Callable[[], str | None] = never
    version: Callable[[], str] = str


@dataclass(frozen=True)
class Case:
    """`work` per call in `unit` (GFLOP, Gvalues, GB); a contender's ratio is the subject's rate over the contender's.

    `steps`: the K of a chain, if it is one: slow contenders then run fewer (`inputs(k)`), and `work` is that of all K.
    `oracle(inputs)` gives float64 tensors, `select(inputs, output)` the part of a contender's output that they are for.
    `moments(inputs, output)` gives [rows, dims] whose means and variances the "moments" gate compares.
    `limit` names the contender that is the bound; `model` the bound's cost of one unit of work in that contender's
    units, by part; parts other than the first are priced by the rows of case `stage`.
    """

    name: str
    operator: str
    sizes: dict[str, int | str]
    inputs: Callable[..., Any]
    contenders: dict[str, Contender]
    work: float
    unit: str
    oracle: Callable[[Any], tuple[Tensor, ...]] | None = None
    select: Callable[[Any, Any], tuple[Tensor, ...]] = lambda _, output: (
        output if isinstance(output, tuple) else (output,)
    )
    moments: Callable[[Any, Any], Tensor] = lambda _, output: output
    tolerance: tuple[float, float] = (1e-4, 1e-5)  # relative, absolute
    outliers: float = 0.0  # the share of values that may exceed the tolerance
    steps: int | None = None
    gate_steps: int | None = None
    subject: str = SUBJECT
    limit: str = ""
    model: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Cases built by one function: at the `sizes` that are recorded, and at a `tiny` one for the tests."""

    build: Callable[..., Case]
    sizes: tuple[dict[str, Any], ...]
    tiny: dict[str, Any]

    def cases(self) -> Iterator[Case]:
        return (self.build(**size) for size in self.sizes)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that hold for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
