"""Chains of networks that do not fit a program: a fixed number of launches a step.

Nothing waits for the device and every shape is known beforehand, so that the steps can be captured in a CUDA graph.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import layered
from ..reference import MLP, Chain, Constraints, MalaChain
from . import launch, layers
from .noise import ACCEPT, minus_log, uniform, words
from .update import updates

_NAN = tl.constexpr(tl.PropagateNan.ALL)
_VALUES = 1024  # of a program of `accept_kernel`


energy = partial(layered.energy, layers)
energy_and_grad = partial(layered.energy_and_grad, layers)
energy_backward = partial(layered.energy_backward, layers)


@triton.jit
def _sizes(grad_ptr, row, rows, dim, clip, CLIP: tl.constexpr, M: tl.constexpr, D: tl.constexpr):
    """What the clip makes of gradients [M]: a factor."""
    square = tl.zeros((M,), tl.float32)
    if CLIP:
        for first in range(0, dim, D):
            dims = first + tl.arange(0, D)[None, :]
            grad = tl.load(grad_ptr + row[:, None] * dim + dims, mask=(row < rows)[:, None] & (dims < dim), other=0.0)
            square += tl.sum(grad * grad, 1)
        norm = tl.sqrt_rn(square)
        return tl.div_rn(tl.full((M,), 1.0, tl.float32) * clip, tl.maximum(norm, clip, propagate_nan=_NAN))
    else:
        return square + 1.0


@triton.jit
def _force(z, grad, factor, t, scale, REFERENCE: tl.constexpr):
    """grad U of z [M, D] given dE/dz there and the clip's factor [M]."""
    force = grad * factor[:, None] * t
    if REFERENCE == "normal":
        force += tl.div_rn(z, scale * scale)
    if REFERENCE == "laplace":
        force += tl.div_rn(tl.where(z > 0.0, 1.0, tl.where(z < 0.0, -1.0, 0.0)), scale)
    return force


