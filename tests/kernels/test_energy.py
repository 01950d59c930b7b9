"""`energy` and `energy_and_grad` against an nn.Sequential and autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mmebm.kernels import dispatch, ops
from mmebm.kernels.reference.activations import ACTIVATIONS

SLOPE = 0.2
MODULES: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "leaky_relu": partial(nn.LeakyReLU, SLOPE),
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}
BACKENDS = [
    name
    for name in dispatch.BACKENDS
    if dispatch.unsupported(name, "energy_and_grad", torch.device("cpu"), torch.float32) is None
]
EPS = torch.finfo(torch.float32).eps


class Bounded(nn.Module):
    """The same energy written as users write it: an nn.Sequential, then c tanh(e / c)."""

    def __init__(self, dim: int, hidden: tuple[int, ...], activation: str, bound: float | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in zip((dim, *hidden), hidden, strict=False):
            layers += [nn.Linear(width_in, width_out), MODULES[activation]()]
        self.net = nn.Sequential(*layers, nn.Linear((dim, *hidden)[-1], 1))
        self.activation, self.bound = activation, bound

    def forward(self, z: Tensor) -> Tensor:
        e = self.net(z).squeeze(1)
        return e if self.bound is None else self.bound * torch.tanh(e / self.bound)

    def parts(self) -> tuple[list[Tensor], list[Tensor]]:
        linears = [m for m in self.net if isinstance(m, nn.Linear)]
        return [m.weight for m in linears], [m.bias for m in linears]

    def options(self) -> dict:
        return {"activation": self.activation, "slope": SLOPE, "bound": self.bound}

    def operator(self, z: Tensor, backend: str = "auto") -> Tensor:
        return ops.energy(z, *self.parts(), **self.options(), backend=backend)


def with_gradient(net: Bounded, z: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.detach().requires_grad_()
    e = net(leaf)
    return e.detach(), torch.autograd.grad(e.sum(), leaf)[0]


def test_every_activation_is_tested() -> None:
    assert set(MODULES) == set(ACTIVATIONS)


@pytest.mark.parametrize("hidden", [(), (3,), (3, 2), (2, 3, 2)], ids=lambda h: f"hidden{len(h)}")
@pytest.mark.parametrize("bound", [None, 1.3])
@pytest.mark.parametrize("activation", MODULES)
def test_first_and_second_derivatives(activation: str, bound: float | None, hidden: tuple[int, ...]) -> None:
    net = Bounded(2, hidden, activation, bound).double()
    weights, biases = net.parts()
    layers = len(weights)
    z = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def energy(z: Tensor, *parameters: Tensor) -> Tensor:
        return ops.energy(z, parameters[:layers], parameters[layers:], **net.options())

    def frozen(z: Tensor) -> Tensor:
        return energy(z, *(p.detach() for p in (*weights, *biases)))

    for function, inputs in ((frozen, (z,)), (energy, (z, *weights, *biases))):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_second_derivatives_entry_by_entry() -> None:
    net = Bounded(2, (3, 2), "silu", 1.3).double()
    weights, biases = net.parts()
    z = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda z, *p: ops.energy(z, p[:3], p[3:], **net.options()), (z, *weights, *biases)
    )


@pytest.mark.parametrize("bound", [None, 1.3])
def test_third_derivatives(bound: float | None) -> None:
    net = Bounded(3, (5, 4), "tanh", bound).double()
    z = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    leaves = [z, *net.parameters()]

    def third(energy: Callable[[Tensor], Tensor]) -> list[Tensor]:
        grads = torch.autograd.grad(energy(z).square().sum(), leaves, create_graph=True)
        seconds = torch.autograd.grad(sum(g.pow(3).sum() for g in grads), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in seconds), leaves))

    for got, expected in zip(third(net.operator), third(net), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_loss_on_part_of_the_gradient_reaches_everything() -> None:
    """Cotangents arrive for some outputs of the backward operator and not for others."""
    net = Bounded(3, (5,), "silu", None).double()
    z = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    leaves = [z, *net.parameters()]
    for chosen in range(len(leaves)):

        def second(energy: Callable[[Tensor], Tensor], chosen: int = chosen) -> list[Tensor]:
            grads = torch.autograd.grad(energy(z).square().sum(), leaves, create_graph=True)
            return list(
                torch.autograd.grad(grads[chosen].square().sum(), leaves, allow_unused=True, materialize_grads=True)
            )

        for got, expected in zip(second(net.operator), second(net), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("hidden", [(), (9,), (9, 8, 7)], ids=lambda h: f"hidden{len(h)}")
@pytest.mark.parametrize("bound", [None, 0.7])
@pytest.mark.parametrize("activation", MODULES)
def test_float64_agrees_with_autograd(activation: str, bound: float | None, hidden: tuple[int, ...]) -> None:
    net = Bounded(4, hidden, activation, bound).double()
    z = 2.0 * torch.randn(11, 4, dtype=torch.float64)
    expected = with_gradient(net, z)
    got = ops.energy_and_grad(z, *net.parts(), **net.options())
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(net.operator(z), expected[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bound", [None, 0.7])
@pytest.mark.parametrize("activation", MODULES)
def test_float32_loses_no_more_than_pytorch_does(activation: str, bound: float | None, backend: str) -> None:
    net, exact = Bounded(20, (64, 48), activation, bound), Bounded(20, (64, 48), activation, bound).double()
    exact.load_state_dict(net.state_dict())
    z = 2.0 * torch.randn(512, 20)
    truth = with_gradient(exact, z.double())
    plain = with_gradient(net, z)
    got = ops.energy_and_grad(z, *net.parts(), **net.options(), backend=backend)
    alone = net.operator(z.requires_grad_(), backend=backend)
    (grad,) = torch.autograd.grad(alone.sum(), z)
    for value, ordinary, right in zip((*got, alone, grad), (*plain, *plain), (*truth, *truth), strict=True):
        assert value.dtype == torch.float32
        assert (value - right).norm() <= 2.0 * (ordinary - right).norm()


def test_parameter_gradients_in_float32_lose_no_more_than_pytorch_does() -> None:
    net, exact = Bounded(20, (64, 48), "silu", 5.0), Bounded(20, (64, 48), "silu", 5.0).double()
    exact.load_state_dict(net.state_dict())
    z = torch.randn(512, 20)
    got = torch.autograd.grad(net.operator(z).sum(), [p for part in net.parts() for p in part])
    plain = torch.autograd.grad(net(z).sum(), [p for part in net.parts() for p in part])
    truth = torch.autograd.grad(exact(z.double()).sum(), [p for part in exact.parts() for p in part])
    for value, ordinary, right in zip(got, plain, truth, strict=True):
        assert (value - right).norm() <= 2.0 * (ordinary - right).norm()


def derivatives(activation: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second, by autograd through torch's own activation."""
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(MODULES[activation]()(leaf).sum(), leaf, create_graph=True)
    if not first.requires_grad:
        return first, torch.zeros_like(x)
    (second,) = torch.autograd.grad(first.sum(), leaf, materialize_grads=True)
    return first.detach(), second


