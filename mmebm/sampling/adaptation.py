"""Step sizes that find themselves in warm-up, on the acceptance of all chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from .conventions import StepSize

State = TypeVar("State")

# Rounds that a warm-up has at most: between two of them the step size changes.
ROUNDS = 64


class Adaptation:
    """log of a factor on the step size, moved until acceptance meets its target: stochastic approximation.

    After a round, log factor += gain (1 + crossings)^-decay (acceptance - target); only a change of the difference's
    sign makes the gain smaller (Kesten 1958), so that a step a thousand times too small is left in some ten rounds. The
    outcome is the mean over the second half of the rounds since the first change (Polyak and Juditsky 1992).
    """

    def __init__(self, target: float, *, gain: float = 3.0, decay: float = 0.6) -> None:
        self.target, self.gain, self.decay = target, gain, decay
        self.current = 0.0
        self.crossings = 0
        self.last = 0.0
        self.path: list[float] = []  # since the first crossing

    @property
    def outcome(self) -> float:
        half = self.path[len(self.path) // 2 :]
        return sum(half) / len(half) if half else self.current

    def update(self, acceptance: float) -> None:
        """One round's mean acceptance; NaN, where all chains are lost, counts as none accepted."""
        difference = (acceptance if math.isfinite(acceptance) else 0.0) - self.target
        self.crossings += difference * self.last < 0.0
        self.last = difference
        self.current += self.gain * (1 + self.crossings) ** -self.decay * difference
        if self.crossings:
            self.path.append(self.current)


def scaled(convention: StepSize, factor: float) -> StepSize:
    """The step `factor` times as long: b times it, a times its square."""
    a, b = (tuple(x * f for x in xs) for xs, f in ((convention.a, factor * factor), (convention.b, factor)))
    return StepSize(convention.name, a, b)


def warm_up(
    state: State,
    convention: StepSize,
    steps: int,
    target_acceptance: float,
    run: Callable[[State, StepSize, int, int], tuple[State, Tensor]],
) -> tuple[State, StepSize]:
    """`steps` steps in at most `ROUNDS` rounds; returns the state after them and the adapted step size.

    `run(state, convention, first, count)` makes steps first..first+count-1 and gives each chain's acceptance.
    """
    adaptation = Adaptation(target_acceptance)
    size = max(1, math.ceil(steps / ROUNDS))
    for first in range(0, steps, size):
        now = scaled(convention, math.exp(adaptation.current))
        state, acceptance = run(state, now, first, min(size, steps - first))
        adaptation.update(float(acceptance.mean()))
    return state, scaled(convention, math.exp(adaptation.outcome))


def check_warm_up(warmup: int, target_acceptance: float, convention: StepSize | None) -> None:
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        raise ValueError(f"warmup: expected an integer >= 0, got {warmup!r}")
    if not 0.0 < target_acceptance < 1.0:
        raise ValueError(f"target_acceptance: expected a number in (0, 1), got {target_acceptance}")
    if warmup and (convention is None or len(convention.a) != 1):
        raise ValueError("warmup: expected one step size to adapt, got a schedule or coefficients")
