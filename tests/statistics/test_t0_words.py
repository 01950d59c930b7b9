"""Tier 0: the words of Philox4x32-10, bit for bit, and every backend's draws as transforms of just these words."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mmebm.kernels.reference import noise

from .laws import stream
from .targets import CHAIN_NOISE, PURPOSES, REFERENCE_DRAW, Backend, Target, flat

OPERATOR = "langevin"

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# Seeds of both signs; steps and chains about 0, 2^31, 2^32 and 2^48, where they wrap.
STREAMS = [
    (0, 0, 0),
    (1, 2**31 - 2, 2**31 - 2),
    (-1, 2**32 - 2, 2**32 - 3),
    (2**63 - 1, 2**48 - 2, 2**48 - 3),
    (-(2**63), -2, -3),
    (0x0123456789ABCDEF, 2**40 + 5, 2**47 - 1),
    (-0x0123456789ABCDEF, 2**33 - 1, 2**34 - 2),
]
each_law = pytest.mark.parametrize("law", ["normal", "laplace"])
each_stream = pytest.mark.parametrize("given", STREAMS)


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Salmon et al. (SC 2011), section 3.3, on Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def of_dims(words: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Words [.., calls, 4] -> radius and angle words of each dim's normal, and its own word, each [.., dim].

    Call 4 j + t gives 16 j + 2 t, 16 j + 2 t + 1, 16 j + 8 + 2 t, 16 j + 9 + 2 t.
    """
    place = {16 * j + 8 * h + 2 * t + i: (4 * j + t, 2 * h, i) for j, t, h, i in np.ndindex(3, 4, 2, 2)}
    picked = [place[d] for d in range(dim)]
    radius = torch.stack([words[..., q, pair] for q, pair, _ in picked], -1)
    angle = torch.stack([words[..., q, pair + 1] for q, pair, _ in picked], -1)
    return radius, angle, torch.stack([words[..., q, pair + i] for q, pair, i in picked], -1)


def log_uniform(x: Tensor) -> Tensor:
    return ((x >> 9).double() * 2.0**-23 + 2.0**-24).log()


def ulp(value: Tensor) -> Tensor:
    """Of float32, at value."""
    return torch.from_numpy(np.spacing(value.abs().float().numpy()).astype(np.float64))


def transform(words: Tensor, dim: int, law: str) -> tuple[Tensor, Tensor]:
    """float64 draws [.., dim] and the tolerance of each: 2 ulp of r for normals, of the value for Laplace."""
    x0, x1, own = of_dims(words, dim)
    if law == "laplace":
        value = -log_uniform(own) * (1 - 2 * (own & 1))
        return value, 2.0 * ulp(value)
    r, turn = (-2.0 * log_uniform(x0)).sqrt(), (x1 >> 8).double() * 2.0**-24
    angle = 2.0 * math.pi * turn
    even = torch.arange(dim) % 2 == 0
    return torch.where(even, r * angle.cos(), r * angle.sin()), 2.0 * ulp(r)


