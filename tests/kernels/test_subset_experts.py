"""`subset_experts` against products multiplied out subset by subset, torch.distributions, and the choice's words."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from mmebm.kernels import dispatch, ops
from mmebm.kernels.reference import noise

CPU = torch.device("cpu")
BACKENDS = [b for b in dispatch.BACKENDS if dispatch.unsupported(b, "subset_experts", CPU, torch.float32) is None]
PRIORS = ("never", "always", "full")
CHOICE = 3
EPS = torch.finfo(torch.float32).eps
EXPERTS, ROWS, DIM = 3, 8, 5
MASKS = torch.arange(ROWS)  # every subset of three experts, none first

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_prior = pytest.mark.parametrize("prior", PRIORS)
each_mode = pytest.mark.parametrize("mode", ["all", "one", "kl"])


def experts(
    count: int = EXPERTS, rows: int = ROWS, dim: int = DIM, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """mu and logvar [M, B, d]."""
    return torch.randn(count, rows, dim, dtype=dtype), 1.5 * torch.randn(count, rows, dim, dtype=dtype)


def stream(seed: int = 7, offset: int = 3, first: int = 5) -> Tensor:
    return torch.tensor([seed, offset, first])


def multiplied(mu: Tensor, logvar: Tensor, masks: Tensor, prior: str) -> tuple[Tensor, Tensor]:
    """The product over the experts of masks [B], row by row and in mu's dtype."""
    rows = []
    for b, mask in enumerate(masks.tolist()):
        chosen = [m for m in range(len(mu)) if mask >> m & 1]
        means, logvars = [mu[m, b] for m in chosen], [logvar[m, b] for m in chosen]
        if prior == "always" or (prior == "full" and len(chosen) == len(mu)) or not chosen:
            means.append(mu.new_zeros(mu.shape[2]))
            logvars.append(mu.new_zeros(mu.shape[2]))
        minus = -torch.stack(logvars)
        rows.append(((torch.softmax(minus, 0) * torch.stack(means)).sum(0), -torch.logsumexp(minus, 0)))
    means, logvars = zip(*rows, strict=True)
    return torch.stack(means), torch.stack(logvars)


def transcription(mode: str, mu: Tensor, logvar: Tensor, present: Tensor, prior: str, subset: Tensor) -> list[Tensor]:
    """What the mode gives that has a gradient: mu and logvar, or the KL."""
    if mode == "one":
        return list(multiplied(mu, logvar, subset & present, prior))
    products = [multiplied(mu, logvar, s & present, prior) for s in range(1, 1 << len(mu))]
    means, logvars = (torch.stack(t) for t in zip(*products, strict=True))
    if mode == "all":
        return [means, logvars]
    q = Independent(Normal(means, (0.5 * logvars).exp()), 1)
    return [kl_divergence(q, Independent(Normal(torch.zeros_like(means), torch.ones_like(means)), 1))]


def call(mode: str, mu: Tensor, logvar: Tensor, present: Tensor, subset: Tensor, **options: Any) -> list[Tensor]:
    """The same of the operator, whose other outputs must be empty."""
    given = subset if mode == "one" else None
    out = ops.subset_experts(mu, logvar, present, mode=mode, subset=given, **options)
    assert (out.subset.numel() > 0) == (mode == "one" and len(present) > 0)
    if mode == "kl":
        assert out.mu.numel() == out.logvar.numel() == 0
        return [out.kl]
    assert out.kl.numel() == 0
    return [out.mu, out.logvar]


def leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in tensors]


def cotangents(mode: str, count: int, rows: int, dim: int) -> list[Tensor]:
    subsets = (1 << count) - 1
    if mode == "kl":
        return [torch.randn(subsets, rows)]
    return [torch.randn(subsets, rows, dim) if mode == "all" else torch.randn(rows, dim) for _ in range(2)]


def with_gradients(value: list[Tensor], args: list[Tensor], g: list[Tensor]) -> list[Tensor]:
    total = sum((x.to(v.dtype) * v).sum() for x, v in zip(g, value, strict=True))
    return [*(v.detach() for v in value), *torch.autograd.grad(total, args)]


