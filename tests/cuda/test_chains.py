"""`langevin` and `mala` of the CUDA backend, their kernels' bodies run on the host, against the float64 reference.

At fp32, and at the precisions that round products' operands to bf16: those may lose twice what PyTorch loses with
operands rounded in the same way (bench/gpu/emulate.py). What emulation cannot see is listed in csrc/cuda/simt.hpp.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.gpu import emulate
from mmebm.kernels import reference
from mmebm.kernels.cuda import chains as by_cuda
from mmebm.kernels.reference.activations import ACTIVATIONS

from .. import chains
from ..chain_tests import ChainTests, each_operator
from ..chains import FREE, HOLDS, Parts, network, run, schedule, stream
from ..slow import slow

pytestmark = pytest.mark.usefixtures("emulated")

CPU = torch.device("cpu")
compare = functools.partial(chains.compare, "cuda")
each_hold = pytest.mark.parametrize("hold", [*slow(HOLDS[:-2]), *HOLDS[-2:]], ids=lambda h: "-".join(h) or "free")
SHAPES = [
    (1, 1, (1,)),
    (5, 17, (33, 20)),
    (70, 8, (7,)),
    (40, 33, (10, 20, 40)),
    (20, 64, (64, 64, 64)),
    (17, 100, (70, 130)),
    (3, 300, (16,)),
]


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


each_activation = pytest.mark.parametrize("activation", ["silu", *slow(a for a in ACTIVATIONS if a != "silu")])


@each_operator
@each_activation
def test_activations(operator: str, activation: str, poisoned_empty: None) -> None:
    z, net = torch.randn(20, 5), network(5)
    compare(operator, z, net, schedule(3), activation=activation, slope=0.07, reference="normal", statistics=True)


@each_operator
@pytest.mark.parametrize(("rows", "dim", "hidden"), SHAPES)
def test_shapes(operator: str, rows: int, dim: int, hidden: tuple[int, ...], poisoned_empty: None) -> None:
    z, net = torch.randn(rows, dim), network(dim, hidden)
    compare(operator, z, net, schedule(3), reference="laplace", record_every=1, statistics=True)


@each_operator
@pytest.mark.parametrize("record_every", [2, *slow([0, 1, 5, 6])])
def test_what_is_recorded(operator: str, record_every: int, poisoned_empty: None) -> None:
    z, net = torch.randn(9, 4), network(4)
    compare(operator, z, net, schedule(5), reference="normal", record_every=record_every)


@each_operator
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_can_be_split_anywhere_to_the_bit(operator: str, precision: str) -> None:
    z, net, table = torch.randn(70, 6), network(6), schedule(3)
    whole = run(operator, z, net, table, "cuda", precision=precision)[0]
    for start, stop in ((0, 3), (3, 70)):
        part = run(operator, z[start:stop], net, table, "cuda", rng=stream(first=5 + start), precision=precision)[0]
        assert torch.equal(part, whole[start:stop])


def rounded(z: Tensor, net: Parts, table: Tensor, precision: str, activation: str = "silu") -> list[Tensor]:
    """States and energies of Langevin steps in plain PyTorch, in z's dtype, with products' operands rounded."""
    weights, biases = ([p.to(z.dtype) for p in parts] for parts in net)
    mlp = reference.MLP(weights, biases, activation, 0.07, None)
    eps, found = reference.draw(stream(), len(table), *z.shape, "normal", 0).to(z.dtype), []
    for (a, b, t), by in zip(table.to(z.dtype), eps, strict=True):
        z = z - a * (t * emulate.energy_and_grad(z, mlp, precision)[1] + z.sign()) + b * by
        found.append((z, emulate.energy_and_grad(z, mlp, precision)[0]))
    states, energies = zip(*found, strict=True)
    return [torch.stack(states), torch.stack(energies)]


@pytest.mark.parametrize("precision", ["bf16", "bf16w2", "bf16x3", "tf32"])
@pytest.mark.parametrize(("rows", "dim", "hidden"), SHAPES[:-1])
def test_precisions(precision: str, rows: int, dim: int, hidden: tuple[int, ...], poisoned_empty: None) -> None:
    z, net, table = torch.randn(rows, dim), network(dim, hidden), schedule(3)
    hold = {"reference": "laplace", "reference_scale": torch.ones(dim)}
    got = run("langevin", z, net, table, "cuda", record_every=1, precision=precision, **hold)
    same, exact = rounded(z, net, table, precision), rounded(z.double(), net, table, "fp32")
    for g, s, e in zip(got[1:3], same, exact, strict=True):
        assert (g - e).norm() <= 2.0 * max((s - e).norm(), 2.0**-22 * e.norm())


@pytest.fixture(params=["warp", "wgmma"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(by_cuda, "_variant", lambda *call: request.param)
    return str(request.param)


def warps(variant: str, z: Tensor, net: Parts, table: Tensor, precision: str, **options: Any) -> None:
    """States and energies of every step, within twice what plain PyTorch loses with products' operands in bf16."""
    hold = {"reference": "laplace", "reference_scale": torch.ones(z.shape[1])}
    got = run("langevin", z, net, table, "cuda", record_every=1, precision=precision, **hold, **options)
    activation = options.get("activation", "silu")
    same = rounded(z, net, table, precision, activation)
    exact = rounded(z.double(), net, table, "fp32", activation)
    for g, s, e in zip(got[1:3], same, exact, strict=True):
        assert (g - e).norm() <= 2.0 * max((s - e).norm(), 2.0**-22 * e.norm())


