"""`product_of_experts` against the definition by precisions, with masks and priors, and its hand-written gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmebm.kernels import dispatch, ops

CPU = torch.device("cpu")
BACKENDS = [b for b in dispatch.BACKENDS if dispatch.unsupported(b, "product_of_experts", CPU, torch.float32) is None]
PRIORS = ("never", "always", "full")
EPS = torch.finfo(torch.float32).eps
EXPERTS, ROWS, DIM = 3, 8, 5
MASKS = torch.arange(ROWS)  # every subset of three experts, none first

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_prior = pytest.mark.parametrize("prior", PRIORS)


def experts(
    count: int = EXPERTS, rows: int = ROWS, dim: int = DIM, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """mu and logvar [M, B, d]."""
    return torch.randn(count, rows, dim, dtype=dtype), 1.5 * torch.randn(count, rows, dim, dtype=dtype)


def factors(mu: Tensor, logvar: Tensor, row: int, mask: int, prior: str) -> tuple[Tensor, Tensor]:
    """The normals [n, d] that are multiplied in a row."""
    chosen = [m for m in range(len(mu)) if mask >> m & 1]
    means, logvars = [mu[m, row] for m in chosen], [logvar[m, row] for m in chosen]
    if prior == "always" or (prior == "full" and len(chosen) == len(mu)) or not chosen:
        means.append(mu.new_zeros(mu.shape[2]))
        logvars.append(mu.new_zeros(mu.shape[2]))
    return torch.stack(means), torch.stack(logvars)


def transcription(mu: Tensor, logvar: Tensor, present: Tensor, prior: str) -> tuple[Tensor, Tensor]:
    """Row by row, in mu's dtype and in log space."""
    rows = []
    for b in range(mu.shape[1]):
        means, logvars = factors(mu, logvar, b, int(present[b]), prior)
        rows.append(((torch.softmax(-logvars, 0) * means).sum(0), -torch.logsumexp(-logvars, 0)))
    means, logvars = zip(*rows, strict=True)
    return torch.stack(means), torch.stack(logvars)


def results(
    value: tuple[Tensor, Tensor], leaves: list[Tensor], g: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """mu, logvar and the gradients of <g, (mu, logvar)>."""
    total = sum((x.to(v.dtype) * v).sum() for x, v in zip(g, value, strict=True))
    return *(v.detach() for v in value), *torch.autograd.grad(total, leaves)


def leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in tensors]


@each_prior
@pytest.mark.parametrize("dim", [1, 7, 64, 65])
@pytest.mark.parametrize("masked", [False, True])
def test_precisions_add_and_means_are_weighted_by_them(masked: bool, dim: int, prior: str) -> None:
    mu, logvar = experts(dim=dim)
    present = MASKS if masked else torch.full((ROWS,), 7)
    got = ops.product_of_experts(mu, logvar, MASKS if masked else None, prior=prior)
    for b in range(ROWS):
        means, logvars = factors(mu, logvar, b, int(present[b]), prior)
        precision = (1.0 / logvars.exp()).sum(0)
        torch.testing.assert_close(got[0][b], (means / logvars.exp()).sum(0) / precision)
        torch.testing.assert_close(got[1][b], (1.0 / precision).log())


def test_the_prior_is_counted_when_it_should_be() -> None:
    mu, logvar = experts()
    never, always, full = (ops.product_of_experts(mu, logvar, MASKS, prior=prior)[1] for prior in PRIORS)
    assert torch.equal(full[:7], never[:7]) and torch.equal(full[7], always[7])
    assert (always[1:] < never[1:]).all() and torch.equal(always[0], never[0])


@each_backend
@each_prior
@pytest.mark.parametrize("dim", [1, 7, 64, 65])
def test_float32_loses_no_more_than_pytorch_does(dim: int, prior: str, backend: str) -> None:
    mu, logvar = experts(5, 64, dim, torch.float32)
    present = torch.arange(64) % 32
    g = torch.randn(64, dim), torch.randn(64, dim)
    args, plain, exact = leaves(mu, logvar), leaves(mu, logvar), leaves(mu, logvar, dtype=torch.float64)
    got = results(ops.product_of_experts(*args, present, prior=prior, backend=backend), args, g)
    ordinary = results(transcription(*plain, present, prior), plain, g)
    truth = results(transcription(*exact, present, prior), exact, g)
    for value, other, right in zip(got, ordinary, truth, strict=True):
        assert value.dtype == torch.float32
        assert (value - right).norm() <= 2.0 * (other - right).norm() + 2.0 * EPS * right.norm()


@each_prior
def test_gradients(prior: str) -> None:
    mu, logvar = leaves(*experts())
    assert torch.autograd.gradcheck(lambda *a: ops.product_of_experts(*a, MASKS, prior=prior), (mu, logvar))
    for output in (0, 1):
        assert torch.autograd.gradcheck(lambda *a, o=output: ops.product_of_experts(*a, MASKS)[o], (mu, logvar))
    for fixed in (0, 1):
        args = [t.detach() if i == fixed else t for i, t in enumerate((mu, logvar))]
        assert torch.autograd.gradcheck(lambda *a: ops.product_of_experts(*a, MASKS, prior="full"), args)