# the words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert philox(counter, key) == expected
    words = noise.philox4x32([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert tuple(w.item() for w in words) == expected


def test_the_ten_thousandth_value_of_std_philox4x32() -> None:
    """C++26 [rand.predef]: of the engine seeded with 20111115."""
    assert philox((2499, 0, 0, 0), (20111115, 0))[3] == 1955073260


@each_stream
def test_the_layout_of_the_counter(given: tuple[int, int, int]) -> None:
    seed, offset, first = given
    for purpose in PURPOSES:
        words = noise.words(torch.tensor(given), 4, 5, 33, purpose)
        assert words.shape == (4, 5, 9, 4)
        for s, i, q in np.ndindex(4, 5, 9):
            step, chain, key = (offset + s) % 2**48, (first + i) % 2**48, seed % 2**64
            counter = (chain % 2**32, step % 2**32, purpose << 24 | q, (step >> 32) << 16 | chain >> 32)
            assert tuple(words[s, i, q].tolist()) == philox(counter, (key % 2**32, key >> 32))


# draws ---------------------------------------------------------------------------------------------------------------


@each_law
@each_stream
def test_draws_are_transforms_of_the_words(given: tuple[int, int, int], law: str, backend: Backend) -> None:
    for dim in (1, 2, 7, 8, 9, 16, 17, 33):
        for purpose in PURPOSES:
            words = noise.words(torch.tensor(given), 4, 5, dim, purpose)
            expected, tolerance = transform(words, dim, law)
            got = backend.draw(torch.tensor(given), 4, 5, dim, law, purpose).double()
            assert ((got - expected).abs() <= tolerance).all()


@each_law
def test_half_a_million_draws_are_transforms_of_the_words(law: str, backend: Backend) -> None:
    rng, rows, dim = stream(1), 2**19 // 33, 33
    expected, tolerance = transform(noise.words(rng, 1, rows, dim, REFERENCE_DRAW), dim, law)
    got = backend.draw(rng, 1, rows, dim, law, REFERENCE_DRAW).double()
    assert ((got - expected).abs() <= tolerance).all()


@each_law
def test_the_first_known_answer_reaches_the_draws(law: str, backend: Backend) -> None:
    """Counter 0 and key 0: chain noise of seed 0, step 0, chain 0."""
    words = torch.zeros(4, 4, dtype=torch.int64)
    words[0] = torch.tensor(KNOWN[0][2])
    expected, tolerance = transform(words, 10, law)
    error = (backend.draw(torch.tensor([0, 0, 0]), 1, 1, 10, law, CHAIN_NOISE)[0, 0].double() - expected).abs()
    assert (error <= tolerance)[[0, 1, 8, 9]].all()


# Found by search: chains whose chain noise of seed 0 and step 0, call 0, has the least or the largest u in that word.
EXTREMES = [(14883995, 0, 0), (10639176, 2, 0), (4826271, 0, 2**23 - 1), (2330056, 2, 2**23 - 1)]


@pytest.mark.parametrize(("chain", "word", "magnitude"), EXTREMES)
def test_the_least_and_the_largest_uniform(chain: int, word: int, magnitude: int, backend: Backend) -> None:
    """u = 2^-24 and 1 - 2^-24, never 0 or 1: what comes of them is finite, not 0 and right, in draws and in a chain."""
    rng, dim, pair = torch.tensor([0, 0, chain]), 10, 4 * word + torch.arange(2)
    words = noise.words(rng, 1, 1, dim, CHAIN_NOISE)
    assert words[0, 0, 0, word] >> 9 == magnitude
    radius = math.sqrt(-2.0 * math.log(magnitude * 2.0**-23 + 2.0**-24))
    for law in ("normal", "laplace"):
        expected, tolerance = transform(words, dim, law)
        got = backend.draw(rng, 1, 1, dim, law, CHAIN_NOISE)
        assert ((got.double() - expected).abs() <= tolerance).all()
        if law == "normal":
            assert math.isclose(float(got[0, 0, pair].norm()), radius, rel_tol=1e-6)
            assert torch.equal(backend.chain_noise(rng, 1, 1, dim), got)


# chains --------------------------------------------------------------------------------------------------------------


@each_stream
@pytest.mark.parametrize("dim", [1, 9, 16, 33])
def test_a_chain_without_energy_is_its_noise(dim: int, given: tuple[int, int, int], backend: Backend) -> None:
    """From 0 with a = 0, b = 1: purpose 0 of the backend's own draws, to the bit, at every step and chain."""
    rng, rows, steps = torch.tensor(given), 45, 5
    eps, zero = backend.draw(rng, steps, rows, dim), torch.zeros(rows, dim)
    table = torch.tensor([[0.0, 1.0, 1.0]])
    for k in range(steps):
        assert torch.equal(backend.langevin(Target(flat(dim)), zero, table, rng + torch.tensor([0, k, 0])).z, eps[k])
    assert torch.equal(backend.chain_noise(rng, steps, rows, dim), eps)
