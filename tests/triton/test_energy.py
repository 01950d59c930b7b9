"""Energies of the Triton backend, under the interpreter, against the float64 reference; and their machine code.

Those of networks too large for a program are in test_layered.py, as are the gradients of parameters.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="backend triton cannot run here")

from mmebm.kernels import ops, reference
from mmebm.kernels.reference import MLP
from mmebm.kernels.reference.activations import ACTIVATIONS
from mmebm.kernels.triton import layered, layers
from mmebm.kernels.triton.energy import energy, energy_and_grad, energy_backward, energy_kernel

from ..networks import double, network, reordered
from ..slow import slow
from .cubin import compiled

interpreted = pytest.mark.interpreted


def compare(z: Tensor, g: Tensor, net: MLP) -> None:
    """At most twice what the reference loses in float32, its worst order of summation or its storing of the result."""
    e, grad = energy_and_grad(z, net)
    dz, d_weights, d_biases = energy_backward(g, z, net, False)
    assert torch.equal(energy(z, net), e) and not d_weights and not d_biases
    right, slope = reference.energy_and_grad(z.double(), double(net))
    plain = [reference.energy_and_grad(z, n) for n in (net, *(reordered(net) for _ in range(3)))]
    by = g.unsqueeze(1)
    for got, others, exact in (
        (e, [p[0] for p in plain], right),
        (grad, [p[1] for p in plain], slope),
        (dz, [by * p[1] for p in plain], by.double() * slope),
    ):
        assert got.dtype == torch.float32 and got.shape == exact.shape
        lost = max(2.0**-24 * float(exact.norm()), *(float((o - exact).norm()) for o in others))
        assert (got - exact).norm() <= 2.0 * lost


@interpreted
@pytest.mark.parametrize("bound", [None, 1.5])
@pytest.mark.parametrize(
    ("dim", "hidden", "rows"),
    [
        (1, (), 70),
        (17, (33, 20), 130),
        (5, (10, 20, 40), 64),
        *slow([(1, (1,), 65), (3, (7,), 5), (128, (128,), 33)]),
    ],
)
def test_shapes(dim: int, hidden: tuple[int, ...], rows: int, bound: float | None, poisoned_empty: None) -> None:
    compare(2.0 * torch.randn(rows, dim), torch.randn(rows), network(dim, hidden, bound=bound))


@interpreted
@pytest.mark.parametrize("activation", ["leaky_relu", *slow(a for a in ACTIVATIONS if a != "leaky_relu")])
def test_activations(activation: str, poisoned_empty: None) -> None:
    compare(2.0 * torch.randn(70, 6), torch.randn(70), network(6, (20, 11), activation=activation))


@interpreted
def test_no_rows(poisoned_empty: None) -> None:
    net, z = network(3, (5,)), torch.randn(0, 3)
    assert energy(z, net).shape == (0,) and energy_and_grad(z, net)[1].shape == (0, 3)


@interpreted
def test_the_operator_has_gradients_of_parameters(poisoned_empty: None) -> None:
    net, z = network(4, (9, 8), bound=2.0), torch.randn(70, 4)
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (z, *net.weights, *net.biases)]
        value = ops.energy(leaves[0], leaves[1:4], leaves[4:], activation="silu", bound=2.0, backend=backend)
        results.append(torch.autograd.grad(value.square().sum(), leaves))
    for got, plain, exact in zip(*results, strict=True):
        assert (got - exact).norm() <= 2.0 * (plain - exact).norm() + 2.0**-22 * exact.norm()


RESIDENT = {"DIM": 32, "H1": 64, "H2": 64, "H3": 1, "D": 32, "P1": 64, "P2": 64, "P3": 16, "DEPTH": 2}
SWITCHES = {"ACTIVATION": "silu", "BOUND": True, "ENERGY": True, "GRADIENT": True, "GIVEN": False}
BLOCK = {"M": 64, "N": 64, "K": 32}
COMPILED: dict[str, tuple[Any, dict[str, Any]]] = {
    "energy-fp32": (energy_kernel, RESIDENT | SWITCHES | {"M": 16, "PRECISION": "fp32", "HALVED": False}),
    "energy-bf16": (energy_kernel, RESIDENT | SWITCHES | {"M": 64, "PRECISION": "bf16", "HALVED": True}),
    "head": (layers.head_kernel, {"BOUND": True, "GIVEN": True, "M": 64, "K": 64}),
    "accept": (layered.accept_kernel, {"REFERENCE": "normal", "CLIP": True, "CLAMP": True, "M": 16, "D": 64}),
}
for _precision in ("fp32", "tf32", "bf16x3", "bf16w2", "bf16"):
    _shape = BLOCK | {"PRECISION": _precision}
    COMPILED |= {
        f"forward-{_precision}": (
            layers.forward_kernel,
            _shape | {"ACTIVATION": "silu", "VALUE": True, "DERIVATIVE": True},
        ),
        f"backward-{_precision}": (
            layers.backward_kernel,
            _shape | {"LAST": True, "DERIVATIVE": True, "FACTOR": True},
        ),
        f"step-{_precision}": (
            layers.step_kernel,
            _shape | {"LAST": False, "FACTOR": True, "REFERENCE": "laplace", "CLAMP": True},
        ),
        f"outer-{_precision}": (layers.outer_kernel, _shape | {"LAST": True, "FACTOR": True}),
    }
SLOW = ("tf32", "bf16x3", "bf16w2")


@pytest.mark.parametrize("sm", [90, *slow([80])])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n.split("-")[-1] in SLOW else []) for n in COMPILED]
)
def test_kernels_keep_to_their_registers(name: str, sm: int) -> None:
    kernel, constants = COMPILED[name]
    code = compiled(kernel, constants, sm, aligned=True)
    spilled = code.stack, code.whole["LDL"] + code.whole["STL"]
    if (name, sm) != ("energy-bf16", 80):  # 64 rows of two layers and mma.sync: what langevin spills there, too
        assert spilled == (0, 0)
    if constants.get("PRECISION", "fp32") != "fp32":
        assert code.whole["HGMMA" if sm >= 90 else "HMMA"] > 0
