"""Langevin chains with accept/reject (MALA) in plain PyTorch: they leave exp(-U_k) exactly as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .energy import MLP, energy_and_grad
from .langevin import Constraints, chain_noise, drift, moved
from .noise import draw, log_uniform


class MalaChain(NamedTuple):
    """As `Chain`, with the share of accepted proposals and the work of annealing; empty where not asked."""

    z: Tensor  # [B, d]
    states: Tensor  # [K // n, B, d]
    energies: Tensor  # [K // n, B]
    mean_energy: Tensor  # [B]
    grad_norm: Tensor  # [B]
    displacement: Tensor  # [B]
    acceptance: Tensor  # [B]
    work: Tensor  # [B], the sum over k = 1..K-1 of (t_k - t_{k-1}) E(z_k)


def _log_prior_ratio(z: Tensor, proposal: Tensor, hold: Constraints) -> Tensor:
    """log p_0(proposal) - log p_0(z) [B], differences by dimension before the sum."""
    if hold.reference == "normal":
        return (0.5 * (z - proposal) * (z + proposal) / (hold.scale * hold.scale)).sum(1)
    if hold.reference == "laplace":
        return ((z.abs() - proposal.abs()) / hold.scale).sum(1)
    return z.new_zeros(len(z))


def _log_density_ratio(z: Tensor, proposal: Tensor, here: Tensor, there: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """log q(z | proposal) - log q(proposal | z) [B], the drifts being `here` at z and `there` at the proposal.

    (|F|^2 - |R|^2) / (2 b^2) with F = z' - z + a g, R = z - z' + a g', as -(R + F)(R - F): no square is subtracted.
    """
    return -(a / (2.0 * b * b)) * ((here + there) * (2.0 * (z - proposal) + a * (there - here))).sum(1)


def mala(
    z: Tensor, net: MLP, coefficients: Tensor, rng: Tensor, hold: Constraints, record_every: int, statistics: bool
) -> MalaChain:
    """K = len(coefficients) proposals from z [B, d]; those outside the clamp box are rejected."""
    return adjusted(z, lambda z: energy_and_grad(z, net), coefficients, rng, hold, record_every, statistics)


def adjusted(
    z: Tensor,
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    coefficients: Tensor,
    rng: Tensor,
    hold: Constraints,
    record_every: int,
    statistics: bool,
    draw: Callable[..., Tensor] = draw,
) -> MalaChain:
    """`mala` for any energy: `evaluate(z)` gives E [B] and dE/dz [B, d]; `draw` the chain's noise."""
    steps, rows = len(coefficients), len(z)
    kept = steps // record_every if record_every else 0
    states, energies = z.new_empty(kept, *z.shape), z.new_empty(kept, rows)
    totals = z.new_zeros(4, rows if statistics else 0)
    work = z.new_zeros(rows if statistics else 0)
    low = -math.inf if hold.lower is None else hold.lower
    high = math.inf if hold.upper is None else hold.upper
    thresholds = log_uniform(rng, steps, rows)
    z = z.clone()
    value, grad = evaluate(z)
    for k, eps in enumerate(chain_noise(rng, steps, z, draw)):
        a, b, t = coefficients[k].to(z.dtype).unbind()
        here = drift(z, grad, t, hold)
        proposal = moved(z, here, eps, a, b)
        new_value, new_grad = evaluate(proposal)
        there = drift(proposal, new_grad, t, hold)
        log_alpha = (
            t * (value - new_value)
            + _log_prior_ratio(z, proposal, hold)
            + _log_density_ratio(z, proposal, here, there, a, b)
        )
        inside = ((proposal >= low) & (proposal <= high)).all(1)
        accept = (thresholds[k] < log_alpha) & inside & (b != 0)  # a NaN compares false: it rejects
        before, z = z, torch.where(accept.unsqueeze(1), proposal, z)
        if statistics:
            if k > 0:
                work += (t - coefficients[k - 1, 2].to(z.dtype)) * value
            norms = torch.linalg.vector_norm(torch.stack((grad, z - before)), dim=2)
            totals += torch.cat((value.unsqueeze(0), norms, accept.unsqueeze(0).to(z.dtype)))
        value = torch.where(accept, new_value, value)
        grad = torch.where(accept.unsqueeze(1), new_grad, grad)
        if record_every and (k + 1) % record_every == 0:
            states[k // record_every] = z
            energies[k // record_every] = value
    means = [total / max(1, steps) for total in totals]  # apart: an operator's outputs may not share storage
    return MalaChain(z, states, energies, *[*means, work])
