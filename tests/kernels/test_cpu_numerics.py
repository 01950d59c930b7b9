"""What the compiled CPU kernels lose, on every instruction set of the machine, against the reference in float64."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mmebm.kernels import native, reference
from mmebm.kernels.reference import MLP, Constraints
from mmebm.kernels.reference.activations import ACTIVATIONS

if not native.available():
    pytest.skip("the native CPU module cannot be loaded", allow_module_level=True)

EPS = torch.finfo(torch.float32).eps
ISAS = native.build_info()["isas"]
SLOPE = 0.2
KINKED = ("leaky_relu", "relu")
KERNELS: dict[str, Callable[..., Any]] = {"langevin": native.langevin, "mala": native.mala}
ORACLES: dict[str, Callable[..., Any]] = {"langevin": reference.langevin, "mala": reference.mala}

each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What is tested here depends on no number of threads, and small calls are fastest on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MMEBM_ISA", request.param)
    return request.param


# the rule ------------------------------------------------------------------------------------------------------------


def beyond(got: Tensor, plain: Tensor, truth: Tensor) -> Tensor:
    """Where `got` breaks the rule of every test here.

    Its error may be twice the largest that float32 PyTorch (`plain`) makes on the same inputs, plus 4 float32 eps of
    the largest magnitude in `truth`, which is float64. `plain` and `truth` may have more rows than `got`, so that a
    single row is not held to PyTorch's luck.
    """
    lost = (plain.double() - truth).abs().max()
    error = (got.double() - truth[: len(got)]).abs()
    return ~(error <= 2.0 * lost + 4.0 * EPS * truth.abs().max())  # a NaN is beyond


def expect_close(got: Tensor, plain: Tensor, truth: Tensor, what: str = "") -> None:
    assert got.dtype == torch.float32
    if got.numel():
        where = beyond(got, plain, truth)
        error = (got.double() - truth[: len(got)]).abs().max()
        assert not where.any(), f"{what}: {int(where.sum())} of {got.numel()} beyond the rule, error {error:.3g}"


def rare(near: Callable[[float], Tensor]) -> Tensor:
    """The rows within rounding distance of a discontinuity, where float32 may land on its other side: bool [B].

    `near(width)` counts, row by row, what lies within `width` rounding distances of one. A hundred times as much lies
    within a hundred times the distance: that predicts how much there may be.
    """
    expected = near(100.0).sum().item() / 100.0
    found = near(1.0)
    assert found.sum() <= expected + 5.0 * math.sqrt(expected) + 1.0
    return found > 0


# networks ------------------------------------------------------------------------------------------------------------


def network(dim: int, hidden: Sequence[int], activation: str, bound: float | None = None, gain: float = 1.0) -> MLP:
    widths = (dim, *hidden, 1)
    weights = [torch.randn(n, m) * (1.3 / math.sqrt(m)) for m, n in pairwise(widths)]
    weights[-1] *= gain
    return MLP(weights, [0.3 * torch.randn(n) for n in widths[1:]], activation, SLOPE, bound)


def double(net: MLP) -> MLP:
    return net._replace(weights=[w.double() for w in net.weights], biases=[b.double() for b in net.biases])


def strided(t: Tensor) -> Tensor:
    """The same values, every second element of a transposed buffer."""
    buffer = torch.full((*t.shape[1:], 2 * t.shape[0]), float("nan")).movedim(-1, 0)
    buffer[::2] = t
    return buffer[::2]


def near_kink(net: MLP, z: Tensor, width: float) -> Tensor:
    """How many pre-activations of a row are within `width` times what float32 loses of them: [B]."""
    near = torch.zeros(len(z))
    if net.activation not in KINKED:
        return near
    exact, h = double(net), z.double()
    loss = torch.zeros_like(h)  # of h, its square: a sum of n terms is rounded n times, and roundings add up as noise
    for weight, bias in zip(exact.weights[:-1], exact.biases[:-1], strict=True):
        a = torch.addmm(bias, h, weight.T)
        terms, squares = weight.shape[1] + 2, (weight * weight).T
        loss = loss @ squares + terms * EPS**2 * ((h * h) @ squares + bias * bias)
        near += (a.abs() <= width * loss.sqrt()).sum(1)
        h = ACTIVATIONS[net.activation].value(a, net.slope)
    return near


# energies ------------------------------------------------------------------------------------------------------------

POOL = 97
DEEP = ((), (5,), (33, 18), (17, 8, 31), (9, 4, 7, 6))


def check_energies(
    activation: str, hidden: Sequence[int], dim: int, rows: int, bound: float | None, dense: bool = True
) -> None:
    net, z = network(dim, hidden, activation, bound), 1.5 * torch.randn(POOL, dim)
    z = z[~rare(lambda width: near_kink(net, z, width))]
    exact, given = double(net), z[:rows]
    if not dense:
        net = net._replace(weights=[strided(w) for w in net.weights], biases=[strided(b) for b in net.biases])
        given = strided(given)
    truth, plain = reference.energy_and_grad(z.double(), exact), reference.energy_and_grad(z, net)
    energy, grad = native.energy_and_grad(given, net)
    assert energy.shape == (len(given),) and grad.shape == (len(given), dim)
    expect_close(energy, plain[0], truth[0], "energy")
    expect_close(grad, plain[1], truth[1], "gradient")
    assert torch.equal(native.energy(given, net), energy)

    # Eight batches of as many rows, so that sums over a batch are not held to PyTorch's luck in one.
    rows = len(given)
    batches = torch.cat((torch.arange(rows).unsqueeze(0), torch.randint(len(z), (7, rows))))
    weigh = torch.randn(8, rows)
    got = native.energy_backward(weigh[0], given, net)
    alone, *nothing = native.energy_backward(weigh[0], given, net, parameters=False)
    assert nothing == [[], []] and torch.equal(alone, got[0])
    plain_sums = [flat(reference.energy_backward(g, z[i], net)) for g, i in zip(weigh, batches, strict=True)]
    true_sums = [
        flat(reference.energy_backward(g.double(), z[i].double(), exact)) for g, i in zip(weigh, batches, strict=True)
    ]
    for n, t in enumerate(flat(got)):
        assert t.shape == true_sums[0][n].shape
        plain_sum, true_sum = (torch.stack([sums[n] for sums in each]) for each in (plain_sums, true_sums))
        expect_close(t.unsqueeze(0), plain_sum, true_sum, f"output {n} of the backward")


def flat(gradients: tuple[Tensor, list[Tensor], list[Tensor]]) -> list[Tensor]:
    return [gradients[0], *gradients[1], *gradients[2]]


@each_activation
def test_energies_and_their_gradients(activation: str, isa: str) -> None:
    shapes = [(1, 3), (7, 17), (16, 49), (33, 97), (513, 1)]
    for n, (hidden, (dim, rows)) in enumerate(zip(DEEP, shapes, strict=True)):
        for bound in (None, 1.3):
            check_energies(activation, hidden, dim, rows, bound, dense=bool(n % 2))


@pytest.mark.slow
@pytest.mark.parametrize("hidden", DEEP, ids=lambda h: f"hidden{len(h)}")
@each_activation
def test_energies_of_all_shapes(activation: str, hidden: tuple[int, ...], isa: str) -> None:
    for dim, rows, bound in product((1, 7, 16, 33, 513), (0, 1, 3, 17, 49, 97), (None, 1.3)):
        check_energies(activation, hidden, dim, rows, bound, dense=(dim + rows) % 2 == 0)


# activations ---------------------------------------------------------------------------------------------------------


def sweep() -> Tensor:
    least = torch.finfo(torch.float32).tiny
    edges = [0.0, least, least / 2, least * EPS, 1e-20, 1e-7, 87.0, 88.8, 100.0, 1e3, 1e4]
    return torch.cat((torch.linspace(-30.0, 30.0, 120_001), *(torch.tensor(edges) * s for s in (1.0, -1.0))))


def through_one_unit(activation: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and f'(x) by a network of one unit, weights 1 and biases 0."""
    one, zero = torch.ones(1, 1), torch.zeros(1)
    energy, grad = native.energy_and_grad(x.unsqueeze(1), MLP([one, one], [zero, zero], activation, SLOPE, None))
    return energy, grad.squeeze(1)


