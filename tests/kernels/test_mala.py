"""`mala` against an independent float64 loop, detailed balance and exact laws; what is rejected leaves no trace."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mmebm.kernels import dispatch, ops
from mmebm.kernels.reference import MalaChain, noise

CPU = torch.device("cpu")
BACKENDS = [b for b in dispatch.BACKENDS if dispatch.unsupported(b, "mala", CPU, torch.float32) is None]
ACCEPT = 2
FREE: dict[str, Any] = {"reference": "none", "bound": None, "grad_clip": None, "clamp": (None, None)}

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def network(dim: int, hidden: tuple[int, ...] = (24, 16), gain: float = 1.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in zip((dim, *hidden), hidden, strict=False):
        layers += [nn.Linear(width_in, width_out), nn.SiLU()]
    net = nn.Sequential(*layers, nn.Linear((dim, *hidden)[-1], 1))
    with torch.no_grad():
        net[-1].weight.mul_(gain)
    return net


def flat(dim: int) -> nn.Sequential:
    """E = 0."""
    net = network(dim, ())
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    return net


def parts(net: nn.Sequential, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    linears = [m for m in net if isinstance(m, nn.Linear)]
    return [m.weight.detach().to(dtype) for m in linears], [m.bias.detach().to(dtype) for m in linears]


def stream(seed: int = 7, offset: int = 3, first: int = 5) -> Tensor:
    return torch.tensor([seed, offset, first])


def constant(steps: int, s: float) -> Tensor:
    return torch.tensor([s * s / 2.0, s, 1.0]).repeat(steps, 1)


def schedule(steps: int) -> Tensor:
    """A different (a, b, t) in every step; a is not b^2 / 2, so that the densities must be of the proposal made."""
    k = torch.arange(steps, dtype=torch.float32)
    return torch.stack((0.02 + 0.03 * (k % 3), 0.25 + 0.05 * (k % 4), 1.5 - k / steps), dim=1)


def run(net: nn.Sequential, z: Tensor, table: Tensor, rng: Tensor, **options: Any) -> MalaChain:
    options = FREE | {"reference_scale": torch.ones(z.shape[1])} | options
    options["reference_scale"] = options["reference_scale"].to(z.dtype)
    return ops.mala(z, *parts(net, z.dtype), table, rng, **options)


class Target:
    """U_k, its two gradients and the proposal, by autograd in the dtype of what is given."""

    def __init__(self, net: nn.Sequential, hold: dict[str, Any]) -> None:
        self.net, self.hold = net, FREE | hold

    def energy(self, z: Tensor) -> Tensor:
        e = self.net(z).squeeze(1)
        bound = self.hold["bound"]
        return e if bound is None else bound * torch.tanh(e / bound)

    def gradient(self, z: Tensor) -> Tensor:
        leaf = z.detach().requires_grad_()
        return torch.autograd.grad(self.energy(leaf).sum(), leaf)[0]

    def minus_log_prior(self, z: Tensor) -> Tensor:
        u = z / self.hold.get("reference_scale", torch.ones(z.shape[1])).to(z.dtype)
        each = {"normal": 0.5 * u * u, "laplace": u.abs(), "none": 0.0 * u}[self.hold["reference"]]
        return each.sum(1)

    def potential(self, z: Tensor, t: Tensor) -> Tensor:
        return (t * self.energy(z) + self.minus_log_prior(z)).detach()

    def drift(self, z: Tensor, t: Tensor) -> Tensor:
        grad, clip = self.gradient(z), self.hold["grad_clip"]
        if clip is not None:
            norm = grad.norm(dim=1, keepdim=True)
            grad = torch.where(norm > clip, grad * clip / norm, grad)
        leaf = z.detach().requires_grad_()
        return t * grad + torch.autograd.grad(self.minus_log_prior(leaf).sum(), leaf)[0]

    def log_proposal(self, to: Tensor, z: Tensor, row: Tensor) -> Tensor:
        """log q(to | z), up to what does not depend on either."""
        a, b, t = row
        return -(to - z + a * self.drift(z, t)).square().sum(1) / (2.0 * b * b)

    def log_alpha(self, z: Tensor, to: Tensor, row: Tensor) -> Tensor:
        ratio = self.potential(z, row[2]) - self.potential(to, row[2])
        return ratio + self.log_proposal(z, to, row) - self.log_proposal(to, z, row)

    def inside(self, z: Tensor) -> Tensor:
        low, high = (default if x is None else x for x, default in zip(self.hold["clamp"], (-1e9, 1e9), strict=True))
        return ((low <= z) & (z <= high)).all(1)


class Path(NamedTuple):
    states: Tensor  # [K + 1, B, d]
    accepted: Tensor  # [K, B]
    margin: Tensor  # [B], the least |ln u - log alpha| of a chain


def log_u(rng: Tensor, steps: int, rows: int) -> Tensor:
    """ln u(x0), by the conventions: float64 [steps, rows]."""
    x0 = noise.words(rng, steps, rows, 1, ACCEPT)[:, :, 0, 0]
    return ((x0 >> 9).double() * 2.0**-23 + 2.0**-24).log()


def eps(rng: Tensor, steps: int, z: Tensor, backend: str = "reference") -> Tensor:
    return ops.draw(rng, steps, *z.shape, law="normal", purpose=0, backend=backend).to(z.dtype)


def transcription(target: Target, z: Tensor, table: Tensor, rng: Tensor) -> Path:
    states, accepted, margins = [z], [], []
    noises, threshold = eps(rng, len(table), z), log_u(rng, len(table), len(z))
    for k, row in enumerate(table.to(z.dtype)):
        a, b, t = row
        to = z - a * target.drift(z, t) + b * noises[k]
        log_alpha = target.log_alpha(z, to, row)
        accept = (threshold[k] < log_alpha) & target.inside(to)
        z = torch.where(accept.unsqueeze(1), to, z)
        states.append(z)
        accepted.append(accept)
        margins.append((threshold[k] - log_alpha).abs())
    return Path(torch.stack(states), torch.stack(accepted), torch.stack(margins).amin(0))


HOLDS = [
    {},
    {"reference": "normal"},
    {"reference": "laplace"},
    {"bound": 1.5},
    {"grad_clip": 0.5},
    {"reference": "normal", "clamp": (-2.5, 2.2)},
    {"clamp": (None, 2.0)},
    {"reference": "laplace", "bound": 3.0, "grad_clip": 0.25, "clamp": (-2.0, None)},
    {"reference": "normal", "bound": 2.0, "grad_clip": 0.6, "clamp": (-2.5, 2.5)},
]
each_hold = pytest.mark.parametrize("hold", HOLDS, ids=lambda h: "-".join(h) or "free")


def same_chain(hold: dict[str, Any], dtype: torch.dtype, backend: str) -> tuple[MalaChain, Path, Path]:
    """One call: the operator's, the transcription's in plain float32, and in float64; rows that no tie decides."""
    dim, rows, table, rng = 6, 96, schedule(12), stream()
    net = network(dim, gain=8.0)
    hold = hold | {"reference_scale": torch.rand(dim) + 0.8}
    z = torch.randn(rows, dim).clamp(-1.9, 1.9)
    got = run(net, z.to(dtype), table, rng, record_every=1, statistics=True, backend=backend, **hold)
    plain = transcription(Target(net, hold), z, table, rng)
    truth = transcription(Target(net.double(), hold), z.double(), table, rng)
    for name in hold.keys() & FREE.keys():
        without = transcription(Target(net, hold | {name: FREE[name]}), z.double(), table, rng)
        assert not torch.equal(truth.states, without.states), f"{name} must bite to be tested"
    clear = (truth.margin > 1e-3).nonzero().squeeze(1)
    assert len(clear) > 0.9 * rows
    assert 0.1 < truth.accepted.double().mean() < 0.98, "both answers must be seen"
    got = MalaChain(got.z[clear], got.states[:, clear], got.energies[:, clear], *(t[clear] for t in got[3:]))
    return got, *(Path(p.states[:, clear], p.accepted[:, clear], p.margin[clear]) for p in (plain, truth))


@each_backend
@each_hold
def test_float32_loses_no_more_than_pytorch_does(hold: dict[str, Any], backend: str) -> None:
    got, plain, truth = same_chain(hold, torch.float32, backend)
    assert got.z.dtype == torch.float32
    assert torch.equal(plain.accepted, truth.accepted)
    assert (got.states - truth.states[1:]).norm() <= 2.0 * (plain.states - truth.states).norm()
    torch.testing.assert_close(got.acceptance, truth.accepted.double().mean(0).float())


@each_hold
def test_float64_agrees_with_the_transcription(hold: dict[str, Any]) -> None:
    got, _, truth = same_chain(hold, torch.float64, "reference")
    torch.testing.assert_close(got.states, truth.states[1:])
    torch.testing.assert_close(got.z, truth.states[-1])


@each_backend
def test_statistics_are_means_over_the_visited_states(backend: str) -> None:
    net, table, z = network(6, gain=20.0), schedule(9), torch.randn(40, 6)
    hold = {"reference": "laplace", "bound": 2.0, "grad_clip": 0.3, "backend": backend}
    chain = run(net, z, table, stream(), record_every=1, statistics=True, **hold)
    path = torch.cat((z.unsqueeze(0), chain.states)).double()
    energy, grad = ops.energy_and_grad(path.flatten(0, 1), *parts(net, torch.float64), bound=2.0)
    energy, norms = energy.view(10, 40), grad.norm(dim=1).view(10, 40)
    assert (norms > 0.3).any(), "the clip must bite, so that the norm is seen to be taken before it"
    moves = path.diff(dim=0).norm(dim=2)
    assert (moves == 0).any(), "a rejected step has length 0"
    for got, each in (
        (chain.mean_energy, energy[:-1]),
        (chain.grad_norm, norms[:-1]),
        (chain.displacement, moves),
        (chain.acceptance, (moves > 0).double()),
    ):
        torch.testing.assert_close(got, each.mean(0).float())
    torch.testing.assert_close(chain.energies, energy[1:].float(), rtol=1e-4, atol=1e-5)
    increments = table[:, 2].double().diff().unsqueeze(1)  # at step k = 1.. the chain stands at path[k]
    torch.testing.assert_close(chain.work, (increments * energy[1:-1]).sum(0).float(), rtol=1e-4, atol=1e-5)


# one step ------------------------------------------------------------------------------------------------------------


@each_backend
@each_hold
def test_a_step_is_taken_where_log_alpha_says_so(hold: dict[str, Any], backend: str) -> None:
    """log alpha changes its sign, no more, when z and the proposal change places; the kernel decides by it."""
    dim, rows = 5, 512
    row = torch.tensor([0.2, 0.45, 0.8])
    hold = hold | {"reference_scale": torch.rand(dim) + 0.8}
    net = network(dim, gain=8.0)
    target = Target(net.double(), hold)
    z = torch.randn(rows, dim)
    to = z.double() - row[0] * target.drift(z.double(), row[2]) + row[1] * eps(stream(), 1, z)[0]
    log_alpha = target.log_alpha(z.double(), to, row.double())
    torch.testing.assert_close(target.log_alpha(to, z.double(), row.double()), -log_alpha)
    end = run(net.float(), z, row.unsqueeze(0), stream(), backend=backend, **hold).z
    taken = (end != z).any(1)
    threshold = log_u(stream(), 1, rows)[0]
    clear = (threshold - log_alpha).abs() > 1e-3
    inside = target.inside(to)
    assert torch.equal(taken[clear], ((threshold < log_alpha) & inside)[clear])
    torch.testing.assert_close(end[taken], to[taken].float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(end[~taken], z[~taken])
    assert 0.05 < taken.double().mean() < 0.98
    if hold.get("clamp", (None, None)) != (None, None):
        assert (~inside & (threshold < log_alpha)).any(), "the box must decide something"


@each_backend
def test_detailed_balance(backend: str) -> None:
    """Over a grid of five cells: as many of many draws go from one to another as come back."""
    rows, row = 400_000, torch.tensor([[0.4, 0.8, 1.0]])  # on a normal target, in one dimension
    z = ops.draw(stream(seed=2), 1, rows, 1, law="normal", purpose=1)[0]
    end = run(flat(1), z, row, stream(), reference="normal", backend=backend).z
    bins = torch.tensor([-1.5, -0.5, 0.5, 1.5])
    here, there = torch.bucketize(z, bins).squeeze(1), torch.bucketize(end, bins).squeeze(1)
    flow = torch.zeros(5, 5, dtype=torch.float64).index_put_((here, there), torch.ones(1).double(), accumulate=True)
    net = flow - flow.T
    assert (net.abs() <= 5.0 * (flow + flow.T).sqrt()).all()


@each_backend
@pytest.mark.parametrize("clamp", [(-0.5, 0.25), (None, 0.25), (-0.5, None)])
def test_a_proposal_outside_the_box_is_rejected(clamp: tuple[float | None, float | None], backend: str) -> None:
    net, z, table = network(3), torch.full((400, 3), 0.1), constant(1, 0.3)
    free = run(net, z, table, stream(), backend=backend).z
    held = run(net, z, table, stream(), clamp=clamp, backend=backend).z
    low, high = clamp
    outside = torch.zeros(400, dtype=torch.bool)
    outside |= torch.tensor(False) if low is None else (free < low).any(1)
    outside |= torch.tensor(False) if high is None else (free > high).any(1)
    assert 0 < outside.sum() < 400
    assert torch.equal(held, torch.where(outside.unsqueeze(1), z, free))


@each_backend
@pytest.mark.parametrize("reference", ["none", "normal", "laplace"])
@pytest.mark.parametrize("a", [0.0, 0.1])
def test_without_noise_nothing_is_accepted(a: float, reference: str, backend: str) -> None:
    """Forward and back are not both possible: the densities are no densities."""
    z = torch.randn(50, 4)
    table = torch.tensor([[a, 0.0, 1.0]]).repeat(3, 1)
    chain = run(network(4), z, table, stream(), reference=reference, statistics=True, backend=backend)
    assert torch.equal(chain.z, z) and not chain.acceptance.any() and not chain.displacement.any()


@each_backend
def test_without_noise_rounding_accepts_nothing(backend: str) -> None:
    """a = 2 scale^2 mirrors a normal's states: F and R of the densities are both 0, up to rounding of either sign."""
    z, scale = torch.randn(500, 2), torch.tensor([0.7, 0.7])
    table = torch.tensor([[2.0 * 0.7 * 0.7, 0.0, 1.0]])
    options = {"reference": "normal", "reference_scale": scale, "statistics": True, "backend": backend}
    assert not run(flat(2), z, table, stream(), **options).acceptance.any()


