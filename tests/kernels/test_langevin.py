"""`langevin` and `langevin_update` against an independent float64 loop, against themselves, and against exact laws."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmebm.kernels import dispatch, ops
from mmebm.kernels.reference import Chain

CPU = torch.device("cpu")
BACKENDS = [b for b in dispatch.BACKENDS if dispatch.unsupported(b, "langevin", CPU, torch.float32) is None]
CHAIN_NOISE, REFERENCE_DRAW = 0, 1
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
    net = network(dim, (4,))
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    return net


def linear(direction: Tensor) -> nn.Sequential:
    """E = w . z."""
    net = network(len(direction), ())
    with torch.no_grad():
        net[0].weight.copy_(direction)
    return net


def parts(net: nn.Sequential, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    linears = [m for m in net if isinstance(m, nn.Linear)]
    return [m.weight.detach().to(dtype) for m in linears], [m.bias.detach().to(dtype) for m in linears]


def stream(seed: int = 7, offset: int = 3, first: int = 5) -> Tensor:
    return torch.tensor([seed, offset, first])


def schedule(steps: int) -> Tensor:
    """A different (a, b, t) in every step."""
    k = torch.arange(steps, dtype=torch.float32)
    return torch.stack((0.02 + 0.01 * (k % 3), 0.2 + 0.05 * (k % 4), 1.5 - k / steps), dim=1)


def run(net: nn.Sequential, z: Tensor, table: Tensor, rng: Tensor, **options: Any) -> Chain:
    options = FREE | {"reference_scale": torch.ones(z.shape[1])} | options
    options["reference_scale"] = options["reference_scale"].to(z.dtype)
    return ops.langevin(z, *parts(net, z.dtype), table, rng, **options)


def transcription(
    net: nn.Sequential,
    z: Tensor,
    table: Tensor,
    noise: Tensor,
    *,
    reference: str,
    reference_scale: Tensor,
    bound: float | None,
    grad_clip: float | None,
    clamp: tuple[float | None, float | None],
) -> Tensor:
    """The chain in the order of the conventions (bound, clip, t, reference, noise, clamp), in z's dtype."""
    low, high = clamp
    scale = reference_scale.to(z.dtype)
    for (a, b, t), eps in zip(table.to(z.dtype), noise.to(z.dtype), strict=True):
        leaf = z.detach().requires_grad_()
        e = net(leaf).squeeze(1)
        if bound is not None:
            e = bound * torch.tanh(e / bound)
        (grad,) = torch.autograd.grad(e.sum(), leaf)
        if grad_clip is not None:
            norm = grad.square().sum(1, keepdim=True).sqrt()
            grad = torch.where(norm > grad_clip, grad * grad_clip / norm, grad)
        grad = t * grad
        if reference != "none":
            u = leaf / scale
            minus_log_p0 = (0.5 * u * u if reference == "normal" else u.abs()).sum()
            grad = grad + torch.autograd.grad(minus_log_p0, leaf)[0]
        z = leaf.detach() - a * grad + b * eps
        if low is not None:
            z = torch.maximum(z, torch.tensor(low, dtype=z.dtype))
        if high is not None:
            z = torch.minimum(z, torch.tensor(high, dtype=z.dtype))
    return z


HOLDS = [
    {},
    {"reference": "normal"},
    {"reference": "laplace"},
    {"bound": 0.8},
    {"grad_clip": 0.5},
    {"clamp": (-0.9, 1.1)},
    {"clamp": (None, 0.7)},
    {"reference": "laplace", "bound": 1.5, "grad_clip": 0.4, "clamp": (-1.2, None)},
    {"reference": "normal", "bound": 0.6, "grad_clip": 0.2, "clamp": (-1.5, 1.5)},
]