@each_backend
@each_prior
def test_absent_experts_may_hold_anything(prior: str, backend: str) -> None:
    good = experts(dtype=torch.float32)
    absent = (MASKS >> torch.arange(EXPERTS).unsqueeze(1) & 1) == 0  # [M, B]
    g = torch.randn(ROWS, DIM), torch.randn(ROWS, DIM)
    expected = None
    for junk in (0.0, math.nan, math.inf, -math.inf, 3e38):
        args = leaves(*good)
        with torch.no_grad():
            for t in args:
                t[absent] = junk
        found = results(ops.product_of_experts(*args, MASKS, prior=prior, backend=backend), args, g)
        expected = found if expected is None else expected
        for a, b in zip(found, expected, strict=True):
            assert torch.isfinite(a).all() and torch.equal(a, b)
        assert not found[2][absent].any() and not found[3][absent].any()


@each_backend
@each_prior
def test_experts_of_any_width(prior: str, backend: str) -> None:
    """Precisions from e^-200 to e^200 in one product: sums of them overflow float32, and an epsilon would rule it."""
    mu = torch.randn(4, 16, 6)
    logvar = torch.tensor([-200.0, 200.0, -80.0, 3.0])[torch.randint(4, (4, 16, 6))]
    present = torch.arange(16)
    g = torch.randn(16, 6), torch.randn(16, 6)
    args, exact = leaves(mu, logvar), leaves(mu, logvar, dtype=torch.float64)
    got = results(ops.product_of_experts(*args, present, prior=prior, backend=backend), args, g)
    truth = results(transcription(*exact, present, prior), exact, g)
    assert truth[1].min() < -199.0 and (prior == "always" or truth[1].max() > 199.0)
    for value, right in zip(got, truth, strict=True):
        assert torch.isfinite(value).all()
        torch.testing.assert_close(value, right.float(), rtol=1e-5, atol=1e-6)


@each_backend
@pytest.mark.parametrize("prior", ["never", "full"])
def test_one_expert_is_that_expert(prior: str, backend: str) -> None:
    mu, logvar = experts(2, dtype=torch.float32)
    alone = torch.full((ROWS,), 2)
    for count, present, expert in ((2, alone, 1), (1, None, 0)):
        if count == 1 and prior == "full":
            continue  # all of one are there
        got = ops.product_of_experts(mu[:count], logvar[:count], present, prior=prior, backend=backend)
        torch.testing.assert_close(got, (mu[expert], logvar[expert]))


@each_backend
@each_prior
def test_a_row_with_nothing_present_is_the_standard_normal(prior: str, backend: str) -> None:
    args = leaves(*experts(dtype=torch.float32))
    nothing = torch.zeros(ROWS, dtype=torch.int64)
    got = ops.product_of_experts(*args, nothing, prior=prior, backend=backend)
    assert not got[0].any() and not got[1].any()
    assert not any(g.any() for g in torch.autograd.grad(got[0].sum() + got[1].sum(), args))


@each_backend
def test_equal_experts_divide_the_variance(backend: str) -> None:
    mu, logvar = (t[:1].expand(7, -1, -1) for t in experts(dtype=torch.float32))
    got = ops.product_of_experts(mu, logvar, backend=backend)
    torch.testing.assert_close(got, (mu[0], logvar[0] - math.log(7.0)))


@each_backend
@pytest.mark.parametrize(("count", "rows", "dim"), [(1, 0, 3), (1, 1, 1), (3, 0, 5), (2, 1, 65)])
def test_small_shapes(count: int, rows: int, dim: int, backend: str) -> None:
    args = leaves(*experts(count, rows, dim, torch.float32))
    got = ops.product_of_experts(*args, backend=backend)
    assert got[0].shape == got[1].shape == (rows, dim)
    grads = torch.autograd.grad(got[0].sum() + got[1].sum(), args)
    assert all(g.shape == (count, rows, dim) for g in grads)
    if rows:
        exact = leaves(*args, dtype=torch.float64)
        truth = transcription(*exact, torch.full((rows,), (1 << count) - 1), "never")
        torch.testing.assert_close(got, tuple(t.float() for t in truth))
        expected = torch.autograd.grad(truth[0].sum() + truth[1].sum(), exact)
        torch.testing.assert_close(grads, tuple(t.float() for t in expected), atol=1e-6, rtol=1e-5)


@each_backend
def test_layout_does_not_matter(backend: str) -> None:
    mu, logvar = experts(dtype=torch.float32)
    g = torch.randn(ROWS, DIM), torch.randn(ROWS, DIM)
    odd = [t.permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_() for t in (mu, logvar)]
    present = torch.stack((MASKS, MASKS), 1)[:, 0]
    assert not odd[0].is_contiguous() and not present.is_contiguous()
    strided = results(ops.product_of_experts(*odd, present, backend=backend), odd, tuple(x.T.contiguous().T for x in g))
    dense = leaves(mu, logvar)
    for a, b in zip(strided, results(ops.product_of_experts(*dense, MASKS, backend=backend), dense, g), strict=True):
        assert torch.equal(a, b)


@each_backend
def test_the_widest_mask(backend: str) -> None:
    """Thirty-one experts, all present, one by one, and bits beyond them that say nothing."""
    mu, logvar = experts(31, 31, 2, torch.float32)
    for prior in PRIORS:
        for present in (torch.full((31,), (1 << 31) - 1), 1 << torch.arange(31)):
            truth = transcription(mu.double(), logvar.double(), present, prior)
            for mask in (present, present | 1 << 31 | 1 << 62, present | -(1 << 63)):
                got = ops.product_of_experts(mu, logvar, mask, prior=prior, backend=backend)
                torch.testing.assert_close(got, tuple(t.float() for t in truth), rtol=1e-5, atol=2e-6)