def by_torch(activation: str, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = ACTIVATIONS[activation].value(leaf, SLOPE)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def scaled_error(got: Tensor, truth: Tensor) -> Tensor:
    return (got.double() - truth).abs() / truth.abs().clamp_min(1.0)


@each_activation
def test_activations_lose_no_more_than_torchs(activation: str, isa: str) -> None:
    """Relative where the value is above 1, absolute below: twice what torch loses, and 1.5e-7, about an ulp of 1."""
    x = sweep()
    got, plain, truth = through_one_unit(activation, x), by_torch(activation, x), by_torch(activation, x.double())
    for g, p, t in zip(got, plain, truth, strict=True):
        assert g.isfinite().all()
        for part in (x.abs() <= 1.0, (x.abs() > 1.0) & (x.abs() <= 10.0), x.abs() > 10.0):
            allowed = 2.0 * scaled_error(p, t)[part].max() + 1.5e-7
            assert (scaled_error(g, t)[part] <= allowed).all()


@each_activation
def test_nan_goes_through_an_activation(activation: str, isa: str) -> None:
    """Into the derivative too, but for those that are constant on either side of 0: as in the reference."""
    value, first = through_one_unit(activation, torch.tensor([math.nan, 1.0, -math.nan] * 20))
    wrong = torch.tensor([True, False, True] * 20)
    assert torch.equal(value.isnan(), wrong)
    assert torch.equal(first.isnan(), wrong & (activation not in KINKED))


@each_activation
def test_energies_stay_finite_on_large_inputs(activation: str, isa: str) -> None:
    net = network(3, (8, 8), activation, bound=2.0)
    z = torch.randn(50, 3) * torch.logspace(0.0, 4.0, 50).unsqueeze(1)
    energy, grad = native.energy_and_grad(z, net)
    assert energy.isfinite().all() and grad.isfinite().all() and (energy.abs() <= 2.0 * (1.0 + EPS)).all()


# chains --------------------------------------------------------------------------------------------------------------

HOLDS: dict[str, dict[str, Any]] = {
    "free": {},
    "normal": {"reference": "normal"},
    "laplace": {"reference": "laplace"},
    "all-normal": {"reference": "normal", "bound": 1.4, "grad_clip": 0.5, "lower": -1.9, "upper": 2.1},
    "all-laplace": {"reference": "laplace", "bound": 1.4, "grad_clip": 0.5, "lower": -1.9, "upper": None},
}


class Setting(NamedTuple):
    net: MLP
    hold: Constraints
    table: Tensor
    rng: Tensor
    z: Tensor

    def double(self) -> Setting:
        hold = self.hold._replace(scale=self.hold.scale.double())
        return self._replace(net=double(self.net), hold=hold, z=self.z.double())

    def run(self, kernel: Callable[..., Any]) -> Any:
        return kernel(self.z, self.net, self.table, self.rng, self.hold, 1, True)

    def at(self, k: int, z: Tensor) -> Setting:
        """Step k alone, from z."""
        return self._replace(table=self.table[k : k + 1], rng=self.rng + torch.tensor([0, k, 0]), z=z)


def setting(activation: str, name: str, rows: int, dim: int, hidden: Sequence[int], steps: int) -> Setting:
    options = {"reference": "none", "bound": None, "grad_clip": None, "lower": None, "upper": None} | HOLDS[name]
    net = network(dim, hidden, activation, options.pop("bound"), gain=2.0)
    k = torch.arange(steps, dtype=torch.float32)
    table = torch.stack((0.05 + 0.02 * (k % 3), 0.25 + 0.05 * (k % 4), 1.5 - k / steps), dim=1)
    hold = Constraints(scale=torch.rand(dim) + 0.6, **options)
    return Setting(net, hold, table, torch.tensor([7, 3, 5]), torch.randn(rows, dim).clamp(-1.8, 2.0))


@pytest.fixture
def shared_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference takes the kernel's normals, so that what is compared is the chain's arithmetic."""
    monkeypatch.setattr(importlib.import_module("mmebm.kernels.reference.langevin"), "draw", native.draw)


@pytest.fixture
def threshold(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What is added to the reference's ln u."""
    added = [0.0]
    module = importlib.import_module("mmebm.kernels.reference.mala")
    real = module.log_uniform
    monkeypatch.setattr(module, "log_uniform", lambda *args: real(*args) + added[0])
    yield added


def near_tie(step: Setting, width: float, threshold: list[float]) -> Tensor:
    """How much of an accept decision hangs on rounding: the threshold itself, edges and kinks at the proposal."""
    exact = step.double()
    ends = []
    for side in (-1.0, 1.0):
        threshold[0] = side * width * 1e-5
        ends.append(exact.run(reference.mala).z)
    threshold[0] = 0.0
    near = (ends[0] != ends[1]).any(1).float()
    free = exact._replace(hold=exact.hold._replace(lower=None, upper=None))
    proposal = free.run(reference.langevin).z
    near += near_kink(step.net, proposal, width)
    jumps = [edge for edge in (step.hold.lower, step.hold.upper) if edge is not None]
    jumps += [0.0] if step.hold.reference == "laplace" else []
    for jump in jumps:
        near += ((proposal - jump).abs() <= width * 4.0 * EPS).sum(1)
    return near


def steps_apart(whole: Setting, kernel: str, threshold: list[float]) -> None:
    """Every step on its own, from the states of the float64 trajectory rounded to float32."""
    path = whole.double().run(ORACLES[kernel]).states[:-1]
    starts = [whole.z, *path.float()]
    steps = [whole.at(k, z) for k, z in enumerate(starts)]
    truth = [step.double().run(ORACLES[kernel]) for step in steps]
    plain = [step.run(ORACLES[kernel]) for step in steps]
    got = [step.run(KERNELS[kernel]) for step in steps]

    def near(width: float) -> Tensor:
        counts = [near_kink(step.net, step.z, width) for step in steps]
        if kernel == "mala":
            counts = [n + near_tie(step, width, threshold) for n, step in zip(counts, steps, strict=True)]
        return torch.cat(counts)

    clear = ~rare(near)
    for name in truth[0]._fields:
        g, p, t = (
            torch.cat([getattr(chain, name).reshape(len(whole.z), -1) for chain in chains])[clear]
            for chains in (got, plain, truth)
        )
        expect_close(g, p, t, name)


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_step_from_the_same_state(
    kernel: str, hold: str, isa: str, shared_noise: None, threshold: list[float]
) -> None:
    for activation in ("silu", "leaky_relu"):
        steps_apart(setting(activation, hold, rows=49, dim=9, hidden=(20, 13), steps=6), kernel, threshold)


@pytest.mark.parametrize("kernel", KERNELS)
@each_activation
def test_every_step_of_every_activation(
    kernel: str, activation: str, isa: str, shared_noise: None, threshold: list[float]
) -> None:
    steps_apart(setting(activation, "all-laplace", rows=33, dim=5, hidden=(17,), steps=4), kernel, threshold)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, (1,)), (97, 16, ()), (49, 33, (33, 18, 9)), (17, 513, (24,))], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@each_activation