@each_mode
@each_prior
@pytest.mark.parametrize("dim", [1, 7, 64, 65])
def test_float64_agrees_with_the_products_multiplied_out(mode: str, prior: str, dim: int) -> None:
    mu, logvar = experts(dim=dim)
    subset = torch.randint(8, (ROWS,))
    got = call(mode, mu, logvar, MASKS, subset, prior=prior)
    for value, right in zip(got, transcription(mode, mu, logvar, MASKS, prior, subset), strict=True):
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, right)


@each_backend
@each_mode
@each_prior
@pytest.mark.parametrize("dim", [1, 65])
def test_float32_loses_no_more_than_pytorch_does(dim: int, prior: str, mode: str, backend: str) -> None:
    mu, logvar = experts(4, 32, dim, torch.float32)
    present, subset, g = torch.arange(32) % 16, torch.randint(16, (32,)), cotangents(mode, 4, 32, dim)
    args, plain, exact = leaves(mu, logvar), leaves(mu, logvar), leaves(mu, logvar, dtype=torch.float64)
    got = with_gradients(call(mode, *args, present, subset, prior=prior, backend=backend), args, g)
    ordinary = with_gradients(transcription(mode, *plain, present, prior, subset), plain, g)
    truth = with_gradients(transcription(mode, *exact, present, prior, subset), exact, g)
    for value, other, right in zip(got, ordinary, truth, strict=True):
        assert value.dtype == torch.float32
        assert (value - right).norm() <= 2.0 * (other - right).norm() + 2.0 * EPS * right.norm()


@each_mode
@each_prior
def test_gradients(mode: str, prior: str) -> None:
    mu, logvar = leaves(*experts(rows=4, dim=2))
    present, subset = torch.tensor([7, 5, 2, 0]), torch.tensor([3, 7, 2, 1])

    def outputs(mu: Tensor, logvar: Tensor) -> tuple[Tensor, ...]:
        return tuple(call(mode, mu, logvar, present, subset, prior=prior))

    assert torch.autograd.gradcheck(outputs, (mu, logvar))
    assert torch.autograd.gradcheck(lambda *a: outputs(*a)[-1], (mu, logvar))
    assert torch.autograd.gradcheck(lambda m: outputs(m, logvar.detach()), (mu,))
    assert torch.autograd.gradcheck(lambda lv: outputs(mu.detach(), lv), (logvar,))


@each_backend
@each_prior
def test_modes_agree(prior: str, backend: str) -> None:
    mu, logvar = experts(dtype=torch.float32)
    options: dict[str, Any] = {"prior": prior, "backend": backend}
    every = ops.subset_experts(mu, logvar, MASKS, mode="all", **options)
    kl = ops.subset_experts(mu, logvar, MASKS, mode="kl", **options).kl
    for s in range(1, 8):
        one = ops.subset_experts(mu, logvar, MASKS, mode="one", subset=torch.full((ROWS,), s), **options)
        product = ops.product_of_experts(mu, logvar, MASKS & s, **options)
        assert torch.equal(one.subset, MASKS & s)
        for got in ((every.mu[s - 1], every.logvar[s - 1]), product):
            torch.testing.assert_close((one.mu, one.logvar), got)
        expected = 0.5 * (one.logvar.double().exp() + one.mu.double() ** 2 - 1.0 - one.logvar.double()).sum(1)
        torch.testing.assert_close(kl[s - 1], expected.float())


@each_backend
@each_mode
@each_prior
def test_absent_experts_may_hold_anything(prior: str, mode: str, backend: str) -> None:
    good, g = experts(dtype=torch.float32), cotangents(mode, EXPERTS, ROWS, DIM)
    absent = (MASKS >> torch.arange(EXPERTS).unsqueeze(1) & 1) == 0  # [M, B]
    subset, expected = torch.randint(8, (ROWS,)), None
    for junk in (0.0, math.nan, math.inf, -math.inf, 3e38):
        args = leaves(*good)
        with torch.no_grad():
            for t in args:
                t[absent] = junk
        found = with_gradients(call(mode, *args, MASKS, subset, prior=prior, backend=backend), args, g)
        expected = found if expected is None else expected
        for a, b in zip(found, expected, strict=True):
            assert torch.isfinite(a).all() and torch.equal(a, b)


