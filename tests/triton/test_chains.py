"""`langevin`, `mala` and `langevin_update` of the Triton backend, under the interpreter, against the float64 reference.

What the interpreter cannot see: bfloat16 (it computes it wrongly, without an error: calls run as fp32 here whatever is
asked), tf32 (computed as float32), inline assembly (it raises: there are plain formulas for it), layouts and what a
compiler makes of them, races and shared memory. `test_compiled.py` reads the machine code; numbers of the reduced
precisions need a GPU.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="backend triton cannot run here")

from mmebm.kernels import ops
from mmebm.kernels.reference.activations import ACTIVATIONS

from .. import chains
from ..chain_tests import ChainTests, each_operator
from ..chains import FREE, HOLDS, network, run, schedule, stream
from ..slow import slow

pytestmark = pytest.mark.interpreted

each_hold = pytest.mark.parametrize("hold", [*slow(HOLDS[:-2]), *HOLDS[-2:]], ids=lambda h: "-".join(h) or "free")
compare = functools.partial(chains.compare, "triton")


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
def test_a_batch_can_be_split_anywhere(operator: str) -> None:
    """To rounding: the interpreter's product of matrices is BLAS, whose order of summation depends on a row's place."""
    z, net, table = torch.randn(70, 6), network(6), schedule(3)
    exact = run(operator, z, net, table, "reference", torch.float64)[0]
    whole = (run(operator, z, net, table, "triton")[0] - exact).norm(dim=1).max()
    for start, stop in ((0, 3), (3, 70)):
        part = run(operator, z[start:stop], net, table, "triton", rng=stream(first=5 + start))[0]
        assert (part - exact[start:stop]).norm(dim=1).max() <= 2.0 * whole


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


class TestChains(ChainTests):
    backend = "triton"
