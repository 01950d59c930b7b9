"""Tier 2: one unadjusted step after another against a float64 transcription of the conventions, on the same noise.

Every step starts from the float64 path, rounded, so that nothing adds up. A backend may lose at most twice what the
transcription loses in float32 PyTorch.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from .laws import stream
from .targets import ACTIVATIONS, KINKED, Backend, Net, Target, flat, linear, random_net

OPERATOR = "langevin"
DIMS = (1, 2, 16, 17, 33)
HIDDEN: tuple[tuple[int, ...], ...] = ((), (1,), (16, 16), (37, 21), (64, 64), (128,))
ROWS = 67
# a is not b^2 / 2, t is neither 1 nor constant.
TABLE = torch.tensor([[0.07, 0.3, 1.5], [0.02, 0.25, 0.4], [0.05, 0.45, 1.0]])

# What holds the chain, "some" standing for a value chosen for each net.
HOLDS: list[dict[str, Any]] = [
    {},
    {"reference": "normal"},
    {"reference": "laplace"},
    {"bound": "some"},
    {"grad_clip": "some"},
    {"clamp": (-0.875, 1.125)},
    {"reference": "normal", "clamp": (None, 0.75)},
    {"reference": "normal", "grad_clip": "some"},
    {"reference": "laplace", "bound": "some"},
    {"reference": "normal", "bound": "some", "grad_clip": "some", "clamp": (-1.5, 1.5)},
    {"reference": "laplace", "bound": "some", "grad_clip": "some", "clamp": (-1.25, None)},
]


def held(net: Net, z: Tensor, hold: dict[str, Any]) -> Target:
    """Bound and clip in the middle of what they cap on the rows of z; 1 where all of that is 0."""
    scale = torch.rand(z.shape[1]) + 0.5
    target = Target(net, hold.get("reference", "none"), scale, clamp=hold.get("clamp", (None, None)))
    if "bound" in hold:
        target = target._replace(bound=float(net.energy(z).abs().mean()) or 1.0)
    if "grad_clip" in hold:
        target = target._replace(grad_clip=0.75 * float(target.gradient(z).norm(dim=1).mean()) or 1.0)
    return target


def clear(target: Target, z: Tensor) -> Tensor:
    """Rows [B] whose gradient no rounding makes jump: no pre-activation near a kink."""
    if target.net.activation not in KINKED:
        return torch.ones(len(z), dtype=torch.bool)
    margins = [pre.abs().amin(1) for pre in target.net.pre_activations(z)[:-1]]
    return torch.stack([torch.full((len(z),), 1.0, dtype=z.dtype), *margins]).amin(0) > 1e-5


def bites(name: str, target: Target, z: Tensor, eps: Tensor) -> bool:
    """Whether the step would differ without what `name` stands for."""
    free = target._replace(**{name: Target._field_defaults[name]})
    return not torch.equal(free.step(z, TABLE[0], eps), target.step(z, TABLE[0], eps))


@pytest.mark.parametrize("hold", HOLDS, ids=lambda h: "-".join(map(str, (*h, h.get("reference", "")))) or "free")
def test_a_step(hold: dict[str, Any], backend: Backend) -> None:
    biting, dropped, rows = dict.fromkeys(hold, 0), 0, 0
    for n, (hidden, activation) in enumerate(product(HIDDEN, ACTIVATIONS)):
        dim = DIMS[n % len(DIMS)]
        net, z = random_net(dim, hidden, activation), 1.5 * torch.randn(ROWS, dim)
        z[torch.rand(ROWS, dim) < 0.1] = 0.0  # where the Laplace law pulls nowhere
        target, lost, least = held(net, z, hold), torch.zeros(0), torch.zeros(0)
        noise = backend.draw(stream(20, offset=n, first=n), len(TABLE), ROWS, dim)
        for name in hold:
            biting[name] += bites(name, target, z.double(), noise[0])
        for k, row in enumerate(TABLE):
            start = z.float()
            keep = clear(target, start.double())
            exact, plain = target.step(start.double(), row, noise[k]), target.step(start, row, noise[k])
            rng = stream(20, offset=n + k, first=n)
            got = backend.langevin(target, start, row.view(1, 3), rng).z
            lost = torch.cat((lost, (got - exact)[keep].flatten()))
            least = torch.cat((least, (plain - exact)[keep].flatten()))
            dropped, rows, z = dropped + int((~keep).sum()), rows + ROWS, exact
        assert lost.norm() <= 2.0 * least.norm(), (dim, hidden, activation)
    assert all(count > len(HIDDEN) * len(ACTIVATIONS) / 2 for count in biting.values()), "must bite to be tested"
    assert dropped <= 0.01 * rows


# by hand -------------------------------------------------------------------------------------------------------------


def step(backend: Backend, target: Target, z: list[float], row: tuple[float, float, float]) -> list[float]:
    return backend.langevin(target, torch.tensor([z]), torch.tensor([row]), stream(21)).z[0].tolist()


def test_the_laplace_pull_is_a_sign_and_nothing_at_zero(backend: Backend) -> None:
    target = Target(flat(6), "laplace", torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 2.0]))
    end = step(backend, target, [0.0, -0.0, 1e-30, -1e-30, 0.5, -0.5], (0.25, 0.0, 1.0))
    assert end == [0.0, 0.0, -0.25, 0.25, 0.0, -0.375]


def test_clip_then_t_then_reference(backend: Backend) -> None:
    """A slope of norm 50 clipped to 1, times 3, and the reference's pull beside it: exact in float32."""
    target = Target(linear(torch.tensor([0.0, -64.0])), "normal", grad_clip=1.0)
    assert step(backend, target, [4.0, 8.0], (0.5, 0.0, 3.0)) == [2.0, 5.5]


def test_bound_then_clip(backend: Backend) -> None:
    """At e = 0 the bound's derivative is 1; far from it there is no gradient to clip."""
    target = Target(linear(torch.tensor([8.0])), bound=2.0, grad_clip=1.0)
    assert step(backend, target, [0.0], (0.5, 0.0, 1.0)) == [-0.5]
    assert step(backend, target, [16.0], (0.5, 0.0, 1.0)) == [16.0]


def test_the_clamp_comes_after_the_noise(backend: Backend) -> None:
    target = Target(flat(3), clamp=(-0.5, 0.25))
    start, table = torch.zeros(50, 3), torch.tensor([[0.0, 3.0, 1.0]])
    free = backend.langevin(target._replace(clamp=(None, None)), start, table, stream(22)).z
    held = backend.langevin(target, start, table, stream(22)).z
    assert (free < -0.5).any() and (free > 0.25).any()
    assert torch.equal(held, free.clamp(-0.5, 0.25))