@each_backend
def test_nan_energies_reject(backend: str) -> None:
    """E is 0 up to z = 1 and NaN beyond it: the difference of two hidden units that overflow."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net[0].weight.fill_(1e30)
        net[0].bias.fill_(-1e30)
        net[2].weight.fill_(1e30)
        net[4].weight.copy_(torch.tensor([[1.0, -1.0]]))
    beyond = torch.linspace(1.01, 4.0, 600).unsqueeze(1)
    assert ops.energy(beyond, *parts(net), activation="relu", backend=backend).isnan().all()
    options = {"activation": "relu", "record_every": 1, "statistics": True, "backend": backend}
    chain = run(net, torch.zeros(600, 1), constant(4, 0.8), stream(), **options)
    assert (chain.states <= 1.0).all() and (chain.states > 0.9).any()
    assert (chain.acceptance < 1).any()
    assert all(torch.isfinite(t).all() for t in chain)


@each_backend
def test_a_chain_that_starts_at_a_nan_stays(backend: str) -> None:
    z = torch.zeros(4, 3)
    z[1, 2] = float("nan")
    chain = run(network(3), z, constant(3, 0.2), stream(), statistics=True, reference="normal", backend=backend)
    assert torch.equal(chain.z[1].isnan(), torch.tensor([False, False, True])) and chain.acceptance[1] == 0
    assert torch.isfinite(chain.z[[0, 2, 3]]).all() and (chain.acceptance[[0, 2, 3]] > 0).all()


@each_backend
def test_small_steps_are_accepted(backend: str) -> None:
    z = torch.randn(100, 8)
    chain = run(network(8), z, constant(10, 1e-3), stream(), reference="normal", statistics=True, backend=backend)
    assert (chain.acceptance == 1).all() and (chain.z != z).all()


@each_backend
def test_large_steps_are_rejected(backend: str) -> None:
    z = torch.randn(100, 8)
    chain = run(network(8), z, constant(10, 50.0), stream(), reference="normal", statistics=True, backend=backend)
    assert torch.equal(chain.z, z) and not chain.acceptance.any()


# exact laws ----------------------------------------------------------------------------------------------------------


def expect_second_moment(u: Tensor, moment: float, variance: float) -> None:
    """Independent values u: mean 0, mean of u^2 as given, at 5 standard errors; `variance` is that of u^2."""
    u = u.double().flatten()
    assert u.mean().abs() < 5.0 * math.sqrt(moment / len(u))
    assert (u.square().mean() - moment).abs() < 5.0 * math.sqrt(variance / len(u))


@each_backend
@pytest.mark.parametrize("s", [0.4, 1.0])
@pytest.mark.parametrize("reference", ["normal", "laplace"])
def test_the_target_stays_what_it_is(reference: str, s: float, backend: str) -> None:
    """From exact draws, 12 steps later: E z^2 = 1 (normal) or 2 (laplace); uncorrected, 1 / (1 - s^2 / 4) or so."""
    rows, dim, scale = 16384, 8, 1.3
    unit = ops.draw(stream(seed=2), 1, rows, dim, law=reference, purpose=1)[0]
    options: dict[str, Any] = {"reference": reference, "reference_scale": torch.full((dim,), scale)}
    chain = run(flat(dim), scale * unit, constant(12, s), stream(), statistics=True, backend=backend, **options)
    moment, variance = {"normal": (1.0, 2.0), "laplace": (2.0, 20.0)}[reference]
    expect_second_moment(chain.z / scale, moment, variance)
    assert 0.2 < chain.acceptance.mean() < 0.999


@each_backend
def test_it_forgets_where_it_started(backend: str) -> None:
    rows, dim = 8192, 4
    end = run(flat(dim), torch.full((rows, dim), 2.0), constant(60, 0.9), stream(), reference="normal", backend=backend)
    expect_second_moment(end.z, 1.0, 2.0)


@each_backend
def test_a_box_cuts_the_target_off(backend: str) -> None:
    """A flat target on [-1, 1]^2 from exact draws, steps as large as the box."""
    z = 2.0 * torch.rand(32768, 2) - 1.0
    end = run(flat(2), z, constant(8, 0.5), stream(), clamp=(-1.0, 1.0), backend=backend).z
    assert (end.abs() <= 1.0).all()
    expect_second_moment(end, 1.0 / 3.0, 1.0 / 5.0 - 1.0 / 9.0)


# the chain against itself --------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (7, 3), (33, 20)])
def test_fifty_steps_are_five_times_ten(rows: int, dim: int, backend: str) -> None:
    net, table, z = network(dim), schedule(50), torch.randn(rows, dim)
    hold = {"reference": "laplace", "grad_clip": 1.0, "backend": backend}
    whole = run(net, z, table, stream(), **hold).z
    for k in range(0, 50, 10):
        z = run(net, z, table[k : k + 10], stream(offset=3 + k), **hold).z
    assert torch.equal(z, whole)


@each_backend
@pytest.mark.parametrize("every", [1, 3, 12])
def test_recorded_states_are_those_of_shorter_runs(every: int, backend: str) -> None:
    net, table, z = network(6, gain=10.0), schedule(13), torch.randn(10, 6)
    hold = {"reference": "normal", "bound": 0.9, "backend": backend}
    chain = run(net, z, table, stream(), record_every=every, **hold)
    assert chain.states.shape == (13 // every, 10, 6) and chain.energies.shape == (13 // every, 10)
    assert torch.equal(chain.z, run(net, z, table, stream(), **hold).z)
    for n, (state, energies) in enumerate(zip(chain.states, chain.energies, strict=True), 1):
        assert torch.equal(state, run(net, z, table[: n * every], stream(), **hold).z)
        torch.testing.assert_close(energies, ops.energy(state, *parts(net), bound=0.9))


@each_backend
def test_it_proposes_what_langevin_does(backend: str) -> None:
    """Same noise, same step: where the first proposal is accepted, it is langevin's next state."""
    net, z, table = network(6), torch.randn(40, 6), constant(1, 0.4)
    options = {"reference": "laplace", "reference_scale": torch.rand(6) + 0.5, "bound": 2.0, "grad_clip": 0.3}
    end = run(net, z, table, stream(), backend=backend, **options).z
    free = ops.langevin(z, *parts(net), table, stream(), backend=backend, **options).z
    taken = (end != z).any(1)
    assert 0.5 < taken.double().mean() <= 1.0
    torch.testing.assert_close(end[taken], free[taken])


