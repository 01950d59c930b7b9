"""Hostile sizes for the compiled CPU kernels: nothing, one of everything, more than 2^31, and more than there is."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor

from mmebm.kernels import native, ops, reference
from mmebm.kernels.reference import MLP, Constraints

if not native.available():
    pytest.skip("the native CPU module cannot be loaded", allow_module_level=True)

ISAS = native.build_info()["isas"]
RNG = torch.tensor([5, 6, 7])
TOO_MUCH = r"memory|overflow"  # torch's allocator, torch's size arithmetic


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


def network(dim: int, *hidden: int) -> MLP:
    weights = [torch.randn(n, m) / math.sqrt(m) for m, n in pairwise((dim, *hidden, 1))]
    return MLP(weights, [torch.randn(len(w)) for w in weights], "silu", 0.0, None)


def held(dim: int) -> Constraints:
    return Constraints("normal", torch.ones(dim), 1.0, -3.0, 3.0)


def table(steps: int) -> Tensor:
    return torch.tensor([[0.02, 0.2, 1.0]]).repeat(steps, 1)


def close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4)


# Around the widths of a vector and of a register tile, on every instruction set.
DIMS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 513)
ROWS = (1, 2, 4, 5, 8, 9, 12, 16, 17, 24, 25, 32, 33, 48, 49)


@pytest.mark.parametrize("hidden", [(), (1,), (6, 1), (9, 8, 7, 5)], ids=str)
def test_every_width_of_a_tile(hidden: tuple[int, ...], isa: str, poisoned_empty: None) -> None:
    for dim, rows in product(DIMS, ROWS):
        net, z, g = network(dim, *hidden), torch.randn(rows, dim), torch.randn(rows)
        energy, grad = native.energy_and_grad(z, net)
        expected = reference.energy_and_grad(z, net)
        close(energy, expected[0])
        close(grad, expected[1])
        dz, d_weights, d_biases = native.energy_backward(g, z, net)
        right = reference.energy_backward(g, z, net)
        for a, b in zip((dz, *d_weights, *d_biases), (right[0], *right[1], *right[2]), strict=True):
            close(a, b)


@pytest.mark.parametrize("hidden", [(), (1,), (9, 5)], ids=str)
def test_chains_of_every_width(hidden: tuple[int, ...], isa: str, poisoned_empty: None) -> None:
    for dim, rows in product((1, 2, 7, 9, 16, 33, 513), (1, 3, 8, 17, 33, 49)):
        net, z = network(dim, *hidden), torch.randn(rows, dim)
        arguments = z, net, table(2), RNG, held(dim), 1, True
        for got, expected in zip(native.langevin(*arguments), reference.langevin(*arguments), strict=True):
            close(got, expected)
        assert all(t.isfinite().all() for t in native.mala(*arguments))
        _, grad = native.energy_and_grad(z, net)
        close(
            native.langevin_update(z, grad, table(2), RNG, 1, held(dim)),
            reference.langevin_update(z, grad, table(2), RNG, 1, held(dim)),
        )
        assert native.draw(RNG, 2, rows, dim, "laplace", 1).isfinite().all()


def test_nothing_to_do(isa: str, poisoned_empty: None) -> None:
    net, z = network(5, 4), torch.zeros(0, 5)
    assert native.energy(z, net).shape == (0,)
    assert [t.shape for t in native.energy_and_grad(z, net)] == [(0,), (0, 5)]
    dz, d_weights, d_biases = native.energy_backward(torch.zeros(0), z, net)
    assert dz.shape == (0, 5) and not any(t.any() for t in (*d_weights, *d_biases))
    for kernel in (native.langevin, native.mala):
        none = kernel(z, net, table(3), RNG, held(5), 1, True)
        assert none.z.shape == (0, 5) and none.states.shape == (3, 0, 5) and none.mean_energy.shape == (0,)
        start = torch.randn(7, 5)
        still = kernel(start, net, table(0), RNG, held(5), 1, True)
        assert torch.equal(still.z, start) and still.states.shape == (0, 7, 5) and not still.mean_energy.any()
        kept = kernel(start, net, table(3), RNG, held(5), 4, False)
        assert kept.states.shape == (0, 7, 5)
    assert native.langevin_update(z, z, table(1), RNG, 0, held(5)).shape == (0, 5)
    assert native.draw(RNG, 0, 4, 3, "normal", 0).shape == (0, 4, 3)
    assert native.draw(RNG, 4, 0, 3, "normal", 0).shape == (4, 0, 3)


def test_more_layers_than_there_is_room_for(isa: str) -> None:
    z = torch.randn(9, 3)
    deepest = network(3, *[4] * 32)
    close(native.energy(z, deepest), reference.energy(z, deepest))
    for got, expected in zip(native.energy_and_grad(z, deepest), reference.energy_and_grad(z, deepest), strict=True):
        close(got, expected)
    with pytest.raises(ValueError, match="weights: expected at most 33 linear layers, got 34"):
        native.energy(z, network(3, *[4] * 33))


def test_one_row_for_many(isa: str) -> None:
    """A stride of 0, in z as in weights."""
    net, z = network(6, 5), torch.randn(1, 6)
    many = native.energy(z.expand(100, 6), net)
    assert torch.equal(many, native.energy(z, net).expand(100))
    flat = MLP([torch.ones(1, 1).expand(5, 6), torch.ones(1, 1).expand(1, 5)], net.biases, "silu", 0.0, None)
    close(native.energy(z, flat), reference.energy(z, flat))
    ends = native.langevin(z.expand(100, 6), net, table(3), RNG, held(6)).z
    assert torch.equal(ends, native.langevin(z.repeat(100, 1), net, table(3), RNG, held(6)).z)


# too much ------------------------------------------------------------------------------------------------------------


def test_what_no_machine_can_hold_is_an_allocation_error() -> None:
    """Sizes whose products leave 32 bits, and 64: nothing may be computed of a wrapped size."""
    for steps, rows in ((1 << 20, 1 << 20), (1 << 40, 1 << 40)):
        with pytest.raises(RuntimeError, match=TOO_MUCH):
            ops.draw(RNG, steps, rows, 1 << 20, law="normal", purpose=1, backend="cpu")
    net, z = network(513, 4), torch.zeros(1, 513).expand(1 << 10, 513)
    for kernel in (native.langevin, native.mala):
        with pytest.raises(RuntimeError, match=TOO_MUCH):  # 2^41 floats of states
            kernel(z, net, table(1).expand(1 << 22, 3), RNG, held(513), 1, False)
        with pytest.raises(RuntimeError, match=TOO_MUCH):
            kernel(z[:1, :1].expand(1 << 40, 513), net, table(1), RNG, held(513), 0, False)
    with pytest.raises(RuntimeError, match=TOO_MUCH):
        native.energy(torch.zeros(1, 1).expand(1 << 40, 513), net)


OUT_OF_MEMORY = """
import resource, sys
import torch
from mmebm.kernels import native
from mmebm.kernels.reference import MLP, Constraints
dim, rows = 1 << 22, 12
z = torch.zeros(rows, dim)
net = MLP([torch.zeros(1, dim)], [torch.zeros(1)], "silu", 0.0, None)
hold = Constraints("none", torch.ones(dim), None, None, None)
table, rng = torch.zeros(1, 3), torch.tensor([1, 2, 3])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29),) * 2)
calls = {
    "energy": lambda: native.energy(z, net),
    "energy_backward": lambda: native.energy_backward(z[:, 0], z, net),
    "langevin": lambda: native.langevin(z, net, table, rng, hold),
    "mala": lambda: native.mala(z, net, table, rng, hold),
    "langevin_update": lambda: native.langevin_update(z, z, table, rng, 0, hold),
}
for threads in (2, 1):
    torch.set_num_threads(threads)
    try:
        calls[sys.argv[1]]()
    except MemoryError:
        print("MemoryError")
    except RuntimeError as error:  # torch's own
        print("memory" in str(error) and "MemoryError")
print(torch.equal(native.energy(z[:, :3], MLP([torch.ones(1, 3)], net.biases, "silu", 0.0, None)), torch.zeros(rows)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.parametrize("name", ["energy", "energy_backward", "langevin", "mala", "langevin_update"])
def test_scratch_that_cannot_be_had_is_a_memory_error(name: str) -> None:
    """And no end of the process: an exception may not leave a parallel region."""
    run = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY, name], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["MemoryError", "MemoryError", "True"]


@pytest.fixture(scope="module")
def beyond_31_bits() -> Iterator[Tensor]:
    """z [2^22 + 9, 512] of zeros that take no memory until they are written."""
    yield torch.from_numpy(np.zeros(((1 << 22) + 9, 512), dtype=np.float32))


@pytest.mark.slow
def test_elements_past_2_to_the_31st(beyond_31_bits: Tensor, isa: str) -> None:
    """They are read where they lie: an index of 32 bits would find a zero."""
    z = beyond_31_bits
    assert z.numel() > 2**31
    tail = torch.randn(9, 512)
    z[-9:] = tail
    net = network(512)
    energy = native.energy(z, net)
    close(energy[-9:], native.energy(tail, net))
    assert torch.equal(energy[:-9], net.biases[0].expand(1 << 22))