def same_chain(hold: dict[str, Any], dtype: torch.dtype, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """One call: the operator's end, the transcription's in plain float32, and in float64."""
    dim, rows, table, rng = 11, 64, schedule(10), stream()
    net = network(dim, gain=20.0)
    z = 1.5 * torch.randn(rows, dim)
    options = FREE | {"reference_scale": torch.rand(dim) + 0.5} | hold
    noise = ops.draw(rng, len(table), rows, dim, law="normal", purpose=CHAIN_NOISE, backend=backend)
    got = run(net, z.to(dtype), table, rng, backend=backend, **options).z
    plain = transcription(net, z, table, noise, **options)
    truth = transcription(net.double(), z.double(), table, noise, **options)
    for name in hold:
        without = transcription(net, z.double(), table, noise, **options | {name: FREE[name]})
        assert not torch.equal(truth, without), f"{name} must bite to be tested"
    return got, plain, truth


@each_backend
@pytest.mark.parametrize("hold", HOLDS, ids=lambda h: "-".join(h) or "free")
def test_float32_loses_no_more_than_pytorch_does(hold: dict[str, Any], backend: str) -> None:
    got, plain, truth = same_chain(hold, torch.float32, backend)
    assert got.dtype == torch.float32
    assert (got - truth).norm() <= 2.0 * (plain - truth).norm()


@pytest.mark.parametrize("hold", HOLDS, ids=lambda h: "-".join(h) or "free")
def test_float64_agrees_with_the_transcription(hold: dict[str, Any]) -> None:
    got, _, truth = same_chain(hold, torch.float64, "reference")
    torch.testing.assert_close(got, truth)


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
def test_a_batch_can_be_split_anywhere(backend: str) -> None:
    rows, dim, table = 37, 20, schedule(10)
    net, z = network(dim), torch.randn(rows, dim)
    whole = run(net, z, table, stream(), backend=backend).z
    noise = ops.draw(stream(), 10, rows, dim, law="normal", purpose=CHAIN_NOISE, backend=backend)
    exact = transcription(net.double(), z.double(), table, noise, **FREE, reference_scale=torch.ones(dim))
    for start, stop in ((0, 1), (1, 20), (20, 37)):
        rng = stream(first=5 + start)
        part = ops.draw(rng, 10, stop - start, dim, law="normal", purpose=CHAIN_NOISE, backend=backend)
        assert torch.equal(part, noise[:, start:stop])
        # The noise is the same to the bit. States need not be: BLAS picks its kernel, and so its order of summation,
        # by the number of rows. They lie as far from the exact chain as those of the whole batch, or less than twice.
        split = run(net, z[start:stop], table, rng, backend=backend).z
        rounding = (whole - exact).norm(dim=1).max()
        assert (split - exact[start:stop]).norm(dim=1).max() <= 2.0 * rounding


def test_how_much_noise_is_drawn_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, z, table = network(5), torch.randn(6, 5), schedule(7)
    whole = run(net, z, table, stream(), backend="reference").z
    module = importlib.import_module("mmebm.kernels.reference.langevin")
    for values in (1, 2 * z.numel()):
        monkeypatch.setattr(module, "_NOISE_VALUES", values)
        assert torch.equal(run(net, z, table, stream(), backend="reference").z, whole)


@pytest.mark.parametrize("hold", HOLDS, ids=lambda h: "-".join(h) or "free")
def test_a_chain_is_a_loop_of_updates(hold: dict[str, Any]) -> None:
    dim, table, rng = 9, schedule(8), stream()
    net, z = network(dim), torch.randn(13, dim)
    scale = torch.rand(dim) + 0.5
    options = FREE | hold
    bound = options.pop("bound")
    whole = run(net, z, table, rng, bound=bound, reference_scale=scale, backend="reference", **options).z
    for k in range(len(table)):
        _, grad = ops.energy_and_grad(z, *parts(net), bound=bound, backend="reference")
        z = ops.langevin_update(z, grad, table, rng, k, reference_scale=scale, backend="reference", **options)
    assert torch.equal(z, whole)


@each_backend
@pytest.mark.parametrize("every", [1, 3, 12])
def test_recorded_states_are_those_of_shorter_runs(every: int, backend: str) -> None:
    net, table, z = network(6), schedule(13), torch.randn(10, 6)
    hold = {"reference": "normal", "bound": 0.3, "backend": backend}
    chain = run(net, z, table, stream(), record_every=every, **hold)
    assert chain.states.shape == (13 // every, 10, 6) and chain.energies.shape == (13 // every, 10)
    assert torch.equal(chain.z, run(net, z, table, stream(), **hold).z)
    for n, (state, energies) in enumerate(zip(chain.states, chain.energies, strict=True), 1):
        assert torch.equal(state, run(net, z, table[: n * every], stream(), **hold).z)
        torch.testing.assert_close(energies, ops.energy(state, *parts(net), bound=0.3))


@each_backend
def test_nothing_is_recorded_unasked(backend: str) -> None:
    chain = run(network(6), torch.randn(10, 6), schedule(4), stream(), backend=backend)
    assert chain.states.shape == (0, 10, 6) and chain.energies.shape == (0, 10)
    assert [t.numel() for t in chain[3:]] == [0, 0, 0]


@each_backend
def test_statistics_are_means_over_the_visited_states(backend: str) -> None:
    net, table, z = network(6, gain=20.0), schedule(9), torch.randn(10, 6)
    hold = {"reference": "laplace", "bound": 2.0, "grad_clip": 0.3, "clamp": (-1.0, 1.0), "backend": backend}
    chain = run(net, z, table, stream(), record_every=1, statistics=True, **hold)
    path = torch.cat((z.unsqueeze(0), chain.states)).double()
    left = path[:-1].flatten(0, 1)
    energy, grad = ops.energy_and_grad(left, *parts(net, torch.float64), bound=2.0)
    norms = grad.norm(dim=1)
    assert (norms > 0.3).any(), "the clip must bite, so that the norm is seen to be taken before it"
    for got, each in (
        (chain.mean_energy, energy.view(9, 10)),
        (chain.grad_norm, norms.view(9, 10)),
        (chain.displacement, path.diff(dim=0).norm(dim=2)),
    ):
        torch.testing.assert_close(got, each.mean(0).float())


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
    assert chain.z.shape == (0, 3) and chain.states.shape == (2, 0, 3) and chain.grad_norm.shape == (0,)


@each_backend
def test_arguments_are_left_alone(backend: str) -> None:
    net, table, z, rng = network(3), schedule(4), torch.randn(4, 3), stream()
    before = [t.clone() for t in (z, table, rng)]
    run(net, z, table, rng, clamp=(-0.1, 0.1), statistics=True, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip((z, table, rng), before, strict=True))


# exact laws ----------------------------------------------------------------------------------------------------------


def expect_normal(z: Tensor, mean: Tensor | float, variance: Tensor | float) -> None:
    """Rows of z [n, d] have this mean and variance, in each dimension and together, at 5 standard errors."""
    n = z.numel()
    mean = torch.as_tensor(mean, dtype=torch.float64).expand(z.shape[1])
    variance = torch.as_tensor(variance, dtype=torch.float64).expand(z.shape[1])
    u = (z.double() - mean) / variance.sqrt()
    for values, count in ((u, len(z)), (u.reshape(-1, 1), n)):
        assert (values.mean(0).abs() < 5.0 / math.sqrt(count)).all()
        assert ((values.square().mean(0) - 1.0).abs() < 5.0 * math.sqrt(2.0 / count)).all()


def normals(rows: int, dim: int, mean: float, variance: float) -> Tensor:
    unit = ops.draw(stream(seed=2), 1, rows, dim, law="normal", purpose=REFERENCE_DRAW)[0]
    return mean + math.sqrt(variance) * unit


def constant(steps: int, a: float, b: float) -> Tensor:
    return torch.tensor([a, b, 1.0]).repeat(steps, 1)


@each_backend
@pytest.mark.parametrize("steps", [1, 4, 30])
def test_the_exact_transient_law_of_a_normal_reference(steps: int, backend: str) -> None:
    rows, dim, a, b, m0, v0 = 16384, 8, 0.18, 0.6, 2.0, 0.25
    scale = torch.linspace(0.7, 1.5, dim)
    z = normals(rows, dim, m0, v0)
    end = run(
        flat(dim), z, constant(steps, a, b), stream(), reference="normal", reference_scale=scale, backend=backend
    ).z
    r = 1.0 - a / scale.double() ** 2
    expect_normal(end, r**steps * m0, r ** (2 * steps) * v0 + b * b * (1 - r ** (2 * steps)) / (1 - r * r))


@each_backend
@pytest.mark.parametrize("s", [0.4, 1.0])
def test_the_stationary_variance_of_a_normal_reference(s: float, backend: str) -> None:
    """1 / (1 - s^2 / 4), not 1: the bias of unadjusted chains, which is part of the contract."""
    rows, dim = 8192, 16
    z = normals(rows, dim, 0.0, 1.0 / (1.0 - s * s / 4.0))
    end = run(flat(dim), z, constant(20, s * s / 2.0, s), stream(), reference="normal", backend=backend).z
    expect_normal(end, 0.0, 1.0 / (1.0 - s * s / 4.0))


@each_backend
def test_a_linear_energy_shifts_the_mean_and_nothing_else(backend: str) -> None:
    rows, dim, scale, s = 16384, 4, 1.3, 1.0
    w = torch.tensor([1.0, -0.5, 0.0, 2.0])
    end = run(
        linear(w),
        torch.zeros(rows, dim),
        constant(60, s * s / 2.0, s),
        stream(),
        reference="normal",
        reference_scale=torch.full((dim,), scale),
        backend=backend,
    ).z
    r = 1.0 - s * s / 2.0 / scale**2
    expect_normal(end, -(scale**2) * w * (1 - r**60), s * s * (1 - r**120) / (1 - r * r))


@each_backend
def test_noise_is_independent_of_step_and_chain(backend: str) -> None:
    """From 0, E = 0, a = 0: a step gives b eps. Correlations over steps, chains and dimensions are those of noise."""
    rows, dim, steps = 2048, 8, 4
    table = constant(steps, 0.0, 1.0)
    chain = run(flat(dim), torch.zeros(rows, dim), table, stream(), record_every=1, backend=backend)
    eps = torch.cat((torch.zeros(1, rows, dim), chain.states)).diff(dim=0).double()
    expect_normal(eps.reshape(-1, dim), 0.0, 1.0)
    for shifted, kept in ((eps[1:], eps[:-1]), (eps[:, 1:], eps[:, :-1]), (eps[..., 1:], eps[..., :-1])):
        assert (shifted * kept).mean().abs() < 5.0 / math.sqrt(kept.numel())


# one step ------------------------------------------------------------------------------------------------------------


@each_backend
def test_the_laplace_pull_is_a_sign_and_nothing_at_zero(backend: str) -> None:
    z = torch.tensor([[0.0, -0.0, 1e-30, -1e-30, 0.5, -0.5]])
    scale = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 2.0])
    end = run(
        flat(6), z, constant(1, 0.25, 0.0), stream(), reference="laplace", reference_scale=scale, backend=backend
    ).z
    assert end.tolist() == [[0.0, 0.0, -0.25, 0.25, 0.0, -0.375]]