@each_backend
@each_prior
def test_experts_of_any_width(prior: str, backend: str) -> None:
    mu = torch.randn(4, 16, 6)
    logvar = torch.tensor([-200.0, 200.0, -80.0, 3.0])[torch.randint(4, (4, 16, 6))]
    present, g = torch.arange(16), cotangents("all", 4, 16, 6)
    args, exact = leaves(mu, logvar), leaves(mu, logvar, dtype=torch.float64)
    got = with_gradients(call("all", *args, present, present, prior=prior, backend=backend), args, g)
    truth = with_gradients(transcription("all", *exact, present, prior, present), exact, g)
    for value, right in zip(got, truth, strict=True):
        assert torch.isfinite(value).all()
        torch.testing.assert_close(value, right.float(), rtol=1e-5, atol=1e-5)
    logvar = logvar.clamp_max(3.0)  # above 88 the divergence itself is beyond float32
    args, exact, g = leaves(mu, logvar), leaves(mu, logvar, dtype=torch.float64), cotangents("kl", 4, 16, 6)
    got = with_gradients(call("kl", *args, present, present, prior=prior, backend=backend), args, g)
    truth = with_gradients(transcription("kl", *exact, present, prior, present), exact, g)
    for value, right in zip(got, truth, strict=True):
        torch.testing.assert_close(value, right.float(), rtol=1e-5, atol=1e-4)


@each_backend
@each_mode
@each_prior
def test_an_empty_subset_is_the_standard_normal(prior: str, mode: str, backend: str) -> None:
    """Nothing of s is in the row: mean 0, variance 1, no divergence and no gradient."""
    args = leaves(*experts(dtype=torch.float32))
    present = torch.full((ROWS,), 4)
    value = call(mode, *args, present, torch.full((ROWS,), 3), prior=prior, backend=backend)
    empty = [v if mode == "one" else v[:3] for v in value]
    assert all(v.shape[0] in (3, ROWS) and not v.any() for v in empty)
    assert not any(g.any() for g in torch.autograd.grad(sum(v.sum() for v in empty), args))


@each_backend
@each_mode
@pytest.mark.parametrize(("count", "rows", "dim"), [(1, 0, 3), (1, 1, 1), (3, 0, 5), (2, 1, 65)])
def test_small_shapes(count: int, rows: int, dim: int, mode: str, backend: str) -> None:
    args = leaves(*experts(count, rows, dim, torch.float32))
    present = subset = torch.full((rows,), (1 << count) - 1)
    value, g = call(mode, *args, present, subset, backend=backend), cotangents(mode, count, rows, dim)
    assert [v.shape for v in value] == [x.shape for x in g]
    got = with_gradients(value, args, g)
    assert got[-1].shape == got[-2].shape == (count, rows, dim)
    if rows:
        exact = leaves(*args, dtype=torch.float64)
        truth = with_gradients(transcription(mode, *exact, present, "never", subset), exact, g)
        for a, b in zip(got, truth, strict=True):
            torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5)


@each_backend
@each_mode
def test_layout_does_not_matter(mode: str, backend: str) -> None:
    mu, logvar = experts(dtype=torch.float32)
    odd = [t.permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_() for t in (mu, logvar)]
    present, subset = torch.stack((MASKS, MASKS.flip(0)), 1).unbind(1)
    g = cotangents(mode, EXPERTS, ROWS, DIM)
    swapped = [x.mT.contiguous().mT for x in g]
    assert not odd[0].is_contiguous() and not present.is_contiguous() and not swapped[0].is_contiguous()
    strided = with_gradients(call(mode, *odd, present, subset, backend=backend), odd, swapped)
    dense = leaves(mu, logvar)
    value = call(mode, *dense, present.contiguous(), subset.contiguous(), backend=backend)
    for a, b in zip(strided, with_gradients(value, dense, g), strict=True):
        assert torch.equal(a, b)


@each_backend
@each_mode
def test_unmasked_rows_have_everything(mode: str, backend: str) -> None:
    mu, logvar = experts(dtype=torch.float32)
    everything = torch.full((ROWS,), 7)
    beyond = 1 << 3 | 1 << 62  # bits from M on say nothing
    given, padded = ({"subset": MASKS}, {"subset": MASKS | beyond}) if mode == "one" else ({}, {})
    a = ops.subset_experts(mu, logvar, mode=mode, backend=backend, **given)
    for mask in (everything, everything | beyond, torch.full((ROWS,), -1)):
        b = ops.subset_experts(mu, logvar, mask, mode=mode, backend=backend, **padded)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@each_backend