def test_every_step_of_all_shapes(
    kernel: str, activation: str, shape: tuple[int, int, Any], isa: str, shared_noise: None, threshold: list[float]
) -> None:
    rows, dim, hidden = shape
    for hold in HOLDS:
        steps_apart(setting(activation, hold, max(rows, 24), dim, hidden, steps=10), kernel, threshold)


def drift_apart(activation: str, steps: int = 50) -> tuple[float, float]:
    """The largest error of `steps` free-running langevin steps, and float32 PyTorch's."""
    whole = setting(activation, "normal", rows=97, dim=16, hidden=(32, 32), steps=steps)
    truth = whole.double().run(reference.langevin).z
    got, plain = whole.run(native.langevin).z, whole.run(reference.langevin).z
    return (got - truth).abs().max().item(), (plain - truth).abs().max().item()


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "tanh"])
def test_fifty_free_steps_stay_near(
    activation: str, isa: str, shared_noise: None, record_property: Callable[[str, object], None]
) -> None:
    """Only loosely: from step to step an error grows or shrinks as the chain makes it. bench reports the figures."""
    error, ordinary = drift_apart(activation)
    record_property("error_after_50_steps", f"{error:.3g}, PyTorch {ordinary:.3g}")
    assert error <= 10.0 * ordinary + 1e-6
