"""Noise and activations of the Triton kernels, under the interpreter, against the reference's words and float64.

The interpreter computes float32 as NumPy does. It has no inline assembly, so that what is compiled takes the hardware's
estimates of 1/x, 1/sqrt(x), 2^x and tanh where these tests see exact ones, and one instruction for both words of a
product: `test_compiled.py` sees that code, a GPU alone its numbers.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="backend triton cannot run here")
import triton.language as tl  # noqa: E402

from mmebm.kernels import ops  # noqa: E402
from mmebm.kernels.reference import noise  # noqa: E402
from mmebm.kernels.reference.activations import ACTIVATIONS  # noqa: E402
from mmebm.kernels.triton.activations import activate  # noqa: E402
from mmebm.kernels.triton.noise import laplace_unit, minus_log, normal_pair, philox4x32, uniform, words  # noqa: E402

pytestmark = pytest.mark.interpreted

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
    ((2499, 0, 0, 0), (20111115, 0), (None, None, None, 1955073260)),  # C++26 [rand.predef], its 10,000th value
]
STREAMS = [
    (0, 0, 0),
    (-1, 0, 0),
    (-(2**63), 5, 7),
    (2**63 - 1, 2**32 - 1, 2**32 - 2),
    (12345, 2**48 - 2, 2**48 - 3),
    (0x0123456789ABCDEF, -1, -2),
]
BOUNDARY = (0, 1, 511, 512, 2**23 - 1, 2**23, 2**24 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 1)


@triton.jit
def _philox(out_ptr, in_ptr):
    c0 = tl.load(in_ptr + tl.arange(0, 1)).to(tl.uint32)
    c1 = tl.load(in_ptr + 1 + tl.arange(0, 1)).to(tl.uint32)
    c2 = tl.load(in_ptr + 2 + tl.arange(0, 1)).to(tl.uint32)
    c3 = tl.load(in_ptr + 3 + tl.arange(0, 1)).to(tl.uint32)
    k0 = tl.load(in_ptr + 4).to(tl.uint32)
    k1 = tl.load(in_ptr + 5).to(tl.uint32)
    x0, x1, x2, x3 = philox4x32(c0, c1, c2, c3, k0, k1)
    tl.store(out_ptr + tl.arange(0, 1), x0.to(tl.int64))
    tl.store(out_ptr + 1 + tl.arange(0, 1), x1.to(tl.int64))
    tl.store(out_ptr + 2 + tl.arange(0, 1), x2.to(tl.int64))
    tl.store(out_ptr + 3 + tl.arange(0, 1), x3.to(tl.int64))


@triton.jit
def _words(out_ptr, rng_ptr, step, PURPOSE: tl.constexpr, ROWS: tl.constexpr, CALLS: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    q = tl.arange(0, CALLS)[None, :]
    chain = tl.load(rng_ptr + 2) + row
    x0, x1, x2, x3 = words(tl.load(rng_ptr), tl.load(rng_ptr + 1) + step, chain, PURPOSE, q)
    at = out_ptr + (row * CALLS + q) * 4
    tl.store(at, x0.to(tl.int64))
    tl.store(at + 1, x1.to(tl.int64))
    tl.store(at + 2, x2.to(tl.int64))
    tl.store(at + 3, x3.to(tl.int64))


@triton.jit
def _normals(out_ptr, x0_ptr, x1_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = normal_pair(tl.load(x0_ptr + i).to(tl.uint32), tl.load(x1_ptr + i).to(tl.uint32))
    tl.store(out_ptr + i, a)
    tl.store(out_ptr + N + i, b)


@triton.jit
def _laplace(out_ptr, x_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, laplace_unit(tl.load(x_ptr + i).to(tl.uint32)))


@triton.jit
def _minus_log_uniform(out_ptr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out_ptr + i, minus_log(uniform(i.to(tl.uint32) << 9)))


@triton.jit
def _activate(value_ptr, first_ptr, x_ptr, slope, N: tl.constexpr, ACTIVATION: tl.constexpr):
    i = tl.arange(0, N)
    value, first = activate(tl.load(x_ptr + i), slope, ACTIVATION, False)
    tl.store(value_ptr + i, value)
    tl.store(first_ptr + i, first)


def ulp(value: Tensor) -> Tensor:
    return torch.from_numpy(np.spacing(value.abs().float().numpy()).astype(np.float64))


def radius(x: Tensor) -> Tensor:
    return (-2.0 * ((x >> 9).double() * 2.0**-23 + 2.0**-24).log()).sqrt()


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int | None, ...], poisoned_empty: None
) -> None:
    out = torch.full((4,), -1)
    _philox[(1,)](out, torch.tensor([*counter, *key]))
    assert all(e is None or e == x for e, x in zip(expected, out.tolist(), strict=True))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("purpose", range(6))
def test_words_are_the_reference_words(stream: tuple[int, int, int], purpose: int) -> None:
    rows, dim, calls = 8, 62, 16
    for step in (0, 3):
        out = torch.full((rows, calls, 4), -1)
        _words[(1,)](out, torch.tensor(stream), step, purpose, rows, calls)
        assert torch.equal(out, noise.words(torch.tensor(stream), step + 1, rows, dim, purpose)[step])


def pairs(x0: Tensor, x1: Tensor) -> Tensor:
    out = torch.full((2, len(x0)), float("nan"))
    _normals[(1,)](out, x0, x1, len(x0))
    return out


def test_normals_lie_within_two_ulp_of_the_radius() -> None:
    x0, x1 = (torch.randint(1 << 32, (1 << 16,)) for _ in range(2))
    edges = torch.cartesian_prod(torch.tensor(BOUNDARY), torch.tensor(BOUNDARY))
    x0[: len(edges)], x1[: len(edges)] = edges.T
    error = (pairs(x0, x1).double() - torch.stack(noise.normal_pair(x0, x1))).abs()
    assert (error <= 2.0 * ulp(radius(x0))).all()


def test_quarter_turns_are_exact() -> None:
    a, b = pairs(torch.zeros(4, dtype=torch.int64), torch.arange(4) << 30)
    r = a[0].item()
    assert a.tolist() == [r, 0.0, -r, 0.0] and b.tolist() == [0.0, r, 0.0, -r]


def test_minus_log_of_every_uniform() -> None:
    out = torch.full((1 << 23,), float("nan"))
    _minus_log_uniform[(8,)](out, 1 << 20)
    exact = -(torch.arange(1 << 23).double() * 2.0**-23 + 2.0**-24).log()
    assert ((out.double() - exact).abs() <= ulp(exact)).all()
    assert out.min() >= 2.0**-24, "its square root is taken without a guard"


def test_laplace_draws_lie_within_two_ulp() -> None:
    x = torch.randint(1 << 32, (1 << 16,))
    x[: len(BOUNDARY)] = torch.tensor(BOUNDARY)
    out = torch.full((len(x),), float("nan"))
    _laplace[(1,)](out, x, len(x))
    exact = noise.laplace_unit(x)
    assert ((out.double() - exact).abs() <= 2.0 * ulp(exact)).all()
    assert torch.equal(out < 0, (x & 1).bool())


@pytest.mark.parametrize("law", ["normal", "laplace"])
@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 16, 17, 33, 70, 130])
def test_draws_stand_where_the_reference_puts_them(law: str, dim: int, poisoned_empty: None) -> None:
    rng, scale = torch.tensor([-5, 2**32 - 2, 2**48 - 30]), torch.rand(dim) + 0.5
    for options in ({}, {"scale": scale}):
        got, expected = (
            ops.draw(rng, 3, 67, dim, law=law, purpose=4, backend=backend, **options)
            for backend in ("triton", "reference")
        )
        # Two ulp of the radius, at most 5.8, or of the Laplace draw, at most 16.7, and half an ulp of the product.
        torch.testing.assert_close(got, expected, rtol=4e-7, atol=2e-6)


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3)])
def test_empty_draws(shape: tuple[int, int, int]) -> None:
    rng = torch.tensor([1, 2, 3])
    assert ops.draw(rng, *shape, law="normal", purpose=1, backend="triton").shape == shape


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_derivatives(name: str) -> None:
    x = torch.cat((torch.linspace(-30.0, 30.0, 4083), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-6, -1e-6])))
    x = torch.cat((x, torch.tensor([100.0, -100.0, 1e4, -1e4, 88.0, -88.0, 0.5])))
    value, first = (torch.full((4096,), float("nan")) for _ in range(2))
    _activate[(1,)](value, first, x, 0.07, 4096, name)
    exact = ACTIVATIONS[name]
    for got, expected in ((value, exact.value(x.double(), 0.07)), (first, exact.first(x.double(), 0.07))):
        # Two ulp of the larger of 1 and the value: what csrc/common/activation.hpp is within.
        assert ((got.double() - expected).abs() <= 2.0**-22 * expected.abs().clamp_min(1.0)).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_keep_what_is_not_a_number(name: str) -> None:
    x = torch.full((16,), float("nan"))
    value, first = torch.zeros(16), torch.zeros(16)
    _activate[(1,)](value, first, x, 0.07, 16, name)
    assert value.isnan().all()
