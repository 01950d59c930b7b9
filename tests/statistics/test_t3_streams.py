"""Tier 3: what a chain depends on, to the bit: its seed, its number and its step; and what no two of them share.

States are the same in any batch within one kernel variant. On `reference` a matrix product's order of summation
changes with the batch, so that there the batch is cut on energies without one: E = 0 and E = w . z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from .laws import seed, stream
from .targets import PURPOSES, Backend, Target, flat, linear, random_net

OPERATOR = "mala"
DIM = 19
ROWS = 101

Chains = Callable[[Tensor, Tensor, Tensor, int, bool], list[Tensor]]


def table(steps: int) -> Tensor:
    """A different (a, b, t) in every step."""
    k = torch.arange(steps, dtype=torch.float32)
    return torch.stack((0.02 + 0.01 * (k % 3), 0.2 + 0.05 * (k % 4), 1.5 - k / steps), dim=1)


def full(operator: str, backend: Backend) -> Chains:
    """(z, table, rng, record_every, statistics) -> the outputs of a chain with everything that holds it."""
    scale = torch.rand(DIM) + 0.5
    target = Target(random_net(DIM, (37, 21), "gelu", 3.0), "laplace", scale, 2.0, 1.0, (-4.0, 4.0))
    return lambda *call: list(getattr(backend, operator)(target, *call))


def in_any_batch(operator: str, backend: Backend) -> Chains:
    """The same, or on `reference` what no batch changes."""
    if backend.same_in_any_batch:
        return full(operator, backend)
    target = Target(linear(torch.randn(DIM))) if operator == "langevin" else Target(flat(DIM))
    return lambda *call: list(getattr(backend, operator)(target, *call))


def start(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, DIM)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


each_operator = pytest.mark.parametrize("operator", ["langevin", "mala"])


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# what changes no bit -------------------------------------------------------------------------------------------------


@each_operator
@pytest.mark.parametrize("size", [1, 16, 40, 100])
def test_a_batch_can_be_cut_anywhere(size: int, operator: str, backend: Backend) -> None:
    chain, z = in_any_batch(operator, backend), start()
    whole = chain(z, table(6), stream(30, first=2**32 - 50), 2, True)
    parts = [chain(z[i : i + size], table(6), stream(30, first=2**32 - 50 + i), 2, True) for i in range(0, ROWS, size)]
    compared = len(whole) if backend.same_in_any_batch else 2  # energies are a product's sums: states alone
    for n, expected in enumerate(whole[:compared]):
        along = 1 if n in (1, 2) else 0  # states and energies have the steps first
        assert torch.equal(torch.cat([part[n] for part in parts], along), expected)


@each_operator
@pytest.mark.parametrize("filling", [0.0, 1e30, float("nan")])
def test_rows_behind_it_change_no_chain(filling: float, operator: str, backend: Backend) -> None:
    chain, z = in_any_batch(operator, backend), start(35)
    padded = torch.cat((z, torch.full((30, DIM), filling)))
    assert torch.equal(
        chain(padded, table(6), stream(31), 0, False)[0][:35], chain(z, table(6), stream(31), 0, False)[0]
    )


@each_operator
@pytest.mark.parametrize("size", [1, 4, 9])
def test_steps_can_be_cut_anywhere(size: int, operator: str, backend: Backend) -> None:
    chain, z, coefficients = full(operator, backend), start(), table(20)
    whole = chain(z, coefficients, stream(32, offset=2**32 - 7), 0, False)[0]
    for k in range(0, 20, size):
        z = chain(z, coefficients[k : k + size], stream(32, offset=2**32 - 7 + k), 0, False)[0]
    assert torch.equal(z, whole)


@each_operator
def test_what_else_is_asked_for_changes_no_state(operator: str, backend: Backend) -> None:
    chain, z = full(operator, backend), start()
    plain = chain(z, table(12), stream(33), 0, False)
    states = chain(z, table(12), stream(33), 1, True)[1]
    assert torch.equal(states[-1], plain[0])
    for every in (1, 3, 5):
        for statistics in (False, True):
            got = chain(z, table(12), stream(33), every, statistics)
            assert torch.equal(got[0], plain[0]) and torch.equal(got[1], states[every - 1 :: every])


@each_operator
def test_threads_change_nothing(operator: str, backend: Backend, threads: Callable[[int], None]) -> None:
    chain, z = in_any_batch(operator, backend), start(700)
    results = []
    for n in (1, 2, 3):
        threads(n)
        results.append(chain(z, table(6), stream(34), 2, True))
    assert all(same(results[0], other) for other in results[1:])


@each_operator
def test_a_call_repeats_itself(operator: str, backend: Backend) -> None:
    chain, z = full(operator, backend), start()
    first = chain(z, table(6), stream(35), 2, True)
    chain(start(5), table(3), stream(36), 0, False)
    assert same(first, chain(z, table(6), stream(35), 2, True))


# what shares nothing -------------------------------------------------------------------------------------------------


def vectors(noise: Tensor) -> set[bytes]:
    """The noise vectors [.., d] by their bits. Chance makes two agree on 4 dims, which come of 94 bits, never here."""
    return {row.tobytes() for row in noise.reshape(-1, noise.shape[-1]).numpy()}


def distinct(*noises: Tensor) -> bool:
    """Whether no two vectors [.., d] are the same, within one or among all."""
    return len(set().union(*map(vectors, noises))) == sum(n.numel() // n.shape[-1] for n in noises)


def chain_noise(backend: Backend, number: int, offset: int = 0, first: int = 0, steps: int = 24) -> Tensor:
    return backend.chain_noise(stream(number, offset, first), steps, 40, 4)


def test_steps_and_chains_share_no_noise(backend: Backend) -> None:
    assert distinct(chain_noise(backend, 40))
    assert distinct(backend.draw(stream(40), 24, 40, 4))


def test_seeds_share_no_noise(backend: Backend) -> None:
    """Adjacent ones neither, over a window of steps and chains: neither is added to the seed."""
    assert distinct(*(chain_noise(backend, 40 + n) for n in (0, 1, 2, 17)))
    opposite = backend.chain_noise(torch.tensor([-seed(40) - 1, 0, 0]), 24, 40, 4)
    upper = backend.chain_noise(torch.tensor([seed(40) ^ 1 << 32, 0, 0]), 24, 40, 4)
    assert distinct(chain_noise(backend, 40), opposite, upper)


def test_calls_that_continue_share_no_noise(backend: Backend) -> None:
    one, next_one = chain_noise(backend, 41), chain_noise(backend, 41, offset=24)
    assert distinct(one, next_one)
    assert torch.equal(torch.cat((one, next_one)), chain_noise(backend, 41, steps=48))


def test_ranks_share_no_noise(backend: Backend) -> None:
    """The first chain of a rank is rank times the batch."""
    ranks = [chain_noise(backend, 42, first=40 * rank) for rank in range(3)]
    assert distinct(*ranks)
    assert torch.equal(torch.cat(ranks, 1), backend.chain_noise(stream(42), 24, 120, 4))


def test_far_steps_and_chains_share_no_noise(backend: Backend) -> None:
    """No bit of the counter is lost: 2^31, 2^32 and 2^47 steps or chains apart."""
    far = [chain_noise(backend, 43, offset=1 << n) for n in (31, 32, 33, 47)]
    assert distinct(chain_noise(backend, 43), *far, *(chain_noise(backend, 43, first=1 << n) for n in (31, 32, 33, 47)))


def test_purposes_share_no_noise(backend: Backend) -> None:
    for law in ("normal", "laplace"):
        assert distinct(*(backend.draw(stream(44), 24, 40, 4, law, purpose) for purpose in PURPOSES))


def test_dimensions_share_no_noise(backend: Backend) -> None:
    """No pair comes again: of a thousand, which come of 47 bits each, chance makes two agree once in 10^8."""
    for law in ("normal", "laplace"):
        assert distinct(backend.draw(stream(45), 2, 20, 48, law).unflatten(-1, (24, 2)))