def test_the_most_experts(backend: str) -> None:
    """Sixteen: 65535 subsets, some of them looked at."""
    args = leaves(*experts(16, 2, 3, torch.float32))
    present = torch.tensor([0xFFFF, 0xA5F0])
    every = ops.subset_experts(*args, present, prior="full", backend=backend)
    kl = ops.subset_experts(*args, present, mode="kl", prior="full", backend=backend).kl
    assert every.mu.shape == (65535, 2, 3) and kl.shape == (65535, 2)
    for s in (1, 0x8000, 0x1234, 0xFFFE, 0xFFFF):
        mean, lv = multiplied(*(t.detach().double() for t in args), s & present, "full")
        torch.testing.assert_close((every.mu[s - 1], every.logvar[s - 1]), (mean.float(), lv.float()))
        torch.testing.assert_close(kl[s - 1], (0.5 * (lv.exp() + mean * mean - 1.0 - lv).sum(1)).float())


def test_how_many_subsets_are_taken_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("mmebm.kernels.reference.experts")
    for mode in ("all", "kl"):
        g, found = cotangents(mode, EXPERTS, ROWS, DIM), []
        inputs = experts()
        for values in (1 << 22, 1, 3 * EXPERTS * ROWS * DIM):
            monkeypatch.setattr(module, "_SUBSET_VALUES", values)
            args = leaves(*inputs)
            found.append(with_gradients(call(mode, *args, MASKS, MASKS, backend="reference"), args, g))
        for other in found[1:]:
            torch.testing.assert_close(other, found[0])


# the choice ----------------------------------------------------------------------------------------------------------


def chosen(present: Tensor, rng: Tensor, count: int = EXPERTS, backend: str = "auto", **options: Any) -> Tensor:
    mu, logvar = experts(count, len(present), 2, torch.float32)
    out = ops.subset_experts(mu, logvar, present, mode="one", rng=rng, backend=backend, **options)
    same = ops.subset_experts(mu, logvar, present, mode="one", subset=out.subset, backend=backend, **options)
    assert all(torch.equal(a, b) for a, b in zip(out, same, strict=True))
    return out.subset


@each_backend
@pytest.mark.parametrize("count", [1, 3, 31])
def test_the_choice_is_that_of_the_conventions(count: int, backend: str) -> None:
    rows, everything = 200, (1 << count) - 1
    present = torch.randint(1 << count, (rows,))
    present[:4] = torch.tensor([0, 1, everything, 1 << count - 1])
    words = noise.words(stream(), 1, rows, 1, CHOICE)[0, :, 0, 0].tolist()
    expected = []
    for mask, word in zip(present.tolist(), words, strict=True):
        places = [m for m in range(count) if mask >> m & 1]
        code = (word * (2 ** len(places) - 1) >> 32) + 1
        expected.append(sum(1 << m for rank, m in enumerate(places) if code >> rank & 1))
    got = chosen(present, stream(), count, backend)
    assert got.dtype == torch.int64 and got.tolist() == expected
    assert ((got > 0) == (present > 0)).all() and torch.equal(got & present, got)


@each_backend
def test_the_choice_is_uniform(backend: str) -> None:
    rows = 60_000
    for mask, subsets in ((0b111, 7), (0b101, 3), (0b010, 1)):
        counts = torch.bincount(chosen(torch.full((rows,), mask), stream(), backend=backend), minlength=8).double()
        members = [s for s in range(1, 8) if s & mask == s]
        assert len(members) == subsets and counts[members].sum() == rows
        expected = rows / subsets
        assert ((counts[members] - expected).abs() <= 5.0 * math.sqrt(expected)).all()


@each_backend
def test_the_choice_depends_on_step_and_chain_only(backend: str) -> None:
    present = torch.full((1000,), 7)
    whole = chosen(present, stream(), backend=backend)
    assert torch.equal(chosen(present[400:], stream(first=405), backend=backend), whole[400:])
    for other in (stream(offset=4), stream(seed=8)):
        assert 0.05 < (chosen(present, other, backend=backend) == whole).double().mean() < 0.25
