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
from mmebm.kernels.reference import noise
from mmebm.kernels.reference.activations import ACTIVATIONS

from .. import chains
from ..chains import FREE, HOLDS, network, run, schedule, stream
from ..slow import slow

pytestmark = pytest.mark.interpreted

each_hold = pytest.mark.parametrize("hold", [*slow(HOLDS[:-2]), *HOLDS[-2:]], ids=lambda h: "-".join(h) or "free")
each_operator = pytest.mark.parametrize("operator", ["langevin", "mala"])
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