@pytest.mark.parametrize("precision", ["bf16", "bf16w2", "bf16x3", "fp32"])
@pytest.mark.parametrize(
    ("rows", "dim", "hidden"),
    [(1, 1, (1,)), (70, 33, (64, 50)), *slow([(130, 9, (10, 128, 40)), (40, 64, (65, 20))]), (17, 32, (200, 130))],
)
def test_chains_by_warps(
    variant: str, precision: str, rows: int, dim: int, hidden: tuple[int, ...], poisoned_empty: None
) -> None:
    z, net, table = torch.randn(rows, dim), network(dim, hidden), schedule(3)
    held = by_cuda._bytes(variant, (dim, *hidden), precision, False) > 0
    assert held == (precision == "bf16" if variant == "wgmma" else max(hidden) <= 128)
    if not held:
        return
    if precision == "fp32":
        compare("langevin", z, net, table, reference="laplace", record_every=1, statistics=True)
    else:
        warps(variant, z, net, table, precision)


@each_hold
def test_holds_by_warps(hold: dict[str, Any], monkeypatch: pytest.MonkeyPatch, poisoned_empty: None) -> None:
    monkeypatch.setattr(by_cuda, "_variant", lambda *call: "warp")
    z, net, table = torch.randn(40, 11).clamp(-1.8, 1.8), network(11, gain=24.0), schedule(6)
    compare("langevin", z, net, table, record_every=2, statistics=True, **hold)


@each_activation
def test_activations_by_warps(variant: str, activation: str, poisoned_empty: None) -> None:
    z, net, table = torch.randn(40, 5), network(5), schedule(3)
    warps(variant, z, net, table, "bf16", activation=activation, slope=0.07)
    if variant == "warp":
        compare("langevin", z, net, table, activation=activation, slope=0.07, reference="normal", statistics=True)


def test_a_batch_by_warps_can_be_split_anywhere_to_the_bit(variant: str) -> None:
    z, net, table = torch.randn(150, 6), network(6), schedule(3)
    whole = run("langevin", z, net, table, "cuda", precision="bf16")[0]
    for start, stop in ((0, 3), (3, 150)):
        part = run("langevin", z[start:stop], net, table, "cuda", rng=stream(first=5 + start), precision="bf16")[0]
        assert torch.equal(part, whole[start:stop])


@each_operator
@pytest.mark.parametrize("precision", ["fp32", *slow(["bf16", "bf16w2", "bf16x3"])])
@pytest.mark.parametrize(
    ("rows", "dim", "hidden"), [(5, 17, (33, 20)), *slow([(20, 3, (16,)), (17, 40, (70, 9, 130))])]
)
def test_weights_that_come_in_every_step_change_no_bit(
    operator: str, precision: str, rows: int, dim: int, hidden: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    z, net, table = torch.randn(rows, dim), network(dim, hidden), schedule(3)
    hold = {"reference": "laplace", "bound": 2.0, "precision": precision, "record_every": 1, "statistics": True}
    kept = run(operator, z, net, table, "cuda", **hold)
    monkeypatch.setattr(by_cuda, "_variant", lambda *call: "streamed")
    for a, b in zip(run(operator, z, net, table, "cuda", **hold), kept, strict=True):
        assert torch.equal(a, b)


def test_what_serves_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def serves(dim: int, *hidden: int, precision: str = "bf16", adjusted: bool = False) -> list[str]:
        return by_cuda.variants(reference.MLP(*network(dim, hidden), "silu", 0.0, None, precision), CPU, adjusted)

    assert serves(32, 128, 128) == ["wgmma", "warp", "block"]
    assert serves(32, 128, 128, precision="bf16x3") == ["warp", "block"]
    assert serves(32, 128, 128, adjusted=True) == ["block"]
    assert serves(32, 256, 256) == ["wgmma", "block"]
    assert serves(100, 200, 200) == ["block"]
    assert serves(100, 200, 200, precision="fp32") == ["streamed"]
    assert serves(64, 512, 512) == []
    monkeypatch.setattr(by_cuda, "_HOST_BYTES", 163 * 1024)  # an A100's, which has no wgmma
    by_cuda._variants.cache_clear()
    assert serves(32, 128, 128)[1:] == ["warp", "block"] and serves(32, 256, 256) == ["streamed"]
    by_cuda._variants.cache_clear()


def test_what_does_not_fit_is_told() -> None:
    z = torch.randn(2, 4)
    with pytest.raises(ValueError, match="mmebm::langevin: a block takes networks of 1 to 3 hidden layers, this one"):
        run("langevin", z, network(4, (3, 3, 3, 3)), schedule(1), "cuda")
    with pytest.raises(ValueError, match=r"a block has 232448 bytes of shared memory, the network needs \d+ at"):
        run("langevin", z, network(4, (512, 512)), schedule(1), "cuda")


class TestChains(ChainTests):
    backend = "cuda"
