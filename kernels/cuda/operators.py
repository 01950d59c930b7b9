"""Draws, the update alone, products and mixtures of experts. Arguments arrive validated by `ops`.

Coefficients and `rng` are read on the device, so that a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..device import on
from ..pointers import LAWS, address, experts_args, hold_args, mixture_args
from ..reference import Constraints
from . import module


def draw(rng: Tensor, steps: int, rows: int, dim: int, law: str, purpose: int, scale: Tensor | None = None) -> Tensor:
    """Draws float32 [steps, rows, dim] of the law, times scale [dim]; rng: int64 [3] = (seed, offset, first chain)."""
    out = torch.empty((steps, rows, dim), dtype=torch.float32, device=rng.device)
    rng, scale = rng.contiguous(), None if scale is None else scale.contiguous()
    with on(rng.device):
        module.native().draw(
            address(out), address(scale), steps, rows, dim, rng.data_ptr(), LAWS[law], purpose,
            module.stream(rng.device),
        )  # fmt: skip
    return out


def updates(coefficients: Tensor, rng: Tensor, hold: Constraints) -> Callable[[Tensor, Tensor, int], Tensor]:
    """`langevin_update` of (z, grad, step) for a loop: what does not change from step to step is read once."""
    kernel, table, stream, scale = (
        module.native().langevin_update, coefficients.contiguous(), rng.contiguous(), hold.scale.contiguous(),
    )  # fmt: skip
    held = hold_args(hold, scale)

    def update(z: Tensor, grad: Tensor, step: int) -> Tensor:
        z, grad = z.contiguous(), grad.contiguous()
        out = torch.empty_like(z)
        with on(z.device):
            # `scale` is named so that it outlives its address in `held`.
            kernel(
                z.data_ptr(), grad.data_ptr(), len(z), len(scale), table.data_ptr(), stream.data_ptr(), step, held,
                out.data_ptr(), module.stream(z.device),
            )  # fmt: skip
        return out

    return update


def langevin_update(z: Tensor, grad: Tensor, coefficients: Tensor, rng: Tensor, step: int, hold: Constraints) -> Tensor:
    """Step `step` of a chain given dE/dz [B, d] at z."""
    return updates(coefficients, rng, hold)(z, grad, step)


def product_of_experts(mu: Tensor, logvar: Tensor, present: Tensor, prior: str) -> tuple[Tensor, Tensor]:
    """mu and logvar [M, B, d], present int64 [B] -> mu and logvar [B, d] of the product."""
    present = present.contiguous()
    mean, lv = mu.new_empty(mu.shape[1:]), mu.new_empty(mu.shape[1:])
    with on(mu.device):
        module.native().product(
            experts_args(mu, logvar, present, prior), mean.data_ptr(), lv.data_ptr(), module.stream(mu.device)
        )
    return mean, lv


def product_of_experts_backward(
    g_mu: Tensor, g_logvar: Tensor, mu: Tensor, logvar: Tensor, present: Tensor, prior: str
) -> tuple[Tensor, Tensor]:
    """The gradient of sum(g_mu mu + g_logvar logvar) in the experts' mu and logvar [M, B, d]."""
    present, g_mu, g_logvar = present.contiguous(), g_mu.contiguous(), g_logvar.contiguous()
    d_mu, d_logvar = torch.empty_like(mu), torch.empty_like(mu)
    with on(mu.device):
        module.native().product_backward(
            experts_args(mu, logvar, present, prior), g_mu.data_ptr(), g_logvar.data_ptr(), d_mu.data_ptr(),
            d_logvar.data_ptr(), module.stream(mu.device),
        )  # fmt: skip
    return d_mu, d_logvar


def subset_experts(mu: Tensor, logvar: Tensor, present: Tensor, prior: str, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """Over every subset: mu, logvar [S, B, d] (mode "all") and KL(q_s || N(0, I)) [S, B] (mode "kl"), else empty."""
    present, subsets = present.contiguous(), (1 << len(mu)) - 1
    shape = (subsets, *mu.shape[1:]) if mode == "all" else (0,)
    means, logvars = mu.new_empty(shape), mu.new_empty(shape)
    kl = mu.new_empty((subsets, mu.shape[1]) if mode == "kl" else (0,))
    with on(mu.device):
        module.native().subsets(
            experts_args(mu, logvar, present, prior), address(means), address(logvars), address(kl),
            module.stream(mu.device),
        )  # fmt: skip
    return means, logvars, kl


def subset_experts_backward(
    g_mu: Tensor, g_logvar: Tensor, g_kl: Tensor, mu: Tensor, logvar: Tensor, present: Tensor, prior: str, mode: str
) -> tuple[Tensor, Tensor]:
    """The gradient of sum(g_mu mu + g_logvar logvar) (mode "all") or sum(g_kl kl) (mode "kl") in the experts."""
    present, incoming = present.contiguous(), [g.contiguous() for g in (g_mu, g_logvar, g_kl)]
    d_mu, d_logvar = torch.empty_like(mu), torch.empty_like(mu)
    with on(mu.device):
        module.native().subsets_backward(
            experts_args(mu, logvar, present, prior), *map(address, incoming), d_mu.data_ptr(), d_logvar.data_ptr(),
            module.stream(mu.device),
        )  # fmt: skip
    return d_mu, d_logvar


def mixture_log_prob(z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str) -> Tensor:
    """z [.., B, d], loc and scale [M, B, d], present int64 [B] -> [.., B]; an empty row has the standard law."""
    present, out = present.contiguous(), z.new_empty(z.shape[:-1])
    with on(z.device):
        module.native().mixture(mixture_args(z, loc, scale, present, law), address(out), module.stream(z.device))
    return out


def mixture_log_prob_backward(
    g: Tensor, z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of sum g log q in z, and where `parameters`, in loc and scale (else empty)."""
    present, g, dz = present.contiguous(), g.contiguous(), torch.empty_like(z)
    d_loc, d_scale = (loc.new_empty(loc.shape if parameters else (0,)) for _ in range(2))
    with on(z.device):
        module.native().mixture_backward(
            mixture_args(z, loc, scale, present, law), g.data_ptr(), address(dz), address(d_loc), address(d_scale),
            module.stream(z.device),
        )  # fmt: skip
    return dz, d_loc, d_scale
