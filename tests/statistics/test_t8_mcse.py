"""Tier 8: a recorded trajectory estimates known moments as well as its own standard error says; chains agree.

Chains are independent, so that the spread of their means gives an exact standard error, whatever the correlation within
a chain. Ranks: Besag and Clifford, "Generalized Monte Carlo significance tests" (Biometrika 1989).
"""

from __future__ import annotations

import math
from functools import cache

import scipy.stats
import torch
from torch import Tensor

from .latent import TRIALS, LatentModel
from .laws import counts, judge, rejects, stream, student
from .quadrature import target_masses
from .targets import Backend, Target, constant

OPERATOR = "mala"
CHAINS, BURN_IN, DRAWS = 512, 256, 1024
MODEL = LatentModel.example()
TARGET = MODEL.posterior(3)


def moments(z: Tensor, center: Tensor) -> Tensor:
    """Means, variances and covariance about `center`: [.., 2] -> [.., 5]."""
    u = z.double() - center
    return torch.cat((z.double(), u**2, u.prod(-1, keepdim=True)), -1)


def known() -> tuple[Tensor, Tensor]:
    """The target's means [2], and its five moments."""
    grid, mass = target_masses(TARGET)
    center = mass @ grid
    return center, mass @ moments(grid, center)


@cache
def trajectory(backend: Backend, corrected: bool = True) -> Tensor:
    """[DRAWS, CHAINS, 2] from four corners, behind the burn-in. Look, do not touch: tests share it."""
    z = 2.5 * torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]).repeat(CHAINS // 4, 1)
    run = backend.mala if corrected else backend.langevin
    return run(TARGET, z, constant(BURN_IN + DRAWS, 0.9), stream(90), record_every=1).states[BURN_IN:]


def rank_normalised(draws: Tensor) -> Tensor:
    """Normal scores of the ranks among all draws [n, m] (Vehtari et al. 2021)."""
    ranks = torch.from_numpy(scipy.stats.rankdata(draws.numpy(), axis=None)).view(draws.shape)
    return torch.special.ndtri((ranks - 0.375) / (draws.numel() + 0.25))


def split_r_hat(draws: Tensor) -> float:
    """Of n draws of m chains [n, m], each cut into halves."""
    halves = torch.cat(draws.double().chunk(2), 1)
    n = len(halves)
    within, between = halves.var(0).mean(), n * halves.mean(0).var()
    return math.sqrt(float(((n - 1) / n * within + between / n) / within))


def test_errors_are_as_large_as_their_standard_errors(backend: Backend) -> None:
    center, expected = known()
    each = moments(trajectory(backend), center).mean(0)  # [CHAINS, 5]
    judge(student(each, expected), "mean, variance and covariance")
    free = moments(trajectory(backend, corrected=False), center).mean(0)
    assert rejects(student(free, expected)), "uncorrected chains must be told apart"


def test_chains_agree(backend: Backend) -> None:
    """Between chains and within them; the two halves of each; and the check notices what has not mixed."""
    draws = trajectory(backend)
    for axis in range(2):
        assert split_r_hat(rank_normalised(draws[..., axis])) < 1.01
    first, second = (half.double().mean(0) for half in draws.chunk(2))
    judge(student(first - second, 0.0), "halves")
    z = 2.5 * torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).repeat(CHAINS // 2, 1)
    stuck = backend.mala(TARGET, z, constant(64, 0.1), stream(91), record_every=1).states
    assert split_r_hat(rank_normalised(stuck[..., 0])) > 1.01


def rank_of_start(target: Target, backend: Backend, z: Tensor, rng: Tensor, length: int) -> Tensor:
    """Rank [n] in 0..length of z_0 among itself and `length` states, a random number before it and the rest after it.

    The kernel is reversible: states before z_0 are those of a chain that leaves it. If it holds the law of z_0 fixed,
    the place of z_0 in the trajectory is as good as any other.
    """
    table = constant(length, 0.9)
    after, before = (
        backend.mala(target, z, table, rng + torch.tensor([0, k, 0]), record_every=1).states[..., 0]
        for k in (0, length)
    )
    place = torch.randint(length + 1, (len(z),))
    k = torch.arange(length).unsqueeze(1)
    others = torch.cat((after, before)), torch.cat((k < length - place, k < place))
    less = ((others[0] < z[:, 0]) & others[1]).sum(0)
    ties = ((others[0] == z[:, 0]) & others[1]).sum(0)  # where proposals were rejected
    return less + (torch.rand(len(z)) * (ties + 1)).long()


def test_ranks_are_uniform(backend: Backend) -> None:
    """Simulation-based calibration: of the z that made the data x, among a posterior's chain that starts there."""
    length, rng = 15, stream(92)
    z = MODEL.draw_prior(1 << 15)
    x = MODEL.draw_data(z)
    ranks = []
    for value in range(TRIALS + 1):
        rows = z[x == value]
        ranks.append(rank_of_start(MODEL.posterior(value), backend, rows, rng, length))
        rng = rng + torch.tensor([0, 0, len(rows)])
    observed = torch.bincount(torch.cat(ranks), minlength=length + 1)
    judge(counts(observed, torch.full((length + 1,), 1.0 / (length + 1))), "ranks")
