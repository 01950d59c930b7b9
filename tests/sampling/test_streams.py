"""Seeds, offsets and first chains: no two draws share a block of noise."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmebm.kernels.reference.noise import words
from mmebm.sampling import Stream
from mmebm.sampling.streams import choose, fresh_seed, rng_state


def blocks(rng: Tensor, steps: int, rows: int, dim: int = 20, purpose: int = 0) -> set[tuple[int, ...]]:
    """Philox outputs of four words; two of 2^128 agree by chance never."""
    return set(map(tuple, words(rng, steps, rows, dim, purpose).flatten(0, 2).tolist()))


def test_adjacent_seeds_share_no_words() -> None:
    """seed + step or seed + rank would: their streams are each other's, shifted."""
    seeds = [-1, 0, 1, 2, 3, 2**32 - 1, 2**32, 2**32 + 1]
    sets = [blocks(rng_state(seed), 8, 8) for seed in seeds]
    assert len(set().union(*sets)) == sum(map(len, sets)) == len(seeds) * 8 * 8 * 6


def test_purposes_share_no_words() -> None:
    sets = [blocks(rng_state(5), 4, 4, purpose=p) for p in range(6)]
    assert len(set().union(*sets)) == sum(map(len, sets))


def test_steps_and_chains_share_no_words() -> None:
    for low, other in itertools.product((0, 2**32 - 2, 2**48 - 2), repeat=2):
        assert len(blocks(rng_state(5, low, other), 4, 4)) == 4 * 4 * 6


def test_takes_never_overlap() -> None:
    stream = Stream(9, offset=4, first_chain=3)
    takes = [1, 5, 0, 2, 10]
    sets = [blocks(stream.take(n), n, 4) for n in takes]
    assert len(set().union(*sets)) == sum(takes) * 4 * 6
    assert stream.offset == 4 + sum(takes)
    assert set().union(*sets) == blocks(rng_state(9, 4, 3), sum(takes), 4)


def test_a_state_is_its_three_numbers() -> None:
    assert rng_state(7, 8, 9).tolist() == [7, 8, 9]
    assert rng_state(torch.tensor(7, dtype=torch.int32), 2**40, 9).tolist() == [7, 2**40, 9]
    assert rng_state(2**64 - 1).tolist() == rng_state(-1).tolist() == [-1, 0, 0]
    assert rng_state(2**63).tolist() == [-(2**63), 0, 0]


def test_torch_decides_where_no_seed_is_given() -> None:
    torch.manual_seed(3)
    first = [rng_state(None).tolist() for _ in range(2)]
    torch.manual_seed(3)
    assert [rng_state(None).tolist() for _ in range(2)] == first
    assert first[0] != first[1]
    states = [rng_state(None, generator=torch.Generator().manual_seed(s)).tolist() for s in (1, 1, 2)]
    assert states[0] == states[1] != states[2]


def test_fresh_seeds_use_all_bits() -> None:
    """Each of 64 bits is set in half of n seeds, at 5 standard errors."""
    n = 4000
    seeds = torch.stack([fresh_seed() for _ in range(n)])
    shares = torch.stack([(seeds >> bit & 1).double().mean() for bit in range(64)])
    assert ((shares - 0.5).abs() < 5.0 * 0.5 / math.sqrt(n)).all()


@pytest.mark.parametrize("bad", ["1", 1.0, True, torch.tensor(1.0), torch.tensor([1, 2])])
def test_bad_seeds_are_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"^seed: expected"):
        rng_state(bad)


def test_a_seed_and_a_generator_are_one_too_many() -> None:
    with pytest.raises(ValueError, match=r"^seed, generator: expected at most one"):
        rng_state(1, generator=torch.Generator())


@pytest.mark.parametrize("n", [1, 2, 7, 31])
def test_choices_are_uniform(n: int) -> None:
    """Chi-square below the value that a fair choice exceeds once in a million."""
    rows = 50_000
    picked = choose(rng_state(11, 2, 3), rows, n)
    assert picked.shape == (rows,) and picked.min() >= 0 and picked.max() < n
    counts = torch.bincount(picked, minlength=n).double()
    statistic = ((counts - rows / n) ** 2 / (rows / n)).sum()
    if n == 1:
        assert statistic == 0
    else:
        tail = torch.special.gammaincc(torch.tensor((n - 1) / 2.0, dtype=torch.float64), statistic / 2.0)
        assert tail > 1e-6


def test_choices_belong_to_step_and_chain() -> None:
    word = words(torch.tensor([11, 2, 3]), 1, 1000, 1, 3)[0, :, 0, 0]
    assert choose(rng_state(11, 2, 3), 1000, 7).tolist() == [int(w) * 7 // 2**32 for w in word]
    whole = choose(rng_state(11, 2, 3), 1000, 7)
    assert torch.equal(choose(rng_state(11, 2, 503), 500, 7), whole[500:])
    # independent draws agree in a seventh of the rows, at 5 standard errors
    agree = (choose(rng_state(11, 3, 3), 1000, 7) == whole).double().mean()
    assert abs(float(agree) - 1 / 7) < 5.0 * math.sqrt(1 / 7 * 6 / 7 / 1000)
