"""Tier 6: accept/reject. Each decision from the state before it alone, then the law that all of them leave as it is."""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, Normal

from mmebm.kernels.reference import MLP, Constraints, energy_and_grad, noise

from .laws import judge, mean, normal, rejects, stream, uniform
from .quadrature import partition, target_law
from .targets import ACCEPT, SLOPE, Backend, Net, Target, flat, linear, random_net

OPERATOR = "mala"
ROWS = 96
MARGIN = 1e-3  # float32 moves no log alpha, and no energy, as far as this; a state mistaken for another moves most

# What holds the chain; a bound, clip or box that bites on most of the nets below.
HOLDS: list[dict[str, Any]] = [
    {},
    {"reference": "normal"},
    {"reference": "laplace"},
    {"bound": 2.0},
    {"grad_clip": 1.0},
    {"reference": "normal", "clamp": (-2.5, 2.25)},
    {"clamp": (None, 2.0)},
    {"reference": "laplace", "bound": 3.0, "grad_clip": 0.5, "clamp": (-2.5, None)},
    {"reference": "normal", "bound": 2.0, "grad_clip": 1.0, "clamp": (-2.5, 2.5)},
]
NETS: list[tuple[int, tuple[int, ...], str]] = [
    (1, (16,), "softplus"),
    (3, (), "silu"),
    (5, (37, 21), "silu"),
    (17, (16, 16), "tanh"),
    (33, (64, 64), "gelu"),
]
each_hold = pytest.mark.parametrize(
    "hold", HOLDS, ids=lambda h: "-".join(map(str, (*h, h.get("reference", "")))) or "free"
)


def schedule(steps: int, dim: int) -> Tensor:
    """A different (a, b, t) in every step; a is not b^2 / 2, so that the densities must be of the proposal made."""
    k, b = torch.arange(steps, dtype=torch.float32), dim ** (-1.0 / 6.0)
    return torch.stack((b * b * (0.1 + 0.1 * (k % 3)), b * (0.5 + 0.15 * (k % 4)), 1.5 - k / steps), dim=1)


def log_u(rng: Tensor, steps: int, rows: int) -> Tensor:
    """ln u(x0) [steps, rows]."""
    x0 = noise.words(rng, steps, rows, 1, ACCEPT)[:, :, 0, 0]
    return ((x0 >> 9).double() * 2.0**-23 + 2.0**-24).log()


# log alpha of the reference ------------------------------------------------------------------------------------------


@each_hold
def test_detailed_balance_of_the_reference(hold: dict[str, Any]) -> None:
    """pi(x) q(y | x) alpha(x, y) = pi(y) q(x | y) alpha(y, x), the densities being torch's, in float64."""
    module, dim, row = importlib.import_module("mmebm.kernels.reference.mala"), 5, (0.2, 0.5, 0.8)
    a, b, t = (torch.tensor(v, dtype=torch.float64) for v in row)
    target = Target(random_net(dim, (16, 16), gain=8.0), scale=torch.rand(dim) + 0.75, **hold)
    scale = target.scales().double()
    net = MLP(
        [w.double() for w in target.net.weights], [v.double() for v in target.net.biases], "silu", SLOPE, target.bound
    )
    held = Constraints(target.reference, scale, target.grad_clip, *target.clamp)

    def log_alpha(x: Tensor, y: Tensor) -> Tensor:
        (e_x, grad_x), (e_y, grad_y) = energy_and_grad(x, net), energy_and_grad(y, net)
        here, there = module.drift(x, grad_x, t, held), module.drift(y, grad_y, t, held)
        prior = module._log_prior_ratio(x, y, held)
        return t * (e_x - e_y) + prior + module._log_density_ratio(x, y, here, there, a, b)

    def log_flow(x: Tensor, y: Tensor) -> Tensor:
        """But for min(1, alpha)."""
        prior = {"none": None, "normal": Normal(0.0, scale), "laplace": Laplace(0.0, scale)}[target.reference]
        log_pi = -t * target.energy(x) + (0.0 if prior is None else prior.log_prob(x).sum(1))
        return log_pi + Normal(x - a * target.drift(x, t), b).log_prob(y).sum(1)

    x = torch.randn(200, dim, dtype=torch.float64)
    y = x + 0.5 * torch.randn_like(x)
    torch.testing.assert_close(log_alpha(x, y), -log_alpha(y, x))
    torch.testing.assert_close(log_alpha(x, y), log_flow(y, x) - log_flow(x, y))
    torch.testing.assert_close(
        log_flow(x, y) + log_alpha(x, y).clamp_max(0.0), log_flow(y, x) + log_alpha(y, x).clamp_max(0.0)
    )


