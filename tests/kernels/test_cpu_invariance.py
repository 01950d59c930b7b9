"""What changes no bit of a result: threads, the cut of a batch, what else is asked for, what was there before."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mmebm.kernels import native
from mmebm.kernels.reference import MLP, Constraints, noise

if not native.available():
    pytest.skip("the native CPU module cannot be loaded", allow_module_level=True)
from mmebm.kernels import _cpu

ISAS = native.build_info()["isas"]
THREADS = (1, 2, 3, 5)
DIM = 19
STREAM = (-7, 2**32 - 3, 2**32 - 20)  # steps and chains cross 32 bits


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MMEBM_ISA", request.param)
    return request.param


@pytest.fixture
def threads() -> Any:
    """torch.set_num_threads, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def network(dim: int = DIM, hidden: tuple[int, ...] = (37, 21), activation: str = "gelu") -> MLP:
    widths = (dim, *hidden, 1)
    weights = [torch.randn(n, m) / math.sqrt(m) for m, n in pairwise(widths)]
    return MLP(weights, [torch.randn(n) for n in widths[1:]], activation, 0.2, 3.0)


def flat(dim: int) -> MLP:
    """E = 0."""
    return MLP([torch.zeros(1, dim)], [torch.zeros(1)], "silu", 0.0, None)


def hold(dim: int = DIM, reference: str = "laplace") -> Constraints:
    return Constraints(reference, torch.linspace(0.5, 1.5, dim), 0.7, -2.5, 2.5)


def table(steps: int = 6) -> Tensor:
    k = torch.arange(steps, dtype=torch.float32)
    return torch.stack((0.02 + 0.01 * k, 0.2 + 0.05 * (k % 3), 1.5 - 0.1 * k), dim=1)


def stream(first: int = 0) -> Tensor:
    return torch.tensor(STREAM) + torch.tensor([0, 0, first])


# By rows: z [B, d] and its first chain -> tensors, with the dimension that runs over the batch.
def calls(net: MLP) -> dict[str, Callable[[Tensor, int], list[tuple[Tensor, int]]]]:
    def chain(kernel: Callable[..., Any]) -> Callable[[Tensor, int], list[tuple[Tensor, int]]]:
        def run(z: Tensor, first: int) -> list[tuple[Tensor, int]]:
            out = kernel(z, net, table(), stream(first), hold(), 2, True)
            return [(t, 1 if name in ("states", "energies") else 0) for name, t in out._asdict().items()]

        return run

    def update(z: Tensor, first: int) -> list[tuple[Tensor, int]]:
        return [(native.langevin_update(z, z.flip(1), table(), stream(first), 4, hold()), 0)]

    def draw(law: str, steps: int) -> Callable[[Tensor, int], list[tuple[Tensor, int]]]:
        return lambda z, first: [(native.draw(stream(first), steps, len(z), z.shape[1], law, 4), 1)]

    return {
        "langevin": chain(native.langevin),
        "mala": chain(native.mala),
        "energy": lambda z, _: [(native.energy(z, net), 0)],
        "energy_and_grad": lambda z, _: [(t, 0) for t in native.energy_and_grad(z, net)],
        "langevin_update": update,
        "draw_normal": draw("normal", 3),
        "draw_laplace": draw("laplace", 3),
        "dz": lambda z, _: [(native.energy_backward(z[:, 0], z, net)[0], 0)],
    }


CALLS = tuple(calls(network()))
each_call = pytest.mark.parametrize("name", CALLS)


def same(a: list[tuple[Tensor, int]], b: list[tuple[Tensor, int]]) -> bool:
    return all(torch.equal(x, y) for (x, _), (y, _) in zip(a, b, strict=True))


# threads and batches -------------------------------------------------------------------------------------------------


@each_call
@pytest.mark.parametrize("rows", [1, 97, 700])
def test_threads_change_nothing(name: str, rows: int, isa: str, threads: Callable[[int], None]) -> None:
    call, z = calls(network())[name], torch.randn(rows, DIM)
    results = []
    for n in THREADS:
        threads(n)
        results.append(call(z, 11))
    assert all(t.isfinite().all() for t, _ in results[0])
    assert all(same(results[0], other) for other in results[1:])


