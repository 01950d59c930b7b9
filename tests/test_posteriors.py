"""Diagonal experts and their mixture: densities, draws and the gradients through them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch import distributions as D

from mmebm import Diagonal, MixtureOfExperts
from mmebm.kernels import ops
from mmebm.kernels.reference.noise import REPARAMETERISATION
from mmebm.posteriors import scale_from
from mmebm.sampling import Stream

LAWS = {"normal": D.Normal, "laplace": D.Laplace}
VARIANCE = {"normal": 1.0, "laplace": 2.0}  # of the standard law
FOURTH = {"normal": 3.0, "laplace": 24.0}
each_law = pytest.mark.parametrize("law", LAWS)


def diagonal(law: str, *shape: int, dtype: torch.dtype = torch.float64) -> Diagonal:
    loc, scale = torch.randn(shape, dtype=dtype), torch.rand(shape, dtype=dtype) + 0.3
    return Diagonal(loc.requires_grad_(), scale.requires_grad_(), law)


@each_law
@pytest.mark.parametrize("lead", [(), (4,), (3, 4)], ids=str)
def test_diagonal_log_prob(law: str, lead: tuple[int, ...]) -> None:
    q = diagonal(law, 6, 5)
    z = torch.randn(*lead, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), LAWS[law](q.loc, q.scale).log_prob(z).sum(-1))


@each_law
def test_mixture_log_prob(law: str) -> None:
    q = diagonal(law, 3, 6, 5)
    z = torch.randn(2, 6, 5, dtype=torch.float64)
    experts = D.Independent(LAWS[law](q.loc.transpose(0, 1), q.scale.transpose(0, 1)), 1)  # [B, M]
    exact = D.MixtureSameFamily(D.Categorical(logits=torch.zeros(6, 3, dtype=torch.float64)), experts)
    torch.testing.assert_close(MixtureOfExperts(q).log_prob(z), exact.log_prob(z))


@each_law
@pytest.mark.parametrize("shape", [(6, 5), (3, 6, 5), (2, 3, 6, 5)], ids=str)
def test_draws_are_loc_plus_scale_times_noise(law: str, shape: tuple[int, ...]) -> None:
    q = diagonal(law, *shape)
    stream = Stream(4, offset=7, first_chain=2)
    z = q.rsample(4, stream)
    assert z.shape == (4, *shape) and z.dtype == torch.float64
    steps = 4 * math.prod(shape[:-2])
    assert stream.offset == 7 + steps, "the stream moves on by what was drawn"
    noise = ops.draw(torch.tensor([4, 7, 2]), steps, 6, 5, law=law, purpose=REPARAMETERISATION).view(z.shape)
    torch.testing.assert_close(z, q.loc + q.scale * noise)
    assert not torch.equal(q.rsample(4, stream), z)


@each_law
def test_mixture_draws_are_stratified(law: str) -> None:
    """Sample k of expert m is noise step offset + k M + m."""
    q = diagonal(law, 3, 6, 5)
    z = MixtureOfExperts(q).rsample(4, Stream(4, offset=7))
    assert z.shape == (4, 3, 6, 5)
    for k in range(4):
        for m in range(3):
            noise = ops.draw(torch.tensor([4, 7 + 3 * k + m, 0]), 1, 6, 5, law=law, purpose=REPARAMETERISATION)[0]
            torch.testing.assert_close(z[k, m], q.loc[m] + q.scale[m] * noise)


@each_law
def test_reparameterisation_gradient(law: str) -> None:
    q = diagonal(law, 3, 6, 5)

    def draw(loc: Tensor, scale: Tensor) -> Tensor:
        return MixtureOfExperts(Diagonal(loc, scale, law)).rsample(2, Stream(1))

    assert torch.autograd.gradcheck(draw, (q.loc, q.scale))
    (d_loc,) = torch.autograd.grad(draw(q.loc, q.scale).sum(), q.loc)
    torch.testing.assert_close(d_loc, torch.full_like(d_loc, 2.0))


@each_law
def test_gradient_reaches_the_experts_through_draw_and_density(law: str) -> None:
    q = MixtureOfExperts(diagonal(law, 3, 6, 5))

    def value(loc: Tensor, scale: Tensor) -> Tensor:
        mixture = MixtureOfExperts(Diagonal(loc, scale, law))
        return mixture.log_prob(mixture.rsample(2, Stream(1)))

    assert torch.autograd.gradcheck(value, (q.experts.loc, q.experts.scale))


@each_law
def test_detached_posteriors_have_no_gradient(law: str) -> None:
    q = MixtureOfExperts(diagonal(law, 3, 6, 5))
    z = q.rsample(1, Stream(1)).detach().requires_grad_()
    frozen = q.detach()
    assert not frozen.rsample(1, Stream(1)).requires_grad and q.rsample(1, Stream(1)).requires_grad
    frozen.log_prob(z).sum().backward()
    assert z.grad is not None and q.experts.loc.grad is None and q.experts.scale.grad is None


@each_law
def test_draw_moments(law: str) -> None:
    """Mean and variance per dimension at 5 standard errors of n draws."""
    loc, scale = torch.linspace(-2.0, 2.0, 5), torch.linspace(0.3, 3.0, 5)
    rows, samples = 2000, 10
    n = rows * samples
    z = Diagonal(loc.expand(rows, 5), scale.expand(rows, 5), law).rsample(samples, Stream(3)).reshape(n, 5).double()
    u = (z - loc) / scale
    variance, fourth = VARIANCE[law], FOURTH[law]
    assert (u.mean(0).abs() < 5.0 * math.sqrt(variance / n)).all()
    assert ((u.square().mean(0) - variance).abs() < 5.0 * math.sqrt((fourth - variance**2) / n)).all()


@pytest.mark.parametrize("lead", [(), (7,), (3, 7)], ids=str)
def test_laplace_scales_share_a_budget_of_d(lead: tuple[int, ...]) -> None:
    raw = 3.0 * torch.randn(*lead, 11, dtype=torch.float64)
    scale = scale_from("laplace", raw)
    assert scale.shape == raw.shape and (scale > 0).all()
    torch.testing.assert_close(scale.sum(-1), torch.full(lead, 11.0 * (1.0 + 1e-6), dtype=torch.float64))


def test_normal_scales_are_softplus() -> None:
    raw = torch.tensor([-200.0, -1.0, 0.0, 3.0])
    torch.testing.assert_close(scale_from("normal", raw), (1.0 + raw.double().exp()).log().float() + 1e-6)


@pytest.mark.parametrize("law", LAWS)
def test_scales_stay_positive_whatever_the_encoder_says(law: str) -> None:
    raw = torch.tensor([[-1e4, 0.0, 1e4]])
    assert (scale_from(law, raw) > 0).all()


def test_an_unknown_law_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^law: expected one of normal, laplace, got 'student'"):
        scale_from("student", torch.zeros(3))
