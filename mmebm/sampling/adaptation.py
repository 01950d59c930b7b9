"""Step sizes that find themselves in warm-up: dual averaging of the log step on the acceptance of all chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from .conventions import StepSize

State = TypeVar("State")

# Rounds that a warm-up has at most: between two of them the step size changes.
ROUNDS = 64


class DualAveraging:
    """log of a factor on the step size, moved until acceptance meets its target (Hoffman and Gelman 2014, 3.2)."""

    def __init__(self, target: float, *, gamma: float = 0.05, delay: float = 10.0, decay: float = 0.75) -> None:
        self.target, self.gamma, self.delay, self.decay = target, gamma, delay, decay
        self.rounds = 0
        self.shortfall = 0.0
        self.current = self.averaged = 0.0

    def update(self, acceptance: float) -> None:
        """One round's mean acceptance; NaN, where all chains are lost, counts as none accepted."""
        acceptance = acceptance if math.isfinite(acceptance) else 0.0
        self.rounds += 1
        n = self.rounds
        weight = 1.0 / (n + self.delay)
        self.shortfall = (1.0 - weight) * self.shortfall + weight * (self.target - acceptance)
        # Towards ten times the given step, as a step that is too small costs more to leave than one too large.
        self.current = math.log(10.0) - math.sqrt(n) / self.gamma * self.shortfall
        share = n**-self.decay
        self.averaged = share * self.current + (1.0 - share) * self.averaged


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
    averaging = DualAveraging(target_acceptance)
    size = max(1, math.ceil(steps / ROUNDS))
    for first in range(0, steps, size):
        now = scaled(convention, math.exp(averaging.current))
        state, acceptance = run(state, now, first, min(size, steps - first))
        averaging.update(float(acceptance.mean()))
    return state, scaled(convention, math.exp(averaging.averaged))


def check_warm_up(warmup: int, target_acceptance: float, convention: StepSize | None) -> None:
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        raise ValueError(f"warmup: expected an integer >= 0, got {warmup!r}")
    if not 0.0 < target_acceptance < 1.0:
        raise ValueError(f"target_acceptance: expected a number in (0, 1), got {target_acceptance}")
    if warmup and (convention is None or len(convention.a) != 1):
        raise ValueError("warmup: expected one step size to adapt, got a schedule or coefficients")
