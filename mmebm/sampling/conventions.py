"""Step-size conventions: how one number becomes the drift a and the noise b of z <- z - a grad U + b eps.

Codes disagree: "0.4" is a = 0.08 in short-run code, 0.4 in the physicist's form and 0.2 after Welling and Teh.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .remembered import remembered

Size = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class StepSize:
    """Drift a and noise b of every step; temperature T = b^2 / (2 a), 1 where the chain targets exp(-U)."""

    name: str
    a: tuple[float, ...]
    b: tuple[float, ...]

    def temperature(self) -> tuple[float, ...]:
        return tuple(b * b / (2.0 * a) if a else math.inf for a, b in zip(self.a, self.b, strict=True))

    def coefficients(
        self,
        steps: int,
        device: torch.device | str = "cpu",
        *,
        t: Sequence[float] | Tensor | None = None,
        temperature: float | Sequence[float] | Tensor = 1.0,
    ) -> Tensor:
        """The operators' table float32 [steps, 3] = (a, b, t); one value serves all steps.

        `t` (1 by default) scales E step by step: annealing. `temperature` T multiplies b by sqrt(T), so that the chain
        targets exp(-U / T).
        """
        if len(self.a) not in (1, steps):
            raise ValueError(f"convention: expected 1 or steps={steps} values, got {len(self.a)}")
        # Without a tensor operation a number, so that a call can be traced and costs little.
        columns = [self.a, self.b, (1.0,) if t is None else tuple(_numbers("t", t, least=-math.inf))]
        if not (isinstance(temperature, int | float) and temperature == 1.0):
            heat = _numbers("temperature", temperature, least=0.0)
            columns[1] = tuple(b * math.sqrt(h) for b, h in zip(*_level("temperature", [self.b, heat]), strict=True))
        if any(len(column) not in (1, steps) for column in columns):
            raise ValueError(f"t, temperature: expected 1 or steps={steps} values, got {[len(c) for c in columns[1:]]}")
        if all(len(column) == 1 for column in columns):
            row = torch.tensor([[column[0] for column in columns]], dtype=torch.float32, device=device)
            return row.expand(steps, 3).contiguous()
        filled = [column * steps if len(column) == 1 else column for column in columns]
        return torch.tensor(filled, dtype=torch.float32, device=device).T.contiguous().view(steps, 3)

    def __repr__(self) -> str:
        shown = zip(self.a, self.b, self.temperature(), strict=True)
        first = ", ".join(f"{name}={value:.6g}" for name, value in zip("abT", next(shown), strict=True))
        return f"{self.name}({first}{', ..' if len(self.a) > 1 else ''})"


def _numbers(name: str, given: Size, least: float, what: str = "numbers") -> list[float]:
    """The finite numbers above `least` that somebody gives as a number, a sequence or a tensor."""
    if isinstance(given, Tensor):
        if given.requires_grad:
            raise ValueError(f"{name}: expected numbers without a gradient, as a chain's end is a sample; detach them")
        values = given.double().reshape(-1).tolist()
    else:  # by no tensor, so that a call with numbers can be traced
        values = [float(given)] if isinstance(given, int | float) else [float(v) for v in given]
    if not values or any(not (v > least and math.isfinite(v)) for v in values):
        raise ValueError(f"{name}: expected finite {what}{'' if least < 0 else ' > 0'}, got {given}")
    return values


def _level(name: str, columns: Sequence[Sequence[float]]) -> list[list[float]]:
    """Columns of equal length: single values are repeated."""
    longest = max(map(len, columns))
    if any(len(column) not in (1, longest) for column in columns):
        raise ValueError(f"{name}: expected 1 or {longest} values, got {[len(column) for column in columns]}")
    return [list(column) * (longest // len(column)) for column in columns]


def short_run(s: Size) -> StepSize:
    """a = s^2 / 2, b = s, as in latent-EBM code (Pang et al. 2020); `s` a number or one per step."""
    values = _numbers("step_size", s, 0.0, "step sizes")
    return StepSize("short_run", tuple(v * v / 2.0 for v in values), tuple(values))


def physics(eta: Size) -> StepSize:
    """a = eta, b = sqrt(2 eta), as in torchebm and blackjax."""
    values = _numbers("eta", eta, 0.0, "step sizes")
    return StepSize("physics", tuple(values), tuple(math.sqrt(2.0 * v) for v in values))


def welling_teh(eps: Size) -> StepSize:
    """a = eps / 2, b = sqrt(eps) (Welling and Teh 2011)."""
    values = _numbers("eps", eps, 0.0, "step sizes")
    return StepSize("welling_teh", tuple(v / 2.0 for v in values), tuple(math.sqrt(v) for v in values))


def table(
    steps: int, step_size: Size | None, convention: StepSize | None, coefficients: Tensor | None, device: torch.device
) -> Tensor:
    """The operators' table [steps, 3] from whichever of the three is given; not to be written into."""
    if (step_size is not None) + (convention is not None) + (coefficients is not None) != 1:
        given = {"step_size": step_size, "convention": convention, "coefficients": coefficients}
        got = [name for name, value in given.items() if value is not None]
        raise ValueError(f"step_size, convention, coefficients: expected exactly one, got {got or 'none'}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps: expected an integer >= 0, got {steps!r}")
    if coefficients is not None:
        return _own_table(steps, coefficients)
    if isinstance(step_size, int | float):
        return remembered(_short_run_table, step_size, steps, device)
    if step_size is not None:
        convention = short_run(step_size)
    if not isinstance(convention, StepSize):
        raise TypeError(f"convention: expected a StepSize such as physics(eta), got {convention!r}")
    if len(convention.a) > 1:
        return convention.coefficients(steps, device)
    return remembered(StepSize.coefficients, convention, steps, device)


def _short_run_table(s: float, steps: int, device: torch.device) -> Tensor:
    return short_run(s).coefficients(steps, device)


def _own_table(steps: int, coefficients: Tensor) -> Tensor:
    if not isinstance(coefficients, Tensor) or coefficients.shape != (steps, 3):
        got = list(coefficients.shape) if isinstance(coefficients, Tensor) else type(coefficients).__name__
        raise ValueError(f"coefficients: expected a tensor [steps={steps}, 3] of (a, b, t), got {got}")
    if coefficients.requires_grad:
        raise ValueError("coefficients: expected a tensor without a gradient, as a chain's end is a sample; detach it")
    return coefficients.to(torch.float32)