@pytest.mark.parametrize("activation", MODULES)
def test_activation_derivatives_over_the_ordinary_range(activation: str) -> None:
    x = torch.linspace(-9.0, 9.0, 4001)
    truth, plain = derivatives(activation, x.double()), derivatives(activation, x)
    _, first, second = ACTIVATIONS[activation]
    for derivative, ordinary, right in zip((first, second), plain, truth, strict=True):
        rounding = EPS * right.norm()  # what any float32 result may lose
        assert (derivative(x, SLOPE) - right).norm() <= max(2.0 * (ordinary - right).norm(), rounding)
        torch.testing.assert_close(derivative(x.double(), SLOPE), right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", MODULES)
def test_activation_derivatives_at_extreme_inputs(activation: str, dtype: torch.dtype) -> None:
    """All have reached their limits there: 1, 0 or the slope, and no second derivative."""
    x = torch.tensor([-1e4, -30.0, 30.0, 1e4], dtype=dtype)
    below = SLOPE if activation == "leaky_relu" else 0.0
    above = 0.0 if activation == "tanh" else 1.0
    _, first, second = ACTIVATIONS[activation]
    limit = torch.tensor([below, below, above, above], dtype=dtype)
    # silu' is 30 e^-30 = 2.8e-12 from its limit at 30, the others less
    torch.testing.assert_close(first(x, SLOPE), limit, rtol=EPS, atol=3e-12)
    torch.testing.assert_close(second(x, SLOPE), torch.zeros_like(x), rtol=0.0, atol=3e-12)


@pytest.mark.parametrize("activation", MODULES)
def test_derivatives_at_zero_are_torchs(activation: str) -> None:
    net = Bounded(1, (1,), activation, None).double()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(1.0)
        net.net[0].bias.zero_()
    z = torch.zeros(1, 1, dtype=torch.float64)
    got = ops.energy_and_grad(z, *net.parts(), **net.options())
    torch.testing.assert_close(got, with_gradient(net, z))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "dim"), [(0, 3), (1, 3), (1, 1), (5, 1)])
def test_small_shapes(rows: int, dim: int, backend: str) -> None:
    net = Bounded(dim, (1, 6), "silu", 2.0)
    z = torch.randn(rows, dim, requires_grad=True)
    e, grad = ops.energy_and_grad(z, *net.parts(), **net.options(), backend=backend)
    assert e.shape == (rows,) and grad.shape == (rows, dim)
    for got, expected in zip((e, grad), with_gradient(net, z), strict=True):
        torch.testing.assert_close(got, expected)
    leaves = [z, *net.parameters()]
    got = torch.autograd.grad(net.operator(z, backend).sum(), leaves)
    for a, b in zip(got, torch.autograd.grad(net(z).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_energies_without_history_have_none() -> None:
    net = Bounded(3, (4,), "silu", None)
    assert net.operator(torch.randn(2, 3)).requires_grad
    for p in net.parameters():
        p.requires_grad_(False)
    assert not net.operator(torch.randn(2, 3)).requires_grad
    z = torch.randn(2, 3, requires_grad=True)
    net.operator(z).sum().backward()
    assert z.grad is not None and all(p.grad is None for p in net.parameters())
