"""`langevin`, `mala` and `langevin_update` of the Triton backend, under the interpreter, against the float64 reference.

What the interpreter cannot see: bfloat16 (it computes it wrongly, without an error: calls run as fp32 here whatever is
asked), tf32 (computed as float32), inline assembly (it raises: there are plain formulas for it), layouts and what a
compiler makes of them, races and shared memory. `test_compiled.py` reads the machine code; numbers of the reduced
precisions need a GPU.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="backend triton cannot run here")

from mmebm.kernels import ops
from mmebm.kernels.reference import noise
from mmebm.kernels.reference.activations import ACTIVATIONS

from .slow import slow

pytestmark = pytest.mark.interpreted

FREE: dict[str, Any] = {"reference": "none", "bound": None, "grad_clip": None, "clamp": (None, None)}
HOLDS = [
    {},
    {"reference": "normal"},
    {"reference": "laplace"},
    {"bound": 4.0},
    {"grad_clip": 0.5},
    {"reference": "normal", "clamp": (-2.1, 2.0)},
    {"clamp": (None, 1.9)},
    {"reference": "laplace", "bound": 3.0, "grad_clip": 0.25, "clamp": (-2.0, None)},
    {"reference": "normal", "bound": 2.0, "grad_clip": 0.6, "clamp": (-2.2, 2.2)},
]
each_hold = pytest.mark.parametrize("hold", [*slow(HOLDS[:-2]), *HOLDS[-2:]], ids=lambda h: "-".join(h) or "free")
each_operator = pytest.mark.parametrize("operator", ["langevin", "mala"])
Parts = tuple[list[Tensor], list[Tensor]]


def network(dim: int, hidden: tuple[int, ...] = (24, 16), gain: float = 8.0) -> Parts:
    sizes = [dim, *hidden, 1]
    weights = [torch.randn(n, m) / m**0.5 for m, n in itertools.pairwise(sizes)]
    weights[-1] *= gain / 4.0
    return weights, [0.3 * torch.randn(n) for n in sizes[1:]]


def stream(seed: int = 7, offset: int = 3, first: int = 5) -> Tensor:
    return torch.tensor([seed, offset, first])


def schedule(steps: int) -> Tensor:
    """A different (a, b, t) in every step; a is not b^2 / 2."""
    k = torch.arange(steps, dtype=torch.float32)
    return torch.stack((0.05 + 0.05 * (k % 3), 0.4 + 0.1 * (k % 4), 1.5 - k / max(1, steps)), dim=1)


def run(
    operator: str,
    z: Tensor,
    net: Parts,
    table: Tensor,
    backend: str,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[Tensor, ...]:
    options = FREE | {"reference_scale": torch.linspace(0.8, 1.6, z.shape[1])} | options
    rng = options.pop("rng", stream())
    options["reference_scale"] = options["reference_scale"].to(dtype)
    weights, biases = ([p.to(dtype) for p in parts] for parts in net)
    return getattr(ops, operator)(z.to(dtype), weights, biases, table, rng, backend=backend, **options)


def reordered(net: Parts) -> Parts:
    """The same function with its hidden units in another order, so that sums round otherwise."""
    weights, biases = [list(parts) for parts in net]
    for layer in range(len(weights) - 1):
        order = torch.randperm(len(weights[layer]))
        weights[layer], biases[layer] = weights[layer][order], biases[layer][order]
        weights[layer + 1] = weights[layer + 1][:, order]
    return weights, biases


def compare(operator: str, z: Tensor, net: Parts, table: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """The Triton chain loses at most twice what the reference loses in float32, in every output; returns the exact.

    Few numbers may lose little by luck: the reference has three more orders of its sums to lose in.
    """
    got = run(operator, z, net, table, "triton", **options)
    nets = [net, *(reordered(net) for _ in range(3))]
    plain = [run(operator, z, each, table, "reference", **options) for each in nets]
    exact = run(operator, z, net, table, "reference", torch.float64, **options)
    if operator == "mala":
        assert all(torch.equal(p[6], exact[6].float()) for p in plain), "a tie decides: choose another seed"
    for i, name in enumerate(exact._fields):  # type: ignore[attr-defined]
        g, e = got[i], exact[i]
        assert g.shape == e.shape and g.dtype == torch.float32, name
        lost = max((p[i] - e).norm() for p in plain)
        assert (g - e).norm() <= 2.0 * max(lost, 2.0**-24 * e.norm()), name  # the latter: stored in float32
    return exact


@each_operator
@each_hold
def test_holds(operator: str, hold: dict[str, Any], poisoned_empty: None) -> None:
    z, net, table = torch.randn(40, 11).clamp(-1.8, 1.8), network(11, gain=24.0), schedule(6)
    exact = compare(operator, z, net, table, record_every=2, statistics=True, **hold)
    for name in hold:
        without = run(operator, z, net, table, "reference", torch.float64, **hold | {name: FREE[name]})
        assert not torch.equal(exact[0], without[0]), f"{name} must bite to be tested"
    if operator == "mala":
        assert 0.1 < exact[6].mean() < 0.98, "both answers must be seen"


@each_operator
def test_a_box_without_zero_holds_no_padding(operator: str) -> None:
    z, net = 0.5 + torch.rand(20, 11), network(11)
    exact = compare(operator, z, net, schedule(3), clamp=(0.3, 2.0), statistics=True)
    assert (exact[5] > 0.0).any()


@each_operator
@pytest.mark.parametrize("activation", ["silu", *slow(a for a in ACTIVATIONS if a != "silu")])
def test_activations(operator: str, activation: str, poisoned_empty: None) -> None:
    z, net = torch.randn(20, 5), network(5)
    compare(operator, z, net, schedule(3), activation=activation, slope=0.07, reference="normal", statistics=True)


@each_operator
@pytest.mark.parametrize(
    ("rows", "dim", "hidden"),
    [
        (1, 1, ()),
        (5, 17, (33, 20)),
        *slow([(3, 2, (1,)), (70, 8, (7,)), (65, 16, (16, 32)), (2, 33, (10, 20, 40)), (20, 64, (64, 64, 64))]),
    ],
)
def test_shapes(operator: str, rows: int, dim: int, hidden: tuple[int, ...], poisoned_empty: None) -> None:
    z, net = torch.randn(rows, dim), network(dim, hidden)
    compare(operator, z, net, schedule(3), reference="laplace", record_every=1, statistics=True)


@each_operator
@pytest.mark.parametrize("record_every", [2, *slow([0, 1, 5, 6])])
def test_what_is_recorded(operator: str, record_every: int, poisoned_empty: None) -> None:
    z, net = torch.randn(9, 4), network(4)
    compare(operator, z, net, schedule(5), reference="normal", record_every=record_every)


@each_operator
@pytest.mark.parametrize("rows", [0, 4])
def test_no_steps_and_no_chains(operator: str, rows: int, poisoned_empty: None) -> None:
    z, net = torch.randn(rows, 3), network(3)
    got = run(operator, z, net, schedule(0), "triton", record_every=1, statistics=True)
    assert torch.equal(got[0], z) and (rows == 0 or got[0].data_ptr() != z.data_ptr())
    assert got[1].shape == (0, rows, 3)
    assert all(torch.equal(t, torch.zeros(rows)) for t in got[3:])
    assert run(operator, z[:0], net, schedule(4), "triton", record_every=2)[1].shape == (2, 0, 3)


@each_operator
def test_a_chain_split_in_steps_is_the_same_to_the_bit(operator: str) -> None:
    z, net, table = torch.randn(9, 6), network(6), schedule(6)
    hold = {"reference": "laplace", "grad_clip": 1.0}
    whole = run(operator, z, net, table, "triton", **hold)[0]
    for k, stop in ((0, 2), (2, 6)):
        z = run(operator, z, net, table[k:stop], "triton", rng=stream(offset=3 + k), **hold)[0]
    assert torch.equal(z, whole)


@each_operator
def test_a_batch_can_be_split_anywhere(operator: str) -> None:
    """To rounding: the interpreter's product of matrices is BLAS, whose order of summation depends on a row's place."""
    z, net, table = torch.randn(70, 6), network(6), schedule(3)
    exact = run(operator, z, net, table, "reference", torch.float64)[0]
    whole = (run(operator, z, net, table, "triton")[0] - exact).norm(dim=1).max()
    for start, stop in ((0, 3), (3, 70)):
        part = run(operator, z[start:stop], net, table, "triton", rng=stream(first=5 + start))[0]
        assert (part - exact[start:stop]).norm(dim=1).max() <= 2.0 * whole


@each_operator
def test_what_is_recorded_changes_no_bit(operator: str) -> None:
    z, net = torch.randn(9, 4), network(4)
    chain = run(operator, z, net, schedule(5), "triton", record_every=1, statistics=True)
    assert torch.equal(chain[0], run(operator, z, net, schedule(5), "triton")[0])
    assert torch.equal(chain[1][-1], chain[0])


@pytest.mark.parametrize("dim", [3, 16, 40])
def test_the_noise_of_a_chain_is_that_of_draw(dim: int) -> None:
    table = torch.tensor([[0.0, 1.0, 0.0]])
    got = run("langevin", torch.zeros(5, dim), network(dim), table, "triton")[0]
    eps = ops.draw(stream(), 1, 5, dim, law="normal", purpose=noise.CHAIN_NOISE, backend="triton")[0]
    assert torch.equal(got, eps)


@each_operator
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_chain_that_is_lost_leaves_the_others_alone(operator: str, bad: float) -> None:
    z, net, hold = torch.randn(9, 4), network(4), {"reference": "normal", "bound": 2.0, "grad_clip": 1.0}
    kept = run(operator, z, net, schedule(4), "triton", **hold)[0]
    z[3, 1] = bad
    got = run(operator, z, net, schedule(4), "triton", **hold)[0]
    others = torch.arange(9) != 3
    assert torch.equal(got[others], kept[others]) and not got[3].isfinite().all()


def test_nan_energies_reject() -> None:
    weights, biases = network(4)
    biases[-1] = torch.full((1,), float("nan"))
    z = torch.randn(9, 4)
    got = run("mala", z, (weights, biases), schedule(4), "triton", statistics=True)
    assert torch.equal(got[0], z) and not got[6].any()


def test_without_noise_nothing_is_accepted() -> None:
    z, table = torch.randn(9, 4), torch.tensor([[0.1, 0.0, 1.0]]).repeat(3, 1)
    got = run("mala", z, network(4), table, "triton", statistics=True)
    assert torch.equal(got[0], z) and not got[6].any()


@each_hold
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (37, 11), (3, 70)])
def test_the_update_alone(hold: dict[str, Any], rows: int, dim: int, poisoned_empty: None) -> None:
    hold = {"reference": "none"} | {name: value for name, value in hold.items() if name != "bound"}
    z, grad, table, scale = torch.randn(rows, dim), torch.randn(rows, dim), schedule(4), torch.rand(dim) + 0.5
    got, plain, exact = (
        ops.langevin_update(
            z.to(dtype), grad.to(dtype), table, stream(), 2, reference_scale=scale.to(dtype), backend=backend, **hold
        )
        for backend, dtype in (
            ("triton", torch.float32),
            ("reference", torch.float32),
            ("reference", torch.float64),
        )
    )
    # Noise of two backends may differ by 2 ulp of its radius, at most 5.8, times b <= 0.7.
    apart = (got - exact).abs() <= 2.0 * (plain - exact).abs().max() + 0.7 * 2.0 * 2.0**-21
    assert apart.all()


def test_any_precision_may_be_asked_for() -> None:
    z, net = torch.randn(3, 4), network(4)
    exact = run("langevin", z, net, schedule(2), "triton", precision="fp32")[0]
    for precision in ("bf16x3", "bf16w2", "tf32", "bf16"):
        assert torch.equal(run("langevin", z, net, schedule(2), "triton", precision=precision)[0], exact)
