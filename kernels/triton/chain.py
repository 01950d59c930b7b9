"""Whole chains in one launch: a program runs all steps of M chains, weights in shared memory, states in registers.

`langevin` and `mala` have the names and signatures of kernels/native.py. Coefficients and `rng` are read on the device,
so that a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..reference import MLP, Chain, Constraints, MalaChain
from . import launch
from .network import energy_and_grad, load_network
from .noise import ACCEPT, CHAIN_NOISE, minus_log, normal4, to_dims, uniform, words

_NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _pull(z, precision, REFERENCE: tl.constexpr):
    """-grad log p_0; `precision` is 1 / scale^2 (normal) or 1 / scale (laplace), [D]."""
    if REFERENCE == "normal":
        return z * precision[None, :]
    else:
        sign = z.to(tl.int32, bitcast=True) & -2147483648
        signed = (precision.to(tl.int32, bitcast=True)[None, :] | sign).to(tl.float32, bitcast=True)
        return tl.where(z == 0.0, 0.0, signed)


@triton.jit
def drift(z, grad, t, precision, clip, REFERENCE: tl.constexpr, CLIP: tl.constexpr):
    """grad U at z [M, D] given dE/dz there: clipped, times t, plus the reference's."""
    if CLIP:
        norm = tl.sqrt_rn(tl.sum(grad * grad, 1))
        grad = grad * (clip / tl.maximum(norm, clip, propagate_nan=_NAN))[:, None]
    if REFERENCE == "none":
        return grad * t
    else:
        return tl.fma(grad, t, _pull(z, precision, REFERENCE))