# decisions -----------------------------------------------------------------------------------------------------------


class Decisions(NamedTuple):
    """Of all steps [n] of a chain, each from the state before it, in float64; and what the backend did."""

    log_u: Tensor
    log_alpha: Tensor
    inside: Tensor
    taken: Tensor
    clear: Tensor  # log u is MARGIN from log alpha, and rounding makes nothing jump
    error: Tensor  # [n, d] of the state where it was taken
    plain_error: Tensor  # float32 PyTorch's
    energy_error: Tensor


def decisions(backend: Backend, target: Target, z: Tensor, table: Tensor, rng: Tensor) -> Decisions:
    chain = backend.mala(target, z, table, rng, record_every=1, statistics=True)
    before = torch.cat((z.unsqueeze(0), chain.states[:-1])).flatten(0, 1)
    after, rows = chain.states.flatten(0, 1), table.repeat_interleave(len(z), 0)
    eps = backend.draw(rng, len(table), *z.shape).flatten(0, 1)
    to, plain = target.proposal(before.double(), rows, eps), target.proposal(before, rows, eps)
    log_alpha, threshold = target.log_alpha(before.double(), to, rows), log_u(rng, len(table), len(z)).flatten()
    taken = (after != before).any(1)
    torch.testing.assert_close(chain.acceptance, taken.view(len(table), -1).float().mean(0))
    edges = [to - edge for edge in (*target.limits(), 0.0)]
    clear = ((threshold - log_alpha).abs() > MARGIN) & (torch.stack(edges).abs().amin((0, 2)) > 1e-5)
    return Decisions(
        threshold,
        log_alpha,
        target.inside(to),
        taken,
        clear,
        (after - to)[taken],
        (plain - to)[taken],
        chain.energies.flatten() - target.energy(after.double()),
    )


@each_hold
def test_each_decision_from_the_state_before_it(hold: dict[str, Any], backend: Backend) -> None:
    """After a rejection as well: nothing of a proposal is left. Energies are those of the states they come with."""
    seen = []
    for n, (dim, hidden, activation) in enumerate(NETS):
        gain = 3.0 * dim**0.5 if not hidden else 8.0
        target = Target(random_net(dim, hidden, activation, gain), scale=torch.rand(dim) + 0.75, **hold)
        z = torch.randn(ROWS, dim).clamp(-1.75, 1.75)
        d = decisions(backend, target, z, schedule(10, dim), stream(70, offset=10 * n, first=3))
        allowed = (d.log_u < d.log_alpha) & d.inside
        assert torch.equal(d.taken[d.clear], allowed[d.clear]), (dim, hidden, activation)
        assert d.error.norm() <= 2.0 * d.plain_error.norm(), (dim, hidden, activation)
        assert d.energy_error.abs().max() < MARGIN, (dim, hidden, activation)
        seen.append(d)
    taken, clear, log_alpha, inside = (
        torch.cat([getattr(d, name) for d in seen]) for name in ("taken", "clear", "log_alpha", "inside")
    )
    assert (~clear).double().mean() < 0.01, "P(|ln u - log alpha| < MARGIN) is at most 2 MARGIN"
    assert 100 < taken.sum() < len(taken) - 100, "both answers must be seen"
    p = log_alpha.clamp_max(0.0).exp() * inside
    judge(normal((taken.double() - p).sum() / (p * (1.0 - p)).sum().sqrt()), "acceptance")


@pytest.mark.parametrize(("chain", "magnitude"), [(1576295, 0), (58827, 2**23 - 1)])
def test_the_least_and_the_largest_uniform(chain: int, magnitude: int, backend: Backend) -> None:
    """Found by search: seed 0, step 0. On a slope without drift, log alpha is what the proposal climbs."""
    rng, threshold = torch.tensor([0, 0, chain]), math.log(magnitude * 2.0**-23 + 2.0**-24)
    assert math.isclose(float(log_u(rng, 1, 1)), threshold, rel_tol=1e-9)
    eps, row = backend.draw(rng, 1, 1, 1)[0], torch.tensor([[0.0, 1.0, 1.0]])
    for factor in (0.99, 1.01):
        target = Target(linear(-factor * threshold / eps[0]))
        end = backend.mala(target, torch.zeros(1, 1), row, rng).z
        assert torch.equal(end, eps if factor < 1 else torch.zeros(1, 1))


