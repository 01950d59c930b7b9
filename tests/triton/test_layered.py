"""Networks that do not fit a program: a launch a layer, under the interpreter, against the float64 reference.

Networks here are small and handed to the layers directly; two are too large for a program and come by the operators.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="backend triton cannot run here")

from mmebm.kernels import layered as by_layers
from mmebm.kernels import ops, reference
from mmebm.kernels.reference import MLP, Constraints
from mmebm.kernels.reference.activations import ACTIVATIONS
from mmebm.kernels.triton import launch, layered, layers

from .. import networks
from ..energies import SHAPES, compare_energies, no_worse
from ..networks import double, reordered
from ..slow import slow

pytestmark = pytest.mark.interpreted

HOLDS: list[dict[str, Any]] = [
    {},
    {"reference": "normal"},
    {"reference": "laplace", "grad_clip": 0.5},
    {"bound": 2.0},
    {"reference": "normal", "lower": -2.1, "upper": 2.0},
    {"reference": "laplace", "bound": 3.0, "grad_clip": 0.25, "lower": -2.2},
]
network = functools.partial(networks.network, gain=3.0)
each_operator = pytest.mark.parametrize("operator", ["langevin", "mala"])


@pytest.mark.parametrize("bound", [None, 2.0])
@pytest.mark.parametrize(("dim", "hidden", "rows"), [*SHAPES[1:3], *slow([SHAPES[0], *SHAPES[3:]])])
def test_energies(dim: int, hidden: tuple[int, ...], rows: int, bound: float | None, poisoned_empty: None) -> None:
    compare_energies(layered, network(dim, hidden, bound=bound), rows)


@pytest.mark.parametrize("activation", ["leaky_relu", *slow(a for a in ACTIVATIONS if a != "leaky_relu")])
def test_activations(activation: str, poisoned_empty: None) -> None:
    compare_energies(layered, network(6, (20, 11), activation=activation), 40)


def test_parts_over_rows_are_added(monkeypatch: pytest.MonkeyPatch, poisoned_empty: None) -> None:
    monkeypatch.setattr(by_layers, "_ADDED_ROWS", 32)
    net, z, g = network(4, (9,)), torch.randn(100, 4), torch.randn(100)
    seen, outer = [], layers.outer
    monkeypatch.setattr(layers, "outer", lambda *a: seen.append(a) or outer(*a))
    got = layered.energy_backward(g, z, net)
    plain, exact = reference.energy_backward(g, z, net), reference.energy_backward(g.double(), z.double(), double(net))
    for i in (1, 2):
        for a, b, c in zip(got[i], plain[i], exact[i], strict=True):
            no_worse(a, [b], c)
    assert len(seen) == 2
    again = layered.energy_backward(g, z, net)
    assert all(torch.equal(a, b) for a, b in zip([*got[1], *got[2]], [*again[1], *again[2]], strict=True))


def chain(operator: str, module: Any, z: Tensor, net: MLP, hold: dict[str, Any], steps: int = 5, **options: Any) -> Any:
    k = torch.arange(steps, dtype=torch.float32)
    table = torch.stack((0.05 + 0.05 * (k % 3), 0.4 + 0.1 * (k % 4), 1.5 - k / max(1, steps)), dim=1)
    limits = {"reference": "none", "grad_clip": None, "lower": None, "upper": None} | hold
    scale = torch.linspace(0.8, 1.6, z.shape[1]).to(z.dtype)
    asked = {"record_every": 2, "statistics": True} | options
    return getattr(module, operator)(
        z, net, table, torch.tensor([7, 3, 5]), Constraints(scale=scale, **limits), **asked
    )


def compare(operator: str, z: Tensor, net: MLP, hold: dict[str, Any], **options: Any) -> Any:
    """As for energies, in every output."""
    hold = dict(hold)
    net = net._replace(bound=hold.pop("bound", None))
    got = chain(operator, layered, z, net, hold, **options)
    plain = [chain(operator, reference, z, n, hold, **options) for n in (net, *(reordered(net) for _ in range(3)))]
    exact = chain(operator, reference, z.double(), double(net), hold, **options)
    if operator == "mala":
        assert all(torch.equal(p.acceptance, exact.acceptance.float()) for p in plain), "a tie decides: another seed"
    for i, name in enumerate(exact._fields):
        no_worse(got[i], [p[i] for p in plain], exact[i], name)
    return exact


@each_operator
@pytest.mark.parametrize("hold", HOLDS, ids=lambda h: "-".join(h) or "free")
def test_chains(operator: str, hold: dict[str, Any], poisoned_empty: None) -> None:
    z, net = torch.randn(40, 11).clamp(-1.8, 1.8), network(11, (24, 16))
    exact = compare(operator, z, net, hold, steps=6)
    for name in hold:
        without = {k: v for k, v in hold.items() if k != name}
        bound = without.pop("bound", None)
        other = chain(operator, reference, z.double(), double(net)._replace(bound=bound), without, steps=6)
        assert not torch.equal(exact.z, other.z), f"{name} must bite to be tested"
    if operator == "mala":
        assert 0.1 < exact.acceptance.mean() < 0.98, "both answers must be seen"


@each_operator
@pytest.mark.parametrize(("dim", "hidden", "rows"), [(130, (5, 4, 3, 2), 3), *slow([(1, (3,), 65), (70, (9,), 33)])])
def test_shapes_of_chains(operator: str, dim: int, hidden: tuple[int, ...], rows: int, poisoned_empty: None) -> None:
    compare(operator, torch.randn(rows, dim), network(dim, hidden), {"reference": "normal", "grad_clip": 1.0})


@each_operator
@pytest.mark.parametrize("record_every", [0, 1, 5, 6])
def test_what_is_recorded(operator: str, record_every: int, poisoned_empty: None) -> None:
    z, net = torch.randn(9, 4), network(4, (8, 8))
    exact = compare(operator, z, net, {"reference": "laplace"}, record_every=record_every, statistics=False)
    assert len(exact.states) == (5 // record_every if record_every else 0)


@each_operator
@pytest.mark.parametrize("rows", [0, 4])
def test_no_steps_and_no_chains(operator: str, rows: int, poisoned_empty: None) -> None:
    z, net = torch.randn(rows, 3), network(3, (5,))
    got = chain(operator, layered, z, net, {}, steps=0)
    assert torch.equal(got.z, z) and (rows == 0 or got.z.data_ptr() != z.data_ptr())
    assert all(torch.equal(t, torch.zeros(rows)) for t in got[3:])
    nobody = chain(operator, layered, z[:0], net, {}, steps=4)
    assert nobody.states.shape == (2, 0, 3) and nobody.z.shape == (0, 3)


def test_no_rows_have_no_gradient(poisoned_empty: None) -> None:
    net = network(3, (5,))
    dz, d_weights, d_biases = layered.energy_backward(torch.randn(0), torch.randn(0, 3), net)
    assert dz.shape == (0, 3) and not any(t.any() for t in (*d_weights, *d_biases))
    assert layered.energy(torch.randn(0, 3), net).shape == (0,)


@pytest.mark.parametrize(("dim", "hidden"), [(129, (4,)), (3, (8, 8, 8, 8))])
def test_the_operators_send_large_networks_here(dim: int, hidden: tuple[int, ...], poisoned_empty: None) -> None:
    net, z = network(dim, hidden), torch.randn(4, dim, requires_grad=True)
    assert launch.too_large(net, z.device)
    args = (net.weights, net.biases)
    value = ops.energy(z, *args, activation="silu", backend="triton")
    (dz,) = torch.autograd.grad(value.sum(), z)
    exact, right = reference.energy_and_grad(z.detach().double(), double(net))
    plain, near = reference.energy_and_grad(z.detach(), net)
    no_worse(value.detach(), [plain], exact)
    no_worse(dz, [near], right)
