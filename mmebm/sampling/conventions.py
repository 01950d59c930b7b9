"""Step-size conventions: how one number becomes the drift a and the noise b of z <- z - a grad U + b eps.

Codes disagree: "0.4" is a = 0.08 in short-run code, 0.4 in the physicist's form and 0.2 after Welling and Teh.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Size = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class StepSize:
    """Drift a and noise b of every step; temperature T = b^2 / (2 a), 1 where the chain targets exp(-U)."""

    name: str
    a: tuple[float, ...]
    b: tuple[float, ...]

    def temperature(self) -> tuple[float, ...]:
        return tuple(b * b / (2.0 * a) if a else math.inf for a, b in zip(self.a, self.b, strict=True))

    def coefficients(self, steps: int, device: torch.device | str = "cpu") -> Tensor:
        """The operators' table float32 [steps, 3] = (a, b, 1); one value serves all steps."""
        if len(self.a) not in (1, steps):
            raise ValueError(f"convention: expected 1 or steps={steps} values, got {len(self.a)}")
        table = torch.tensor(
            [(a, b, 1.0) for a, b in zip(self.a, self.b, strict=True)], dtype=torch.float32, device=device
        )
        return table.expand(steps, 3).contiguous()

    def __repr__(self) -> str:
        shown = zip(self.a, self.b, self.temperature(), strict=True)
        first = ", ".join(f"{name}={value:.6g}" for name, value in zip("abT", next(shown), strict=True))
        return f"{self.name}({first}{', ..' if len(self.a) > 1 else ''})"


def _values(name: str, size: Size) -> list[float]:
    if isinstance(size, Tensor):
        values = size.double().reshape(-1).tolist()
    else:  # by no tensor, so that a call with numbers can be traced
        values = [float(size)] if isinstance(size, int | float) else [float(v) for v in size]
    if not values or any(not (v > 0 and math.isfinite(v)) for v in values):
        raise ValueError(f"{name}: expected finite step sizes > 0, got {size}")
    return values


def short_run(s: Size) -> StepSize:
    """a = s^2 / 2, b = s, as in latent-EBM code (Pang et al. 2020); `s` a number or one per step."""
    values = _values("step_size", s)
    return StepSize("short_run", tuple(v * v / 2.0 for v in values), tuple(values))


def physics(eta: Size) -> StepSize:
    """a = eta, b = sqrt(2 eta), as in torchebm and blackjax."""
    values = _values("eta", eta)
    return StepSize("physics", tuple(values), tuple(math.sqrt(2.0 * v) for v in values))


def welling_teh(eps: Size) -> StepSize:
    """a = eps / 2, b = sqrt(eps) (Welling and Teh 2011)."""
    values = _values("eps", eps)
    return StepSize("welling_teh", tuple(v / 2.0 for v in values), tuple(math.sqrt(v) for v in values))