@each_backend
def test_nothing_is_recorded_unasked(backend: str) -> None:
    chain = run(network(6), torch.randn(10, 6), schedule(4), stream(), backend=backend)
    assert chain.states.shape == (0, 10, 6) and chain.energies.shape == (0, 10)
    assert [t.numel() for t in chain[3:]] == [0, 0, 0, 0, 0]


@each_backend
def test_no_steps_return_a_copy(backend: str) -> None:
    z = torch.randn(4, 3)
    chain = run(network(3), z, torch.zeros(0, 3), stream(), record_every=1, statistics=True, backend=backend)
    assert torch.equal(chain.z, z) and chain.z.data_ptr() != z.data_ptr()
    assert chain.states.shape == (0, 4, 3)
    assert all(torch.equal(t, torch.zeros(4)) for t in chain[3:])


@each_backend
def test_no_chains(backend: str) -> None:
    chain = run(network(3), torch.zeros(0, 3), schedule(4), stream(), record_every=2, statistics=True, backend=backend)
    assert chain.z.shape == (0, 3) and chain.states.shape == (2, 0, 3) and chain.acceptance.shape == (0,)


@each_backend
def test_arguments_are_left_alone(backend: str) -> None:
    net, table, z, rng = network(3), schedule(4), torch.randn(3, 4).T, stream()
    before = [t.clone() for t in (z, table, rng)]
    strided = run(net, z, table, rng, statistics=True, backend=backend).z
    assert all(torch.equal(a, b) for a, b in zip((z, table, rng), before, strict=True))
    assert torch.equal(strided, run(net, z.contiguous(), table, rng, backend=backend).z)