@each_backend
def test_the_clip_caps_the_norm_and_keeps_the_direction(backend: str) -> None:
    w = torch.tensor([3.0, -4.0])
    step = {"table": constant(1, 0.5, 0.0), "rng": stream(), "backend": backend}
    for clip, norm in ((1.0, 1.0), (4.99, 4.99), (5.01, 5.0), (100.0, 5.0)):
        end = run(linear(w), torch.zeros(3, 2), grad_clip=clip, **step).z
        torch.testing.assert_close(end, (-0.5 * norm / 5.0 * w).expand(3, 2))
    assert torch.equal(run(linear(w), torch.zeros(3, 2), grad_clip=5.01, **step).z, -0.5 * w.expand(3, 2))


@each_backend
def test_the_clip_is_on_the_energy_alone_and_before_t(backend: str) -> None:
    w = torch.tensor([30.0, -40.0])
    table = torch.tensor([[0.5, 0.0, 3.0]])
    z = torch.tensor([[10.0, 10.0]])
    end = run(linear(w), z, table, stream(), reference="normal", grad_clip=1.0, backend=backend).z
    torch.testing.assert_close(end, z - 0.5 * (3.0 * w / 50.0 + z))


@each_backend
def test_a_flat_energy_survives_the_clip(backend: str) -> None:
    end = run(flat(2), torch.ones(3, 2), constant(2, 0.5, 0.0), stream(), grad_clip=0.1, backend=backend).z
    assert torch.equal(end, torch.ones(3, 2))


