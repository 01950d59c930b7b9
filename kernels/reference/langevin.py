"""Unadjusted Langevin chains in plain PyTorch: z <- z - a grad U_k(z) + b eps, U_k = t E - log p_0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .energy import MLP, energy, energy_and_grad
from .noise import CHAIN_NOISE, advanced, draw

# Noise is drawn for as many steps at once as fit in this many values, to spare small launches.
_NOISE_VALUES = 1 << 20


class Constraints(NamedTuple):
    """What holds a chain: the reference law and its scale [d], the cap on |grad E| and the box for the state."""

    reference: str  # "normal", "laplace" or "none"
    scale: Tensor
    grad_clip: float | None
    lower: float | None
    upper: float | None


class Chain(NamedTuple):
    """Final state, every n-th state and its energy, and per-chain means over z_0..z_{K-1}; empty where not asked."""

    z: Tensor  # [B, d]
    states: Tensor  # [K // n, B, d]
    energies: Tensor  # [K // n, B]
    mean_energy: Tensor  # [B]
    grad_norm: Tensor  # [B]
    displacement: Tensor  # [B]


def reference_gradient(z: Tensor, reference: str, scale: Tensor) -> Tensor | None:
    """-grad log p_0: z / scale^2 (normal), sign(z) / scale with sign(0) = 0 (laplace)."""
    if reference == "normal":
        return z / (scale * scale)
    return z.sign() / scale if reference == "laplace" else None


def chain_noise(rng: Tensor, steps: int, z: Tensor, draw: Callable[..., Tensor] = draw) -> Iterator[Tensor]:
    """eps [B, d] of every step, drawn in blocks."""
    rows, dim = z.shape
    at_once = max(1, _NOISE_VALUES // max(1, rows * dim))
    for start in range(0, steps, at_once):
        count = min(at_once, steps - start)
        noise = draw(advanced(rng, start), count, rows, dim, law="normal", purpose=CHAIN_NOISE)
        yield from noise.to(z.dtype)


def drift(z: Tensor, grad: Tensor, t: Tensor, hold: Constraints) -> Tensor:
    """grad U_k at z given dE/dz there: clipped, times t, plus the reference's."""
    if hold.grad_clip is not None:
        norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
        grad = grad * (hold.grad_clip / norm.clamp_min(hold.grad_clip))
    pull = reference_gradient(z, hold.reference, hold.scale)
    return t * grad if pull is None else t * grad + pull


def moved(z: Tensor, drift: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """fma(b, eps, fma(-a, drift, z))."""
    return torch.addcmul(torch.addcmul(z, a, drift, value=-1), b, eps)


def _step(z: Tensor, grad: Tensor, eps: Tensor, coefficients: Tensor, hold: Constraints) -> Tensor:
    a, b, t = coefficients.to(z.dtype).unbind()
    z = moved(z, drift(z, grad, t, hold), eps, a, b)
    if hold.lower is not None or hold.upper is not None:
        z = z.clamp(hold.lower, hold.upper)
    return z


def updates(coefficients: Tensor, rng: Tensor, hold: Constraints) -> Callable[[Tensor, Tensor, int], Tensor]:
    """`langevin_update` of (z, grad, step), for a loop."""
    return lambda z, grad, step: langevin_update(z, grad, coefficients, rng, step, hold)


def langevin_update(z: Tensor, grad: Tensor, coefficients: Tensor, rng: Tensor, step: int, hold: Constraints) -> Tensor:
    """Step `step` of a chain given dE/dz [B, d] at z."""
    eps = draw(advanced(rng, step), 1, z.shape[0], z.shape[1], "normal", CHAIN_NOISE)[0].to(z.dtype)
    return _step(z, grad, eps, coefficients[step], hold)


def langevin(
    z: Tensor, net: MLP, coefficients: Tensor, rng: Tensor, hold: Constraints, record_every: int, statistics: bool
) -> Chain:
    """K = len(coefficients) steps from z [B, d]."""
    steps, rows = len(coefficients), len(z)
    kept = steps // record_every if record_every else 0
    states, energies = z.new_empty(kept, *z.shape), z.new_empty(kept, rows)
    totals = z.new_zeros(3, rows if statistics else 0)
    for k, eps in enumerate(chain_noise(rng, steps, z)):
        value, grad = energy_and_grad(z, net)
        before, z = z, _step(z, grad, eps, coefficients[k], hold)
        if statistics:
            norms = torch.linalg.vector_norm(torch.stack((grad, z - before)), dim=2)
            totals += torch.cat((value.unsqueeze(0), norms))
        if record_every and (k + 1) % record_every == 0:
            states[k // record_every] = z
            energies[k // record_every] = energy(z, net)
    means = [total / max(1, steps) for total in totals]  # apart: an operator's outputs may not share storage
    return Chain(z.clone() if steps == 0 else z, states, energies, *means)
