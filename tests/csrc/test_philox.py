"""The noise contract: compiled words against the reference bit for bit, transforms against its float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mmebm.kernels import native
from mmebm.kernels.reference import noise

if not native.available():
    pytest.skip("the native CPU module cannot be loaded", allow_module_level=True)
from mmebm.kernels import _cpu

LAWS = {"normal": 0, "laplace": 1}
BOUNDARY = (0, 1, 511, 512, 2**23 - 1, 2**23, 2**24 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 1)

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
STREAMS = [
    (0, 0, 0),
    (-1, 0, 0),
    (-(2**63), 5, 7),
    (2**63 - 1, 2**32 - 1, 2**32 - 2),
    (12345, 2**48 - 2, 2**48 - 3),
    (0x0123456789ABCDEF, -1, -2),
]


def compiled_words(stream: tuple[int, int, int], steps: int, rows: int, dim: int, purpose: int) -> Tensor:
    calls = sum(16 * (q // 4) + 2 * (q % 4) < dim for q in range(dim + 4))
    out = np.zeros((steps, rows, calls, 4), dtype=np.uint32)
    _cpu.words(out.ctypes.data, steps, rows, dim, *stream, purpose)
    return torch.from_numpy(out.astype(np.int64))


def compiled_draw(
    stream: tuple[int, int, int], steps: int, rows: int, dim: int, law: str, threads: int = 1, isa: str = "auto"
) -> Tensor:
    out = torch.full((steps, rows, dim), float("nan"))
    _cpu.draw(out.data_ptr(), 0, steps, rows, dim, *stream, LAWS[law], 1, threads, isa)
    return out


def radius(x: Tensor) -> Tensor:
    return (-2 * ((x >> 9).double() * 2.0**-23 + 2.0**-24).log()).sqrt()


def ulp(value: Tensor) -> Tensor:
    return torch.from_numpy(np.spacing(value.abs().float().numpy()).astype(np.float64))


def words_of_dims(words: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """[..., calls, 4] -> for every dim the word pair of its normal and its own word, each [..., dim]."""
    pairs: list[Tensor] = []
    own: list[Tensor] = []
    for d in range(dim):
        call = words[..., 4 * (d // 16) + d % 8 // 2, :]
        first = 2 * (d % 16 // 8)
        pairs.append(call[..., first : first + 2])
        own.append(call[..., first + d % 2])
    pair = torch.stack(pairs, dim=-2)
    return pair[..., 0], pair[..., 1], torch.stack(own, dim=-1)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert _cpu.philox4x32(*counter, *key) == expected
    words = noise.philox4x32([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert tuple(w.item() for w in words) == expected


def test_the_ten_thousandth_value_of_std_philox4x32() -> None:
    """C++26 [rand.predef]: of the engine seeded with 20111115."""
    assert _cpu.philox4x32(2499, 0, 0, 0, 20111115, 0)[3] == 1955073260


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 16, 17, 33])
def test_words_are_the_reference_words(stream: tuple[int, int, int], dim: int) -> None:
    for purpose in range(6):
        expected = noise.words(torch.tensor(stream), 4, 5, dim, purpose)
        assert torch.equal(compiled_words(stream, 4, 5, dim, purpose), expected)


def test_the_counter_layout() -> None:
    seed, offset, chain, purpose = -3, 2**32 - 1, 2**40 - 1, 4
    words = compiled_words((seed, offset, chain), 2, 2, 33, purpose)
    unsigned = seed % 2**64
    for s in range(2):
        for i in range(2):
            for q in range(9):
                step, row = offset + s, chain + i
                counter = (row % 2**32, step % 2**32, purpose << 24 | q, (step >> 32) << 16 | row >> 32)
                assert tuple(words[s, i, q].tolist()) == _cpu.philox4x32(*counter, unsigned % 2**32, unsigned >> 32)


def test_normals_at_boundary_words() -> None:
    for x0 in BOUNDARY:
        for x1 in BOUNDARY:
            got = torch.tensor(_cpu.normal_pair(x0, x1), dtype=torch.float64)
            expected = torch.stack(noise.normal_pair(torch.tensor(x0), torch.tensor(x1)))
            assert (got - expected).abs().max() <= 2 * ulp(radius(torch.tensor([x0]))), (x0, x1)


def test_quarter_turns_are_exact() -> None:
    r = _cpu.normal_pair(0, 0)[0]
    turns = [_cpu.normal_pair(0, quarter << 30) for quarter in range(4)]
    assert turns == [(r, 0.0), (0.0, r), (-r, 0.0), (0.0, -r)]


def test_laplace_at_boundary_words() -> None:
    for x in BOUNDARY:
        expected = noise.laplace_unit(torch.tensor([x]))
        got = torch.tensor([_cpu.laplace_unit(x)], dtype=torch.float64)
        assert (got - expected).abs() <= 2 * ulp(expected), x
        assert (got < 0) == bool(x & 1)


def check_normals(rows: int, dim: int, isa: str) -> None:
    stream = (20240917, 3, 11)
    x0, x1, _ = words_of_dims(noise.words(torch.tensor(stream), 1, rows, dim, 1), dim)
    cosine, sine = noise.normal_pair(x0, x1)
    expected = torch.where(torch.arange(dim) % 2 == 0, cosine, sine)
    error = (compiled_draw(stream, 1, rows, dim, "normal", isa=isa).double() - expected).abs()
    assert (error / ulp(radius(x0))).max() <= 2


def check_laplace(rows: int, dim: int, isa: str) -> None:
    stream = (-5, 2**32 - 1, 2**47)
    expected = noise.laplace_unit(words_of_dims(noise.words(torch.tensor(stream), 1, rows, dim, 1), dim)[2])
    error = (compiled_draw(stream, 1, rows, dim, "laplace", isa=isa).double() - expected).abs()
    assert (error / ulp(expected)).max() <= 2


def test_a_million_normals() -> None:
    check_normals(2**20 // 33, 33, "auto")


def test_a_million_laplace_draws() -> None:
    check_laplace(2**20 // 33, 33, "auto")


@pytest.mark.slow
@pytest.mark.parametrize("isa", _cpu.build_info()["isas"])
def test_many_draws_on_every_instruction_set(isa: str) -> None:
    check_normals(2**18, 48, isa)
    check_laplace(2**18, 48, isa)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 16, 17, 33])
def test_draws_follow_the_reference_on_odd_shapes(law: str, dim: int) -> None:
    for stream in STREAMS:
        expected = noise.draw(torch.tensor(stream), 3, 5, dim, law, 1)
        torch.testing.assert_close(compiled_draw(stream, 3, 5, dim, law), expected, rtol=4e-7, atol=2e-6)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dim", [3, 16, 33])
def test_neither_threads_nor_instruction_sets_change_a_bit(law: str, dim: int) -> None:
    stream = (9, 2**32 - 2, 2**48 - 100)
    expected = compiled_draw(stream, 3, 5000, dim, law)
    assert expected.isfinite().all()
    for isa in _cpu.build_info()["isas"]:
        for threads in (1, 2, 3, 7):
            assert torch.equal(compiled_draw(stream, 3, 5000, dim, law, threads, isa), expected)


@pytest.mark.parametrize("law", LAWS)
def test_batches_and_steps_split_anywhere(law: str) -> None:
    whole = compiled_draw((4, 10, 20), 6, 101, 19, law)
    for cut in (1, 50, 64, 100):
        parts = [compiled_draw((4, 10, 20 + i), 6, n, 19, law) for i, n in ((0, cut), (cut, 101 - cut))]
        assert torch.equal(torch.cat(parts, dim=1), whole)
    parts = [compiled_draw((4, 10 + s, 20), n, 101, 19, law) for s, n in ((0, 2), (2, 4))]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (2, 3, 0)])
def test_empty_shapes(shape: tuple[int, int, int]) -> None:
    assert compiled_draw((0, 0, 0), *shape, "normal").shape == shape
    assert compiled_words((0, 0, 0), *shape, 0).numel() == 0


def test_an_unknown_instruction_set_is_named() -> None:
    with pytest.raises(ValueError, match=r"isa: expected auto or one of base.*, got sse9"):
        compiled_draw((0, 0, 0), 1, 1, 1, "normal", isa="sse9")


@pytest.mark.parametrize("law", LAWS)
def test_distribution(law: str) -> None:
    """Moments within 5 standard errors; the largest deviation of the distribution function within the
    Dvoretzky-Kiefer-Wolfowitz bound at 1e-9."""
    x = compiled_draw((1, 0, 0), 40, 1000, 25, law).double()
    n = x.numel()
    variance, fourth = (1, 3) if law == "normal" else (2, 24)
    eighth = 105 if law == "normal" else math.factorial(8)
    assert abs(x.mean()) <= 5 * math.sqrt(variance / n)
    assert abs((x**2).mean() - variance) <= 5 * math.sqrt((fourth - variance**2) / n)
    assert abs((x**4).mean() - fourth) <= 5 * math.sqrt((eighth - fourth**2) / n)
    assert abs((x**3).mean()) <= 5 * math.sqrt((15 if law == "normal" else math.factorial(6)) / n)

    ordered = x.flatten().sort().values
    if law == "normal":
        cdf = torch.special.ndtr(ordered)
    else:
        cdf = torch.where(ordered < 0, ordered.exp() / 2, 1 - (-ordered).exp() / 2)
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    deviation = torch.maximum((cdf - ranks[:-1]).abs().max(), (cdf - ranks[1:]).abs().max())
    assert deviation <= math.sqrt(math.log(2e9) / (2 * n))


@pytest.mark.parametrize("law", LAWS)
def test_neighbours_are_uncorrelated(law: str) -> None:
    x = compiled_draw((2, 0, 0), 40, 500, 32, law).double() / (1 if law == "normal" else math.sqrt(2))
    for axis, size in enumerate(x.shape):
        for lag in (1, 2, 8):
            product = x.narrow(axis, 0, size - lag) * x.narrow(axis, lag, size - lag)
            assert abs(product.mean()) <= 5 / math.sqrt(product.numel())


def test_purposes_are_different_streams() -> None:
    words = [compiled_words((1, 2, 3), 2, 3, 16, purpose) for purpose in range(6)]
    assert len({tuple(w.flatten().tolist()) for w in words}) == 6