@each_backend
@pytest.mark.parametrize("clamp", [(-0.5, 0.25), (None, 0.25), (-0.5, None)])
def test_the_clamp_comes_after_the_noise(clamp: tuple[float | None, float | None], backend: str) -> None:
    net, z, table = network(5), torch.randn(50, 5), constant(1, 0.1, 3.0)
    free = run(net, z, table, stream(), backend=backend).z
    held = run(net, z, table, stream(), clamp=clamp, backend=backend).z
    low, high = clamp
    assert (low is None or (free < low).any()) and (high is None or (free > high).any())
    assert torch.equal(held, free.clamp(low, high))


@each_backend
def test_annealed_to_zero_the_energy_says_nothing(backend: str) -> None:
    z, table = torch.randn(20, 5), constant(6, 0.1, 0.4)
    table[:, 2] = 0.0
    hold = {"reference": "normal", "backend": backend}
    assert torch.equal(
        run(network(5, gain=50.0), z, table, stream(), **hold).z, run(flat(5), z, table, stream(), **hold).z
    )


@each_backend
def test_t_multiplies_the_energy(backend: str) -> None:
    w, z = torch.tensor([1.0, -2.0]), torch.randn(20, 2)
    table = constant(6, 0.1, 0.4)
    twice = table.clone()
    twice[:, 2] = 2.0
    hold = {"reference": "laplace", "backend": backend}
    assert torch.equal(run(linear(w), z, twice, stream(), **hold).z, run(linear(2.0 * w), z, table, stream(), **hold).z)
