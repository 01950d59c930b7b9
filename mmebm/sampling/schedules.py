"""Schedules: one number a step, for `step_size`, for a convention, or for the t that anneals the energy.

langevin(.., steps=100, step_size=geometric(0.4, 0.05, 100))
langevin(.., steps=100, coefficients=short_run(0.2).coefficients(100, t=linear(0.0, 1.0, 100)))
"""

from __future__ import annotations

import math

from mmebm.kernels import checks


def linear(first: float, last: float, steps: int) -> list[float]:
    """Equal differences, both ends included."""
    return [first + (last - first) * u for u in _unit(steps)]


def geometric(first: float, last: float, steps: int) -> list[float]:
    """Equal ratios, both ends included; both ends > 0."""
    if not (first > 0 and last > 0):
        raise ValueError(f"first, last: expected numbers > 0, got {first}, {last}")
    return [first * (last / first) ** u for u in _unit(steps)]


def cosine(first: float, last: float, steps: int) -> list[float]:
    """Half a cosine from first to last: flat at both ends."""
    return [last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * u)) for u in _unit(steps)]


def polynomial(first: float, steps: int, *, power: float = 0.55, delay: float = 1.0) -> list[float]:
    """first (1 + k / delay)^-power, as stochastic-gradient Langevin dynamics needs (Welling and Teh 2011)."""
    if not delay > 0:
        raise ValueError(f"delay: expected a number > 0, got {delay}")
    checks.at_least("steps", steps, 0)
    return [first * (1.0 + k / delay) ** -power for k in range(steps)]


def cyclical(first: float, steps: int, cycles: int, *, floor: float = 0.01) -> list[float]:
    """A cosine from first towards first * floor, begun anew `cycles` times (Zhang et al., ICLR 2020)."""
    checks.at_least("steps", steps, 0)
    checks.at_least("cycles", cycles, 1)
    length = max(1, math.ceil(steps / cycles))
    wave = [0.5 * (1.0 + math.cos(math.pi * (k % length) / length)) for k in range(steps)]
    return [first * max(floor, w) for w in wave]


def _unit(steps: int) -> list[float]:
    checks.at_least("steps", steps, 0)
    return [k / max(1, steps - 1) for k in range(steps)]
