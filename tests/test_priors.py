"""Priors: densities, draws, what moves with which gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as D

import mmebm
from mmebm import EnergyMLP, EnergyPrior, StandardLaplace, StandardNormal
from mmebm.kernels import ops
from mmebm.kernels.reference.noise import REFERENCE_DRAW
from mmebm.priors import Prior, log_density

DIM = 5
LAWS = {"normal": D.Normal, "laplace": D.Laplace}
PRIORS = {"normal": StandardNormal, "laplace": StandardLaplace}
VARIANCE = {"normal": 1.0, "laplace": 2.0}  # of the standard law
FOURTH = {"normal": 3.0, "laplace": 24.0}
SCALES: list[Any] = [1.0, 0.7, torch.linspace(0.5, 2.0, DIM)]
each_law = pytest.mark.parametrize("law", LAWS)
each_scale = pytest.mark.parametrize("scale", SCALES, ids=["one", "number", "tensor"])


def prior(**options: Any) -> EnergyPrior:
    return EnergyPrior(EnergyMLP(DIM, (8, 6)), **{"steps": 12, "step_size": 0.3} | options)


def points(*lead: int) -> Tensor:
    return 2.0 * torch.randn(*lead, DIM, dtype=torch.float64)


@each_law
@each_scale
@pytest.mark.parametrize("lead", [(), (4,), (3, 4)], ids=str)
def test_log_prob(law: str, scale: Any, lead: tuple[int, ...]) -> None:
    z = points(*lead)
    scale64 = torch.as_tensor(scale, dtype=torch.float32).double()
    torch.testing.assert_close(PRIORS[law](DIM, scale).log_prob(z), LAWS[law](0.0, scale64).log_prob(z).sum(-1))
    loc = torch.randn(DIM, dtype=torch.float64)
    scales = scale64.expand(DIM)
    torch.testing.assert_close(log_density(law, z, loc, scales), LAWS[law](loc, scales).log_prob(z).sum(-1))


@each_law
@each_scale
def test_sample_moments(law: str, scale: Any) -> None:
    """Mean and variance per dimension at 5 standard errors of n draws."""
    n = 40_000
    u = (PRIORS[law](DIM, scale).sample(n, seed=6) / scale).double()
    assert u.shape == (n, DIM)
    variance, fourth = VARIANCE[law], FOURTH[law]
    assert (u.mean(0).abs() < 5.0 * math.sqrt(variance / n)).all()
    assert ((u.square().mean(0) - variance).abs() < 5.0 * math.sqrt((fourth - variance**2) / n)).all()


@each_law
def test_a_draw_belongs_to_seed_step_and_chain(law: str) -> None:
    p = PRIORS[law](DIM)
    whole = p.sample(10, seed=6, offset=2, first_chain=3)
    assert torch.equal(p.sample(4, seed=6, offset=2, first_chain=9), whole[6:])
    assert not torch.equal(p.sample(10, seed=7, offset=2, first_chain=3), whole)
    assert not torch.equal(p.sample(10, seed=6, offset=3, first_chain=3), whole)
    torch.manual_seed(1)
    first = p.sample(3)
    assert not torch.equal(p.sample(3), first)
    torch.manual_seed(1)
    assert torch.equal(p.sample(3), first)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, torch.ones(DIM + 1), torch.ones(1, DIM), torch.zeros(DIM)])
def test_a_bad_scale_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"^scale: expected numbers > 0, one or \[5\]"):
        StandardNormal(DIM, bad)
    with pytest.raises(ValueError, match=r"^scale: expected numbers > 0, one or \[5\]"):
        prior(reference_scale=bad)


def test_an_unknown_law_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^law: expected one of normal, laplace, got 'student'"):
        Prior(DIM, "student")


@each_law
def test_in_float64_the_draws_are_the_same(law: str) -> None:
    scale = torch.linspace(0.5, 2.0, DIM)
    for single, double in (
        (PRIORS[law](DIM, scale), PRIORS[law](DIM, scale).double()),
        (prior(reference=law, steps=0), prior(reference=law, steps=0).double()),
    ):
        z = double.sample(6, seed=1)
        assert z.dtype == torch.float64 and torch.equal(z.float(), single.sample(6, seed=1))


def test_normalised_is_told() -> None:
    assert StandardNormal(DIM).normalised and StandardLaplace(DIM).normalised and not prior().normalised


# the energy prior


@each_law
@each_scale
@pytest.mark.parametrize("bound", [None, 0.4])
def test_log_prob_is_the_tilted_reference(law: str, scale: Any, bound: float | None) -> None:
    p = prior(reference=law, reference_scale=scale, bound=bound).double()
    z = points(3, 4)
    e = p.energy(z)
    e = e if bound is None else bound * torch.tanh(e / bound)
    base = LAWS[law](0.0, torch.as_tensor(scale, dtype=torch.float64)).log_prob(z).sum(-1)
    torch.testing.assert_close(p.energy_of(z), e)
    # the scale went through a float32 logarithm
    torch.testing.assert_close(p.reference_log_prob(z), base, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(p.log_prob(z), p.reference_log_prob(z) - e)


@each_law
def test_reference_draws_have_the_reference_scale(law: str) -> None:
    p = prior(reference=law, reference_scale=torch.linspace(0.5, 2.0, DIM))
    unit = ops.draw(torch.tensor([6, 2, 3]), 1, 10, DIM, law=law, purpose=REFERENCE_DRAW)[0]
    torch.testing.assert_close(p.sample_reference(10, seed=6, offset=2, first_chain=3), unit * p.reference_scale)


@each_law
def test_a_sample_is_a_chain_from_the_reference(law: str) -> None:
    hold = {"bound": 5.0, "grad_clip": 0.5, "clamp": (-1.0, 1.0)}
    p = prior(reference=law, reference_scale=0.8, **hold)
    with torch.no_grad():
        p.energy.layers[-1].weight.mul_(40.0)
    got = p.sample(10, seed=6, offset=2, first_chain=3)
    z = p.sample_reference(10, seed=6, offset=2, first_chain=3)

    def chain(**hold: Any) -> Tensor:
        return mmebm.langevin(
            p.energy, z, steps=12, step_size=0.3, reference=law, reference_scale=p.reference_scale,
            seed=6, offset=2, chain_offset=3, **hold,
        )  # fmt: skip

    assert torch.equal(got, chain(**hold)) and not got.requires_grad
    for left_out in hold:
        assert not torch.equal(got, chain(**hold | {left_out: None})), "each constraint must bite to be seen"
    assert torch.equal(p.sample(10, seed=6, steps=0), p.sample_reference(10, seed=6))


def test_samples_are_reproducible_and_split_anywhere() -> None:
    p = prior()
    whole = p.sample(20, seed=6)
    assert torch.equal(p.sample(20, seed=6), whole)
    assert not torch.equal(p.sample(20, seed=7), whole)
    parts = torch.cat([p.sample(stop - first, seed=6, first_chain=first) for first, stop in ((0, 1), (1, 9), (9, 20))])
    torch.manual_seed(1)
    first = p.sample(3)
    assert not torch.equal(p.sample(3), first)
    torch.manual_seed(1)
    assert torch.equal(p.sample(3), first)
    # Split to rounding: BLAS orders its sums by the number of rows. As far from float64 as the whole is, at most twice.
    exact = p.double().sample(20, seed=6)
    assert (parts - exact).norm() <= 2.0 * (whole - exact).norm()


def test_chain_options_override_the_priors() -> None:
    p, z = prior(), torch.randn(6, DIM)
    assert torch.equal(p.chain(z, seed=1), p.chain(z, seed=1, steps=12, step_size=0.3))
    assert torch.equal(p.chain(z, seed=1), p.chain(z, seed=1, convention=mmebm.physics(0.045)))
    assert not torch.equal(p.chain(z, seed=1), p.chain(z, seed=1, step_size=0.2))
    end, info = p.chain(z, seed=1, return_info=True)
    assert torch.equal(end, p.chain(z, seed=1)) and info.grad_norm.shape == (6,)


def test_a_frozen_energy_moves_z_and_not_the_parameters() -> None:
    p = prior(learn_scale=True).double()
    z = points(4).requires_grad_()
    (p.energy_of(z, frozen=True) - p.reference_log_prob(z, frozen=True)).sum().backward()
    assert z.grad is not None and all(q.grad is None for q in p.parameters())
    frozen, z.grad = z.grad, None
    (-p.log_prob(z)).sum().backward()
    torch.testing.assert_close(z.grad, frozen)
    assert all(q.grad is not None for q in p.parameters())


def test_the_scale_is_learnt_on_request() -> None:
    z = points(4)
    fixed, learnt = prior().double(), prior(learn_scale=True, reference_scale=0.7).double()
    assert not fixed.log_scale.requires_grad and learnt.log_scale.requires_grad
    learnt.reference_log_prob(z).sum().backward()
    scale = learnt.reference_scale.detach()
    # d/d log s of -|z|/s - log 2s
    torch.testing.assert_close(learnt.log_scale.grad, (z.abs() / scale - 1.0).sum(0))
    assert fixed.log_prob(z).requires_grad, "by the energy's parameters"


def test_sampling_follows_a_scale_that_has_moved() -> None:
    p = prior(learn_scale=True)
    before = p.sample_reference(100, seed=1)
    with torch.no_grad():
        p.log_scale.add_(math.log(2.0))
    torch.testing.assert_close(p.sample_reference(100, seed=1), 2.0 * before)
    p.sample(3, seed=1)
    assert p.log_scale.grad is None


def test_a_prior_survives_its_state_dict() -> None:
    p, other = prior(reference_scale=torch.linspace(0.5, 2.0, DIM)), prior()
    other.load_state_dict(p.state_dict())
    assert torch.equal(p.sample(5, seed=1), other.sample(5, seed=1))