@pytest.mark.parametrize("rows", [1, 97, 700])
@pytest.mark.parametrize("hidden", [(), (37, 21)], ids=str)
def test_threads_change_no_gradient_of_a_parameter(
    hidden: tuple[int, ...], rows: int, isa: str, threads: Callable[[int], None]
) -> None:
    net, z, g = network(hidden=hidden), torch.randn(rows, DIM), torch.randn(rows)
    results = []
    for n in THREADS:
        threads(n)
        dz, d_weights, d_biases = native.energy_backward(g, z, net)
        results.append([dz, *d_weights, *d_biases])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_large_draws_and_updates_are_shared_among_threads(isa: str, threads: Callable[[int], None]) -> None:
    """Small ones stay on the calling thread, so that the test above says little of them."""
    z = torch.randn(20_000, 33)
    results = []
    for n in THREADS:
        threads(n)
        draws = [native.draw(stream(), 2, 20_000, 33, law, 1) for law in ("normal", "laplace")]
        results.append([*draws, native.langevin_update(z, z.flip(0), table(), stream(), 5, hold(33))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@each_call
def test_a_batch_can_be_cut_anywhere(name: str, isa: str, threads: Callable[[int], None]) -> None:
    call, z = calls(network())[name], torch.randn(97, DIM)
    threads(1)
    whole = call(z, 0)
    for n in (1, 3):
        threads(n)
        for size in (1, 5, 16, 33, 97):
            parts = [call(z[i : i + size], i) for i in range(0, 97, size)]
            for n_th, (expected, dim) in enumerate(whole):
                assert torch.equal(torch.cat([part[n_th][0] for part in parts], dim), expected)


@pytest.mark.parametrize("kernel", [native.langevin, native.mala], ids=lambda k: k.__name__)
def test_what_else_is_asked_for_changes_no_state(kernel: Callable[..., Any], isa: str) -> None:
    z = torch.randn(50, DIM)
    for bound in (None, 3.0):
        for clip in (None, 0.7):
            arguments = network()._replace(bound=bound), table(), stream(), hold()._replace(grad_clip=clip)
            plain = kernel(z, *arguments, 0, False)
            full = kernel(z, *arguments, 1, True)
            assert torch.equal(plain.z, full.z) and torch.equal(full.states[-1], full.z)
            assert torch.equal(kernel(z, *arguments, 4, False).states[0], full.states[3])


def test_strides_change_nothing(isa: str) -> None:
    net, z = network(), torch.randn(60, DIM)
    spread = net._replace(
        weights=[w.repeat_interleave(2, 1)[:, ::2] for w in net.weights],
        biases=[torch.stack((b, b), 1)[:, 0] for b in net.biases],
    )
    assert not any(w.is_contiguous() for w in spread.weights)
    for name, call in calls(net).items():
        assert same(call(z, 3), calls(spread)[name](z.T.contiguous().T, 3)), name


# noise ---------------------------------------------------------------------------------------------------------------

STREAMS = [STREAM, (0, 0, 0), (2**63 - 1, 2**48 - 2, 2**48 - 5), (-(2**63), -2, -3)]


def compiled_words(given: tuple[int, int, int], steps: int, rows: int, dim: int, purpose: int) -> Tensor:
    """int64 [steps, rows, calls, 4], computed one counter at a time."""
    out = torch.zeros(steps, rows, noise.calls(dim), 4, dtype=torch.int32)
    _cpu.words(out.data_ptr(), steps, rows, dim, *given, purpose)
    return out.long() & 0xFFFFFFFF


@pytest.mark.parametrize("given", STREAMS)
def test_lanes_use_the_words_of_the_reference(given: tuple[int, int, int], isa: str) -> None:
    """A Laplace draw tells its word but for one bit in nine, a pair of normals theirs."""
    steps, rows, dim = 3, 45, 21
    for purpose in range(6):
        words = compiled_words(given, steps, rows, dim, purpose)
        assert torch.equal(words, noise.words(torch.tensor(given), steps, rows, dim, purpose))
        laplace = words.flatten().apply_(lambda x: float_bits(_cpu.laplace_unit(x)))
        expected = noise._to_dims(laplace.view(words.shape), dim)
        drawn = native.draw(torch.tensor(given), steps, rows, dim, "laplace", purpose)
        assert torch.equal(drawn.view(torch.int32).long(), expected)


def float_bits(x: float) -> int:
    return int(torch.tensor(x).view(torch.int32))


@pytest.mark.parametrize("given", STREAMS)
@pytest.mark.parametrize("dim", [1, 9, 16, 37])
def test_a_chain_without_energy_is_its_noise(dim: int, given: tuple[int, int, int], isa: str) -> None:
    rng, rows, steps = torch.tensor(given), 45, 6
    free = Constraints("none", torch.ones(dim), None, None, None)
    coefficients = torch.tensor([0.0, 1.0, 1.0])
    eps = native.draw(rng, steps, rows, dim, "normal", 0)
    zero = torch.zeros(rows, dim)
    for k in range(steps):
        at = rng + torch.tensor([0, k, 0])
        moved = native.langevin(zero, flat(dim), coefficients.view(1, 3), at, free).z
        assert torch.equal(moved, eps[k])
        assert torch.equal(native.mala(zero, flat(dim), coefficients.view(1, 3), at, free).z, eps[k])
        assert torch.equal(native.langevin_update(zero, zero, coefficients.expand(steps, 3), rng, k, free), eps[k])
    # Sums of normals round: only the first step of a longer chain is its noise to the bit.
    states = native.langevin(zero, flat(dim), coefficients.expand(steps, 3), rng, free, 1).states
    assert torch.equal(states[0], eps[0])
    torch.testing.assert_close(states.double(), eps.double().cumsum(0), rtol=1e-6, atol=1e-5, check_dtype=False)


def test_instruction_sets_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []
    for name in ISAS:
        monkeypatch.setenv("MMEBM_ISA", name)
        draws.append([native.draw(stream(), 3, 333, 33, law, 1) for law in ("normal", "laplace")])
    assert all(torch.equal(a, b) for other in draws[1:] for a, b in zip(draws[0], other, strict=True))


@pytest.mark.parametrize("given", STREAMS)
def test_decisions_use_the_words_of_the_reference(given: tuple[int, int, int], isa: str) -> None:
    """On a slope of 1, log alpha is what the proposal climbs, less what the drift owes: decided by ln u."""
    rng, rows, steps = torch.tensor(given), 45, 8
    net = MLP([torch.ones(1, 1)], [torch.zeros(1)], "silu", 0.0, None)
    free = Constraints("none", torch.ones(1), None, None, None)
    z, coefficients = torch.zeros(rows, 1), torch.tensor([[0.0, 1.0, 1.0]])
    eps, threshold = native.draw(rng, steps, rows, 1, "normal", 0)[..., 0], noise.log_uniform(rng, steps, rows)
    for k in range(steps):
        end = native.mala(z, net, coefficients, rng + torch.tensor([0, k, 0]), free).z[:, 0]
        clear = (threshold[k] + eps[k]).abs() > 1e-5
        assert torch.equal((end != 0)[clear], (threshold[k] < -eps[k])[clear])
        assert clear.sum() >= rows - 1


# weights -------------------------------------------------------------------------------------------------------------


def adam(net: MLP) -> None:
    parameters = [torch.nn.Parameter(t) for t in (*net.weights, *net.biases)]  # they share the memory
    optimiser = torch.optim.Adam(parameters, lr=0.1, fused=True)
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimiser.step()


def through_data(net: MLP) -> None:
    for w in net.weights:
        w.data.mul_(1.5)


def in_inference_mode(net: MLP) -> None:
    with torch.inference_mode():
        for w in net.weights:
            w.detach().add_(0.1)


def behind_torch(net: MLP) -> None:
    versions = [w._version for w in net.weights]
    for w in net.weights:
        w.numpy()[...] *= -1.0
    assert [w._version for w in net.weights] == versions


def one_bias(net: MLP) -> None:
    net.biases[-1].add_(1.0)


@pytest.mark.parametrize(
    "change", [adam, through_data, in_inference_mode, behind_torch, one_bias], ids=lambda c: c.__name__
)
def test_weights_changed_in_place_are_seen(change: Callable[[MLP], None]) -> None:
    """Nothing of a network is kept from one call to the next: a cache would need more than `_version` to be right."""
    net, z, g = network(), torch.randn(50, DIM), torch.randn(50)
    run = calls(net)
    names = ("energy", "energy_and_grad", "dz", "langevin", "mala")
    before = {name: run[name](z, 0) for name in names}
    change(net)
    copied = net._replace(weights=[w.clone() for w in net.weights], biases=[b.clone() for b in net.biases])
    for name in names:
        after = run[name](z, 0)
        if change is not one_bias or name.startswith("energy"):
            assert not same(after, before[name]), name
        assert same(after, calls(copied)[name](z, 0)), name
    got, expected = (native.energy_backward(g, z, n)[1] for n in (net, copied))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_network_that_takes_anothers_place_is_seen() -> None:
    """The same addresses, another shape: no call may tell a network by where it lies."""
    memory = torch.randn(40 * 40 + 40)
    z = torch.randn(30, 10)
    for hidden in (40, 12, 25):
        weights = [memory[: 10 * hidden].view(hidden, 10), memory[:hidden].view(1, hidden)]
        biases = [memory[:hidden], memory[:1]]
        net = MLP(weights, biases, "tanh", 0.0, None)
        copied = net._replace(weights=[w.clone() for w in weights], biases=[b.clone() for b in biases])
        assert torch.equal(native.energy(z, net), native.energy(z, copied))


# instruction sets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["sse9", "AVX2", "avx2 ", "neon", ""])
@each_call
def test_an_instruction_set_the_machine_lacks_is_named(name: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, z = calls(network())[name], torch.randn(4, DIM)
    monkeypatch.setenv("MMEBM_ISA", wanted)
    with pytest.raises(ValueError, match=rf"isa: expected auto or one of base.*, got {wanted}$"):
        call(z, 0)


def test_the_instruction_set_in_use_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ISAS:
        monkeypatch.setenv("MMEBM_ISA", name)
        assert native.isa() == name
    for auto in ("auto", None):
        monkeypatch.setenv("MMEBM_ISA", auto) if auto else monkeypatch.delenv("MMEBM_ISA")
        assert native.isa() == ISAS[-1]