@triton.jit(do_not_specialize=["rows", "step"], repr=launch.kernel_name("mala_accept"))
def accept_kernel(
    z_ptr, grad_ptr, energy_ptr, proposal_ptr, new_grad_ptr, new_energy_ptr, table_ptr, rng_ptr, scale_ptr,
    out_ptr, out_grad_ptr, out_energy_ptr, accepted_ptr, rows, step, dim, clip, lower, upper,
    REFERENCE: tl.constexpr, CLIP: tl.constexpr, CLAMP: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Which of M chains take their proposals, and what they hold then."""
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    here = row < rows
    a = tl.load(table_ptr + 3 * step)
    noise_size = tl.load(table_ptr + 3 * step + 1)
    t = tl.load(table_ptr + 3 * step + 2)
    factor = _sizes(grad_ptr, row, rows, dim, clip, CLIP, M, D)
    new_factor = _sizes(new_grad_ptr, row, rows, dim, clip, CLIP, M, D)
    density = tl.zeros((M,), tl.float32)
    prior = tl.zeros((M,), tl.float32)
    outside = tl.zeros((M,), tl.int32)
    for first in range(0, dim, D):
        dims = first + tl.arange(0, D)
        mask = here[:, None] & (dims < dim)[None, :]
        cells = row[:, None] * dim + dims[None, :]
        z = tl.load(z_ptr + cells, mask=mask, other=0.0)
        proposal = tl.load(proposal_ptr + cells, mask=mask, other=0.0)
        scale = tl.load(scale_ptr + dims, mask=dims < dim, other=1.0)[None, :]
        force = _force(z, tl.load(grad_ptr + cells, mask=mask, other=0.0), factor, t, scale, REFERENCE)
        new_grad = tl.load(new_grad_ptr + cells, mask=mask, other=0.0)
        new_force = _force(proposal, new_grad, new_factor, t, scale, REFERENCE)
        moved = z - proposal
        density += tl.sum((force + new_force) * tl.fma(moved, 2.0, a * (new_force - force)), 1)
        if REFERENCE == "normal":
            prior += tl.sum(tl.div_rn(moved * (z + proposal) * 0.5, scale * scale), 1)
        if REFERENCE == "laplace":
            prior += tl.sum(tl.div_rn(tl.abs(z) - tl.abs(proposal), scale), 1)
        if CLAMP:
            beyond = ((proposal < lower) | (proposal > upper)) & mask
            outside += tl.sum(beyond.to(tl.int32), 1)
    value = tl.load(energy_ptr + row, mask=here, other=0.0)
    new_value = tl.load(new_energy_ptr + row, mask=here, other=0.0)
    log_alpha = tl.fma(t, value - new_value, density * (-a / (2.0 * noise_size * noise_size)) + prior)
    chain = tl.load(rng_ptr + 2) + row
    x0, _x1, _x2, _x3 = words(tl.load(rng_ptr), tl.load(rng_ptr + 1) + step, chain, ACCEPT, tl.zeros((M,), tl.uint32))
    # A NaN compares false: it rejects. Without noise there is no density.
    accept = -minus_log(uniform(x0)) < tl.where(noise_size != 0.0, log_alpha, float("-inf"))
    accept = accept & (outside == 0)
    tl.store(out_energy_ptr + row, tl.where(accept, new_value, value), mask=here)
    tl.store(accepted_ptr + row, accept.to(tl.float32), mask=here)
    for first in range(0, dim, D):
        dims = first + tl.arange(0, D)
        mask = here[:, None] & (dims < dim)[None, :]
        cells = row[:, None] * dim + dims[None, :]
        kept = mask & (accept == 0)[:, None]
        taken = mask & accept[:, None]
        z = tl.load(z_ptr + cells, mask=kept, other=0.0)
        grad = tl.load(grad_ptr + cells, mask=kept, other=0.0)
        proposal = tl.load(proposal_ptr + cells, mask=taken, other=0.0)
        new_grad = tl.load(new_grad_ptr + cells, mask=taken, other=0.0)
        tl.store(out_ptr + cells, tl.where(accept[:, None], proposal, z), mask=mask)
        tl.store(out_grad_ptr + cells, tl.where(accept[:, None], new_grad, grad), mask=mask)


def _norms(grad: Tensor, moved: Tensor) -> Tensor:
    return torch.linalg.vector_norm(torch.stack((grad, moved)), dim=2)  # [2, B]


def langevin(
    z: Tensor,
    net: MLP,
    coefficients: Tensor,
    rng: Tensor,
    hold: Constraints,
    record_every: int = 0,
    statistics: bool = False,
) -> Chain:
    """K = len(coefficients) steps from z [B, d]."""
    steps, rows = len(coefficients), len(z)
    kept = steps // record_every if record_every else 0
    states, energies = z.new_empty(kept, *z.shape), z.new_empty(kept, rows)
    totals = z.new_zeros(3, rows if statistics else 0)
    update = updates(coefficients, rng, hold)
    z = z.clone() if steps == 0 or rows == 0 else z.contiguous()
    with launch.on(z.device):
        for k in range(steps if rows else 0):
            recorded = record_every > 0 and k > 0 and k % record_every == 0
            at = layered.evaluate(layers, z, net, energy=statistics or recorded)
            if recorded:
                states[k // record_every - 1], energies[k // record_every - 1] = z, at.energy
            if not (statistics or hold.grad_clip):
                z = layers.step(layered.deltas(layers, at, net)[1], net, z, coefficients, rng, k, hold)
                continue
            grad = layered.back(layers, at, net)[-1]
            before, z = z, update(z, grad, k)
            if statistics:
                totals += torch.cat((at.energy.unsqueeze(0), _norms(grad, z - before)))
        if kept and rows and steps % record_every == 0:
            states[-1], energies[-1] = z, energy(z, net)
    means = [total / max(1, steps) for total in totals]  # apart: an operator's outputs may not share storage
    return Chain(z, states, energies, *means)


def mala(
    z: Tensor,
    net: MLP,
    coefficients: Tensor,
    rng: Tensor,
    hold: Constraints,
    record_every: int = 0,
    statistics: bool = False,
) -> MalaChain:
    """K Metropolis-adjusted steps from z [B, d]; proposals outside the clamp box are rejected."""
    steps, (rows, dim) = len(coefficients), z.shape
    kept = steps // record_every if record_every else 0
    states, energies = z.new_empty(kept, rows, dim), z.new_empty(kept, rows)
    totals = z.new_zeros(4, rows if statistics else 0)
    work = z.new_zeros(rows if statistics else 0)
    propose = updates(coefficients, rng, hold._replace(lower=None, upper=None))
    width = min(64, launch.padded(dim))
    tile = _VALUES // width
    z = z.clone() if steps == 0 or rows == 0 else z.contiguous()
    value, grad = energy_and_grad(z, net)
    with launch.on(z.device):
        for k in range(steps if rows else 0):
            proposal = propose(z, grad, k)
            new_value, new_grad = energy_and_grad(proposal, net)
            held = [torch.empty_like(t) for t in (z, grad, value, value)]
            accept_kernel[(triton.cdiv(rows, tile),)](
                z, grad, value, proposal, new_grad, new_value, coefficients.contiguous(), rng.contiguous(),
                hold.scale.contiguous(), *held, rows, k, dim, *launch.limits(hold), REFERENCE=hold.reference,
                CLIP=hold.grad_clip is not None, CLAMP=hold.lower is not None or hold.upper is not None,
                M=tile, D=width, num_warps=4, **launch.OPTIONS,
            )  # fmt: skip
            if statistics:
                if k > 0:
                    work += (coefficients[k, 2] - coefficients[k - 1, 2]) * value
                totals += torch.cat((torch.stack((value, held[3])), _norms(grad, held[0] - z)))
            z, grad, value = held[:3]
            if record_every and (k + 1) % record_every == 0:
                states[k // record_every], energies[k // record_every] = z, value
    mean_energy, acceptance, grad_norm, displacement = (total / max(1, steps) for total in totals)
    return MalaChain(z, states, energies, mean_energy, grad_norm, displacement, acceptance, work)