@triton.jit
def chain_noise(
    seed, step, chain, ROWS: tl.constexpr, DIMS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """eps [ROWS, DIMS] of one step of chains [ROWS], 0 in dimensions from DIM on."""
    q = tl.arange(0, DIMS // 4)
    a, b, c, d = normal4(seed, step, chain[:, None], CHAIN_NOISE, q[None, :], WIDE)
    eps = to_dims(a, b, c, d, ROWS, DIMS)
    if DIM < DIMS:
        eps = tl.where(tl.arange(0, DIMS)[None, :] < DIM, eps, 0.0)
    return eps


@triton.jit
def _load_precision(scale_ptr, DIM: tl.constexpr, D: tl.constexpr, REFERENCE: tl.constexpr):
    i = tl.arange(0, D)
    scale = tl.load(scale_ptr + i, mask=i < DIM, other=1.0)
    if REFERENCE == "normal":
        scale = scale * scale
    return tl.div_rn(tl.full((D,), 1.0, tl.float32), scale)


@triton.jit(do_not_specialize=["rows", "steps", "record_every"], repr=launch.kernel_name("langevin_chain"))
def langevin_kernel(
    z_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, w3_ptr, b3_ptr, w_ptr, b_ptr, table_ptr, rng_ptr, scale_ptr,
    out_ptr, states_ptr, energies_ptr, mean_energy_ptr, grad_norm_ptr, displacement_ptr,
    rows, steps, record_every, slope, bound, clip, lower, upper,
    DIM: tl.constexpr, H1: tl.constexpr, H2: tl.constexpr, H3: tl.constexpr,
    M: tl.constexpr, D: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr, DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, HALVED: tl.constexpr, REFERENCE: tl.constexpr,
    BOUND: tl.constexpr, CLIP: tl.constexpr, CLAMP: tl.constexpr, RECORD: tl.constexpr, STATISTICS: tl.constexpr,
):  # fmt: skip
    """All steps of M chains."""
    # Stack of d = 32 and two layers of 128, bf16, sm_90, Triton 3.9: 216 bytes a thread, and 440 with wide products.
    WIDE: tl.constexpr = P1 < 128 and P2 < 128 and P3 < 128
    w1, low1, b1, w2, low2, b2, w3, low3, b3, w, b = load_network(
        w1_ptr, b1_ptr, w2_ptr, b2_ptr, w3_ptr, b3_ptr, w_ptr, b_ptr, DIM, H1, H2, H3, D, P1, P2, P3, DEPTH, PRECISION,
        HALVED,
    )  # fmt: skip
    precision = _load_precision(scale_ptr, DIM, D, REFERENCE)
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    dims = tl.arange(0, D)
    here = row < rows
    mask = here[:, None] & (dims[None, :] < DIM)
    cells = row[:, None] * DIM + dims[None, :]
    z = tl.load(z_ptr + cells, mask=mask, other=0.0)  # [M, D]
    seed = tl.load(rng_ptr)
    offset = tl.load(rng_ptr + 1)
    chain = tl.load(rng_ptr + 2) + row
    if STATISTICS:
        energy_sum = tl.zeros((M,), tl.float32)
        norm_sum = tl.zeros((M,), tl.float32)
        length_sum = tl.zeros((M,), tl.float32)
    for k in range(steps):
        a = tl.load(table_ptr + 3 * k)
        noise_size = tl.load(table_ptr + 3 * k + 1)
        t = tl.load(table_ptr + 3 * k + 2)
        e, grad = energy_and_grad(
            z, w1, low1, b1, w2, low2, b2, w3, low3, b3, w, b, slope, bound, DEPTH, ACTIVATION, PRECISION, BOUND, HALVED
        )
        if RECORD:  # noqa: SIM102 (one is decided by the compiler)
            if (k > 0) & (k % record_every == 0):
                kept = (k // record_every - 1).to(tl.int64) * rows
                tl.store(states_ptr + kept * DIM + cells, z, mask=mask)
                tl.store(energies_ptr + kept + row, e, mask=here)
        if STATISTICS:
            energy_sum += e
            norm_sum += tl.sqrt_rn(tl.sum(grad * grad, 1))
        force = drift(z, grad, t, precision, clip, REFERENCE, CLIP)
        eps = chain_noise(seed, offset + k, chain, M, D, DIM, WIDE)
        new = tl.fma(noise_size, eps, tl.fma(-a, force, z))
        if CLAMP:
            new = tl.minimum(tl.maximum(new, lower, propagate_nan=_NAN), upper, propagate_nan=_NAN)
            if DIM < D:
                new = tl.where(dims[None, :] < DIM, new, 0.0)
        if STATISTICS:
            length_sum += tl.sqrt_rn(tl.sum((new - z) * (new - z), 1))
        z = new
    tl.store(out_ptr + cells, z, mask=mask)
    if RECORD:  # noqa: SIM102
        if (steps > 0) & (steps % record_every == 0):
            e, grad = energy_and_grad(
                z,
                w1,
                low1,
                b1,
                w2,
                low2,
                b2,
                w3,
                low3,
                b3,
                w,
                b,
                slope,
                bound,
                DEPTH,
                ACTIVATION,
                PRECISION,
                BOUND,
                HALVED,
            )
            kept = (steps // record_every - 1).to(tl.int64) * rows
            tl.store(states_ptr + kept * DIM + cells, z, mask=mask)
            tl.store(energies_ptr + kept + row, e, mask=here)
    if STATISTICS:
        count = tl.maximum(steps, 1).to(tl.float32)
        tl.store(mean_energy_ptr + row, energy_sum / count, mask=here)
        tl.store(grad_norm_ptr + row, norm_sum / count, mask=here)
        tl.store(displacement_ptr + row, length_sum / count, mask=here)


@triton.jit
def _log_alpha(z, proposal, here, there, a, noise_size, precision, REFERENCE: tl.constexpr):
    """What the reference and both proposal densities add to log alpha [M]; differences come before sums."""
    step = z - proposal
    density = (here + there) * tl.fma(step, 2.0, a * (there - here))
    ratio = tl.sum(density, 1) * (-a / (2.0 * noise_size * noise_size))
    if REFERENCE == "normal":
        ratio += tl.sum(step * (z + proposal) * (precision * 0.5)[None, :], 1)
    if REFERENCE == "laplace":
        ratio += tl.sum((tl.abs(z) - tl.abs(proposal)) * precision[None, :], 1)
    return ratio


@triton.jit(do_not_specialize=["rows", "steps", "record_every"], repr=launch.kernel_name("mala_chain"))
def mala_kernel(
    z_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, w3_ptr, b3_ptr, w_ptr, b_ptr, table_ptr, rng_ptr, scale_ptr,
    out_ptr, states_ptr, energies_ptr, mean_energy_ptr, grad_norm_ptr, displacement_ptr, acceptance_ptr, work_ptr,
    rows, steps, record_every, slope, bound, clip, lower, upper,
    DIM: tl.constexpr, H1: tl.constexpr, H2: tl.constexpr, H3: tl.constexpr,
    M: tl.constexpr, D: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr, DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, HALVED: tl.constexpr, REFERENCE: tl.constexpr,
    BOUND: tl.constexpr, CLIP: tl.constexpr, CLAMP: tl.constexpr, RECORD: tl.constexpr, STATISTICS: tl.constexpr,
):  # fmt: skip
    """All steps of M chains, each step accepted or rejected."""
    w1, low1, b1, w2, low2, b2, w3, low3, b3, w, b = load_network(
        w1_ptr, b1_ptr, w2_ptr, b2_ptr, w3_ptr, b3_ptr, w_ptr, b_ptr, DIM, H1, H2, H3, D, P1, P2, P3, DEPTH, PRECISION,
        HALVED,
    )  # fmt: skip
    precision = _load_precision(scale_ptr, DIM, D, REFERENCE)
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    dims = tl.arange(0, D)
    here_row = row < rows
    mask = here_row[:, None] & (dims[None, :] < DIM)
    cells = row[:, None] * DIM + dims[None, :]
    z = tl.load(z_ptr + cells, mask=mask, other=0.0)  # [M, D]
    seed = tl.load(rng_ptr)
    offset = tl.load(rng_ptr + 1)
    chain = tl.load(rng_ptr + 2) + row
    if STATISTICS:
        energy_sum = tl.zeros((M,), tl.float32)
        norm_sum = tl.zeros((M,), tl.float32)
        length_sum = tl.zeros((M,), tl.float32)
        accepted = tl.zeros((M,), tl.float32)
        work = tl.zeros((M,), tl.float32)
    value, grad = energy_and_grad(
        z, w1, low1, b1, w2, low2, b2, w3, low3, b3, w, b, slope, bound, DEPTH, ACTIVATION, PRECISION, BOUND, HALVED
    )
    for k in range(steps):
        a = tl.load(table_ptr + 3 * k)
        noise_size = tl.load(table_ptr + 3 * k + 1)
        t = tl.load(table_ptr + 3 * k + 2)
        here = drift(z, grad, t, precision, clip, REFERENCE, CLIP)
        eps = chain_noise(seed, offset + k, chain, M, D, DIM, False)
        proposal = tl.fma(noise_size, eps, tl.fma(-a, here, z))
        new_value, new_grad = energy_and_grad(
            proposal, w1, low1, b1, w2, low2, b2, w3, low3, b3, w, b, slope, bound,
            DEPTH, ACTIVATION, PRECISION, BOUND, HALVED,
        )  # fmt: skip
        there = drift(proposal, new_grad, t, precision, clip, REFERENCE, CLIP)
        log_alpha = _log_alpha(z, proposal, here, there, a, noise_size, precision, REFERENCE)
        log_alpha = tl.fma(t, value - new_value, log_alpha)
        x0, _x1, _x2, _x3 = words(seed, offset + k, chain, ACCEPT, tl.zeros((M,), tl.uint32))
        # A NaN compares false: it rejects. Without noise there is no density.
        accept = -minus_log(uniform(x0)) < tl.where(noise_size != 0.0, log_alpha, float("-inf"))
        if CLAMP:
            outside = ((proposal < lower) | (proposal > upper)) & (dims[None, :] < DIM)
            accept = accept & (tl.sum(outside.to(tl.int32), 1) == 0)
        if STATISTICS:
            if k > 0:
                work += (t - tl.load(table_ptr + 3 * k - 1)) * value
            energy_sum += value
            norm_sum += tl.sqrt_rn(tl.sum(grad * grad, 1))
            step = tl.where(accept[:, None], proposal - z, 0.0)
            length_sum += tl.sqrt_rn(tl.sum(step * step, 1))
            accepted += accept.to(tl.float32)
        z = tl.where(accept[:, None], proposal, z)
        grad = tl.where(accept[:, None], new_grad, grad)
        value = tl.where(accept, new_value, value)
        if RECORD:  # noqa: SIM102 (one is decided by the compiler)
            if (k + 1) % record_every == 0:
                kept = (k // record_every).to(tl.int64) * rows
                tl.store(states_ptr + kept * DIM + cells, z, mask=mask)
                tl.store(energies_ptr + kept + row, value, mask=here_row)
    tl.store(out_ptr + cells, z, mask=mask)
    if STATISTICS:
        count = tl.maximum(steps, 1).to(tl.float32)
        tl.store(mean_energy_ptr + row, energy_sum / count, mask=here_row)
        tl.store(grad_norm_ptr + row, norm_sum / count, mask=here_row)
        tl.store(displacement_ptr + row, length_sum / count, mask=here_row)
        tl.store(acceptance_ptr + row, accepted / count, mask=here_row)
        tl.store(work_ptr + row, work, mask=here_row)


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
    if launch.too_large(net, z.device):
        from . import layered

        return layered.langevin(z, net, coefficients, rng, hold, record_every, statistics)
    return Chain(*_run(langevin_kernel, 3, z, net, coefficients, rng, hold, record_every, statistics))


def mala(
    z: Tensor,
    net: MLP,
    coefficients: Tensor,
    rng: Tensor,
    hold: Constraints,
    record_every: int = 0,
    statistics: bool = False,
) -> MalaChain:
    """K Metropolis-adjusted steps from z [B, d]."""
    if launch.too_large(net, z.device):
        from . import layered

        return layered.mala(z, net, coefficients, rng, hold, record_every, statistics)
    return MalaChain(*_run(mala_kernel, 5, z, net, coefficients, rng, hold, record_every, statistics))


def _run(
    kernel: Any,
    means: int,
    z: Tensor,
    net: MLP,
    coefficients: Tensor,
    rng: Tensor,
    hold: Constraints,
    record_every: int,
    statistics: bool,
) -> list[Tensor]:
    (rows, dim), steps = z.shape, len(coefficients)
    kept = steps // record_every if record_every else 0
    out, states, energies = z.new_empty(rows, dim), z.new_empty(kept, rows, dim), z.new_empty(kept, rows)
    measured = [z.new_empty(rows if statistics else 0) for _ in range(means)]
    if rows:
        packed, tile = launch.packed(net), launch.tile(net, z.device)
        with launch.on(z.device):
            kernel[(triton.cdiv(rows, tile.rows),)](
                z.contiguous(), *packed.tensors, coefficients.contiguous(), rng.contiguous(), hold.scale.contiguous(),
                out, states, energies, *measured, rows, steps, max(1, record_every), net.slope,
                *launch.held(net, hold), M=tile.rows, **packed.shape, **launch.flags(net, hold, z.device),
                RECORD=kept > 0, STATISTICS=statistics, num_warps=tile.warps, **launch.OPTIONS,
            )  # fmt: skip
    return [out, states, energies, *measured]