@pytest.mark.parametrize("dim", [1, 9, 33])
def test_proposals_use_the_noise_of_their_step_and_chain(dim: int, backend: Backend) -> None:
    """From 0 with E = 0, a = 0, b = 1 every proposal is accepted: it is the draw of purpose 0, to the bit."""
    rng, rows, row = stream(71, offset=2**32 - 2, first=2**32 - 20), 45, torch.tensor([[0.0, 1.0, 1.0]])
    for k, eps in enumerate(backend.draw(rng, 4, rows, dim)):
        at = rng + torch.tensor([0, k, 0])
        assert torch.equal(backend.mala(Target(flat(dim)), torch.zeros(rows, dim), row, at).z, eps)


def test_a_nan_rejects(backend: Backend) -> None:
    """E is 0 up to z = 1 and NaN beyond it, the difference of two hidden units that overflow."""
    weights = [torch.tensor([[1e30]]), torch.full((2, 1), 1e30), torch.tensor([[1.0, -1.0]])]
    target = Target(Net(weights, [torch.tensor([-1e30]), torch.zeros(2), torch.zeros(1)], "relu"))
    assert target.energy(torch.linspace(1.01, 4.0, 50).unsqueeze(1)).isnan().all()
    table = torch.tensor([[0.32, 0.8, 1.0]]).repeat(4, 1)
    chain = backend.mala(target, torch.zeros(600, 1), table, stream(72), 1, True)
    assert (chain.states <= 1.0).all() and (chain.states > 0.9).any() and (chain.acceptance < 1).any()
    assert all(torch.isfinite(t).all() for t in chain)
    start = torch.tensor([[0.5], [float("nan")]])
    end = backend.mala(Target(flat(1), "normal"), start, table, stream(72), 0, True)
    assert end.z[1].isnan() and end.acceptance[1] == 0 and torch.isfinite(end.z[0])


# the law -------------------------------------------------------------------------------------------------------------

LAWS = {
    "normal": Target(random_net(1, (16, 16), "silu", gain=8.0, seed=29), "normal", torch.tensor([1.25]), bound=6.0),
    "laplace": Target(random_net(1, (16, 16), "silu", gain=8.0, seed=29), "laplace", torch.tensor([0.75]), bound=6.0),
    "box": Target(random_net(1, (24,), "tanh", gain=8.0, seed=2), grad_clip=1.0, clamp=(-1.5, 2.0)),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_target_stays(name: str, backend: Backend) -> None:
    """Three steps from exact draws, of which about half are accepted; a is not b^2 / 2. Uncorrected chains leave it."""
    target, table = LAWS[name], torch.tensor([[0.6, 1.4, 0.8]]).repeat(3, 1)
    law = target_law(target, 0.8)
    z = law.sample(1 << 17)
    chain = backend.mala(target, z, table, stream(73), 0, True)
    center, variance = law.moments
    judge(uniform(law.uniforms(chain.z)), f"{name}: distribution function")
    judge(mean(chain.z[:, 0], center), f"{name}: mean")
    judge(mean((chain.z[:, 0].double() - center) ** 2, variance), f"{name}: variance")
    assert 0.2 < chain.acceptance.mean() < 0.8
    free = backend.langevin(target, z[: 1 << 15], table, stream(73)).z
    assert rejects(uniform(law.uniforms(free))), "uncorrected chains must be told apart"


def test_the_work_of_annealing(backend: Backend) -> None:
    """E exp(-work) = Z(t_K-1) / Z(t_0), however few the steps (Jarzynski 1997): states and energies go together."""
    target, steps = LAWS["normal"], 6
    table = torch.tensor([0.4, 1.0, 0.0]).repeat(steps, 1)
    table[:, 2] = torch.linspace(0.25, 1.0, steps)
    z = target_law(target, 0.25).sample(1 << 16)
    work = backend.mala(target, z, table, stream(74), 0, True).work.double()
    judge(mean(torch.exp(-work), partition(target, 1.0) / partition(target, 0.25)), "work")
