"""Laws of chains and of their targets by quadrature in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .targets import Target

SPAN = 10.0  # of every grid, to both sides of 0


class Law(NamedTuple):
    """A distribution function in one dimension, straight between the nodes x."""

    x: Tensor
    cdf: Tensor

    def sample(self, n: int) -> Tensor:
        """Independent draws float32 [n, 1] from torch's generator."""
        u = torch.rand(n, dtype=torch.float64)
        return torch.from_numpy(np.interp(u.numpy(), self.cdf.numpy(), self.x.numpy())).float().unsqueeze(1)

    def uniforms(self, z: Tensor) -> Tensor:
        """F(z): uniform where z [.., 1] has this law."""
        return torch.from_numpy(np.interp(z.double().flatten().numpy(), self.x.numpy(), self.cdf.numpy()))

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and variance."""
        middle, mass = (self.x[1:] + self.x[:-1]) / 2.0, self.cdf.diff()
        mean = float((middle * mass).sum())
        return mean, float(((middle - mean) ** 2 * mass).sum())


def _fine(low: float = -SPAN, high: float = SPAN, nodes: int = 8001) -> Tensor:
    return torch.linspace(low, high, nodes, dtype=torch.float64)


def _masses(target: Target, t: float) -> tuple[Tensor, Tensor]:
    """Nodes within the clamp box, 0 one of them where there is none, and what exp(-U) has between them."""
    low, high = target.limits()
    x = _fine(max(low, -SPAN), min(high, SPAN))
    density = (-target.potential(x.unsqueeze(1), t)).detach().exp()
    return x, (density[1:] + density[:-1]) * x.diff() / 2.0


def partition(target: Target, t: float = 1.0) -> float:
    """The integral of exp(-U) over one dimension."""
    return float(_masses(target, t)[1].sum())


def target_law(target: Target, t: float = 1.0) -> Law:
    """Of exp(-U) in one dimension, within the clamp box, by the trapezoidal rule."""
    x, mass = _masses(target, t)
    cdf = torch.cat((mass.new_zeros(1), mass.cumsum(0)))
    return Law(x, cdf / cdf[-1])


def _gauss(panels: int, order: int = 8) -> tuple[Tensor, Tensor]:
    """Gauss and Legendre's nodes and weights in equal panels, 0 between two of them: a drift may jump there."""
    unit, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(order))
    edges = torch.linspace(-SPAN, SPAN, 2 * panels + 1, dtype=torch.float64)
    half = edges.diff().unsqueeze(1) / 2.0
    return (edges[:-1].unsqueeze(1) + half + half * unit).flatten(), (half * weight).flatten()


def invariant_law(target: Target, row: Tensor, panels: int = 20) -> Law:
    """Of unadjusted chains of one dimension that repeat the step (a, b, t) = row for ever: Nystrom's method."""
    a, b, t = row.double()
    x, weight = _gauss(panels)
    mean = x - a * target.drift(x.unsqueeze(1), t).squeeze(1)
    kernel = torch.exp(-0.5 * ((x.unsqueeze(1) - mean) / b) ** 2) / (b * math.sqrt(2.0 * math.pi))  # [to, from]
    mass = weight / weight.sum()
    for _ in range(10_000):
        after = weight * (kernel @ mass)
        after /= after.sum()
        change, mass = (after - mass).abs().sum(), after
        if change < 1e-13:
            break
    else:
        raise RuntimeError("the power iteration did not converge")
    fine = _fine()
    return Law(fine, torch.special.ndtr((fine.unsqueeze(1) - mean) / b) @ mass)


# two dimensions ------------------------------------------------------------------------------------------------------


def plane(step: float = 0.15, span: float = 7.5) -> tuple[Tensor, Tensor]:
    """A square grid [n^2, 2] and its axis [n]; the trapezoidal rule converges fast for what vanishes at its border."""
    axis = torch.arange(-span, span + step / 2.0, step, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), axis


def target_masses(target: Target) -> tuple[Tensor, Tensor]:
    """exp(-U) on a grid [N, 2] as probabilities [N]: expectations of smooth functions are sums."""
    grid, _ = plane()
    return grid, torch.softmax(-target.potential(grid).detach(), 0)


def cells_after(target: Target, start: Tensor, table: Tensor, edges: Tensor) -> Tensor:
    """Probabilities [m + 1, m + 1] of the cells between `edges` [m] after the steps of `table` from one point."""
    grid, axis = plane()
    points, mass = start.double().view(1, 2), torch.ones(1, dtype=torch.float64)
    for k, row in enumerate(table.double()):
        a, b, t = row
        mean = points - a * target.drift(points, t)  # [N, 2]
        if k == len(table) - 1:
            below = torch.special.ndtr((edges.double().view(-1, 1, 1) - mean) / b)  # [m, N, 2]
            cells = torch.cat((below[:1], below.diff(dim=0), 1.0 - below[-1:]))
            return (cells[..., 0] * mass) @ cells[..., 1].T
        density = torch.exp(-0.5 * ((axis.view(-1, 1, 1) - mean) / b) ** 2)  # [n, N, 2]
        points, mass = grid, ((density[..., 0] * mass) @ density[..., 1].T).flatten()
        mass = mass / mass.sum()
    raise ValueError("table: expected at least one step")
