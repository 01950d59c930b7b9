"""`mixture_log_prob` against torch.distributions, with masks, and its hand-written gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mmebm.kernels import dispatch, ops

LAWS = {"normal": torch.distributions.Normal, "laplace": torch.distributions.Laplace}
BACKENDS = [
    name
    for name in dispatch.BACKENDS
    if dispatch.unsupported(name, "mixture_log_prob", torch.device("cpu"), torch.float32) is None
]
EXPERTS, ROWS, DIM = 3, 8, 5
MASKS = torch.arange(ROWS)  # every subset of three experts, none first

each_law = pytest.mark.parametrize("law", LAWS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def experts(*lead: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """z [.., B, d], loc and scale [M, B, d]."""
    z = 2.0 * torch.randn(*lead, ROWS, DIM, dtype=dtype)
    return z, torch.randn(EXPERTS, ROWS, DIM, dtype=dtype), torch.rand(EXPERTS, ROWS, DIM, dtype=dtype) + 0.3


def transcription(z: Tensor, loc: Tensor, scale: Tensor, present: Tensor | None, law: str) -> Tensor:
    """Row by row, in z's dtype."""
    rows = []
    for i in range(z.shape[-2]):
        mask = 2 ** len(loc) - 1 if present is None else int(present[i])
        chosen = [m for m in range(len(loc)) if mask >> m & 1]
        x = z[..., i, :]
        if chosen:
            each = [LAWS[law](loc[m, i], scale[m, i]).log_prob(x).sum(-1) for m in chosen]
            rows.append(torch.logsumexp(torch.stack(each), 0) - math.log(len(chosen)))
        else:
            rows.append(LAWS[law](z.new_zeros(()), z.new_ones(())).log_prob(x).sum(-1))
    return torch.stack(rows, -1)


@each_law
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_float64_agrees_with_torch_distributions(law: str, lead: tuple[int, ...], masked: bool) -> None:
    z, loc, scale = experts(*lead)
    present = MASKS if masked else None
    got = ops.mixture_log_prob(z, loc, scale, present, law=law)
    assert got.shape == (*lead, ROWS)
    torch.testing.assert_close(got, transcription(z, loc, scale, present, law))


@each_backend
@each_law
def test_float32_loses_no_more_than_pytorch_does(law: str, backend: str) -> None:
    args = [t.requires_grad_() for t in experts(50, dtype=torch.float32)]
    exact = [t.detach().double().requires_grad_() for t in args]
    truth = transcription(*exact, MASKS, law)
    plain = transcription(*args, MASKS, law)
    got = ops.mixture_log_prob(*args, MASKS, law=law, backend=backend)
    results = (
        (got, *torch.autograd.grad(got.sum(), args)),
        (plain, *torch.autograd.grad(plain.sum(), args)),
        (truth, *torch.autograd.grad(truth.sum(), exact)),
    )
    for value, ordinary, right in zip(*results, strict=True):
        assert value.dtype == torch.float32
        assert (value - right).norm() <= 2.0 * (ordinary - right).norm()


@each_law
@pytest.mark.parametrize("lead", [(), (2, 2)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(law: str, lead: tuple[int, ...], masked: bool) -> None:
    args = [t.requires_grad_() for t in experts(*lead)]
    present = MASKS if masked else None

    def mixture(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        return ops.mixture_log_prob(z, loc, scale, present, law=law)

    assert torch.autograd.gradcheck(mixture, args)
    z, loc, scale = args
    assert torch.autograd.gradcheck(lambda z: mixture(z, loc.detach(), scale.detach()), (z,))


@each_backend
@each_law
def test_one_expert_is_that_expert(law: str, backend: str) -> None:
    z, loc, scale = experts(dtype=torch.float32)
    got = ops.mixture_log_prob(z, loc[:1], scale[:1], law=law, backend=backend)
    torch.testing.assert_close(got, LAWS[law](loc[0], scale[0]).log_prob(z).sum(-1))


@each_backend
@each_law
def test_a_row_with_nothing_present_has_the_standard_law(law: str, backend: str) -> None:
    z, loc, scale = (t.requires_grad_() for t in experts(dtype=torch.float32))
    got = ops.mixture_log_prob(z, loc, scale, torch.zeros(ROWS, dtype=torch.int64), law=law, backend=backend)
    torch.testing.assert_close(got, LAWS[law](0.0, 1.0).log_prob(z).sum(-1))
    d_z, d_loc, d_scale = torch.autograd.grad(got.sum(), (z, loc, scale))
    torch.testing.assert_close(d_z, -z.detach() if law == "normal" else -z.detach().sign())
    assert not d_loc.any() and not d_scale.any()


@each_backend
@each_law
@pytest.mark.parametrize("distance", [1e2, 1e4, 1e6])
def test_far_away_it_stays_in_log_space(law: str, distance: float, backend: str) -> None:
    """exp(log q_m) underflows there: a mixture of densities would be log 0 with NaN gradients."""
    args = [t.requires_grad_() for t in experts(3, dtype=torch.float32)]
    args[0] = (args[0].detach() + distance).requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in args]
    got = ops.mixture_log_prob(*args, MASKS, law=law, backend=backend)
    truth = transcription(*exact, MASKS, law)
    assert not truth.float().exp().any()
    torch.testing.assert_close(got, truth.float())
    grads = torch.autograd.grad(got.sum(), args)
    assert all(torch.isfinite(g).all() for g in grads)
    torch.testing.assert_close(grads[0], torch.autograd.grad(truth.sum(), exact)[0].float())


@each_backend
@each_law
def test_absent_experts_may_hold_anything(law: str, backend: str) -> None:
    args = experts(2, dtype=torch.float32)
    spoiled = [t.clone() for t in args]
    absent = (MASKS >> torch.arange(EXPERTS).unsqueeze(1) & 1) == 0  # [M, B]
    spoiled[1][absent] = float("nan")
    spoiled[2][absent] = 0.0
    results = []
    for leaves in (args, spoiled):
        leaves = [t.requires_grad_() for t in leaves]
        value = ops.mixture_log_prob(*leaves, MASKS, law=law, backend=backend)
        results.append((value, *torch.autograd.grad(value.sum(), leaves)))
    for good, bad in zip(*results, strict=True):
        assert torch.equal(good, bad)


@each_backend
def test_the_widest_mask(backend: str) -> None:
    """Thirty-one experts, all present and one by one."""
    z, loc = torch.randn(31, 2), torch.randn(31, 31, 2)
    scale = torch.ones(31, 31, 2)
    for present in (None, 1 << torch.arange(31)):
        got = ops.mixture_log_prob(z, loc, scale, present, law="normal", backend=backend)
        torch.testing.assert_close(got, transcription(z, loc, scale, present, "normal"))
