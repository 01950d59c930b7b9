"""log of the uniform mixture of M diagonal experts, with a mask of the experts present in each row."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _log_density(z: Tensor, loc: Tensor, scale: Tensor, law: str) -> Tensor:
    u = (z - loc) / scale
    if law == "normal":
        return -(0.5 * u * u + scale.log() + 0.5 * math.log(2.0 * math.pi)).sum(-1)
    return -(u.abs() + (2.0 * scale).log()).sum(-1)


def by_expert(z: Tensor, parameter: Tensor) -> Tensor:
    """[M, B, d] -> [M, 1.., B, d], to meet z [.., B, d]."""
    return parameter.view(parameter.shape[0], *(1,) * (z.dim() - 2), *parameter.shape[1:])


def observed(present: Tensor, experts: int) -> Tensor:
    """Bitmask [.., B] -> bool [M, .., B]; bits from M on are ignored."""
    bits = torch.arange(experts, device=present.device).view(-1, *(1,) * present.dim())
    return (present.unsqueeze(0) >> bits & 1).bool()


def _components(z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str) -> tuple[Tensor, Tensor, Tensor]:
    """log q_m(z) [M, .., B], -inf where the expert is absent; where it is; the number of present experts [B]."""
    held = observed(present, len(loc))
    each = _log_density(z, by_expert(z, loc), by_expert(z, scale), law)
    absent = ~held.view(len(loc), *(1,) * (z.dim() - 2), -1)
    return each.masked_fill(absent, -math.inf), absent, held.sum(0)


def mixture_log_prob(z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str) -> Tensor:
    """z [.., B, d], loc and scale [M, B, d], present int64 [B] -> [.., B]; an empty row has the standard law."""
    each, _, count = _components(z, loc, scale, present, law)
    mixed = torch.logsumexp(each, 0) - count.clamp_min(1).to(z.dtype).log()
    prior = _log_density(z, z.new_zeros(()), z.new_ones(z.shape[-1]), law)
    return torch.where(count > 0, mixed, prior)


def mixture_log_prob_backward(
    g: Tensor, z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of sum g log q in z, and where `parameters`, in loc and scale (else empty)."""
    each, absent, count = _components(z, loc, scale, present, law)
    empty = count == 0
    weight = torch.softmax(each.masked_fill(empty, 0.0), 0) * g  # [M, .., B]
    weight = weight.unsqueeze(-1)
    spread = by_expert(z, scale)
    u = (z - by_expert(z, loc)) / spread
    pull, stretch = (u, u * u - 1.0) if law == "normal" else (u.sign(), u.abs() - 1.0)
    # Selected, not only weighted by zero: an absent expert may hold anything, NaN too.
    absent = absent.unsqueeze(-1)
    d_loc = (weight * pull / spread).masked_fill(absent, 0.0)
    d_z = -d_loc.sum(0)
    prior = z if law == "normal" else z.sign()
    d_z = torch.where(empty.unsqueeze(-1), -g.unsqueeze(-1) * prior, d_z)
    if not parameters:
        return d_z, z.new_empty(0), z.new_empty(0)
    batch = tuple(range(1, z.dim() - 1))
    d_scale = (weight * stretch / spread).masked_fill(absent, 0.0)
    return (d_z, d_loc.sum(batch), d_scale.sum(batch)) if batch else (d_z, d_loc, d_scale)
