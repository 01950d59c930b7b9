"""Rows that lack modalities: encoding what is there, means over it, and choices among it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmebm.networks import moments
from mmebm.posteriors import Diagonal, scale_from

# Modality -> which rows have it, bool [B].
Masks = Mapping[str, Tensor] | None


def encoded(encoders: Sequence[nn.Module], inputs: Sequence[Tensor], present: Tensor | None, law: str) -> Diagonal:
    """The experts [C, B, d] that C encoders make of as many inputs [B, ..].

    `present` bool [C, B] tells which rows are there (None: all): no others are encoded, and theirs are standard.
    Errors: ValueError where nothing is there.
    """
    if present is None:
        outputs = [moments(encoder(x)) for encoder, x in zip(encoders, inputs, strict=True)]
        loc, raw = (torch.stack(each) for each in zip(*outputs, strict=True))
        return Diagonal(loc, scale_from(law, raw), law)
    rows = present.shape[1]
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for c, (encoder, x, seen) in enumerate(zip(encoders, inputs, present, strict=True)):
        at = seen.nonzero().flatten()
        if not len(at):
            continue
        loc, raw = moments(encoder(x if len(at) == rows else x[at]))
        scale = scale_from(law, raw)
        if len(at) < rows:
            shape = (rows, loc.shape[-1])
            loc, scale = loc.new_zeros(shape).index_copy(0, at, loc), loc.new_ones(shape).index_copy(0, at, scale)
        found[c] = loc, scale
    if not found:
        raise ValueError("masks: expected at least one row that has a modality, got none")
    one = next(iter(found.values()))[0]
    standard = torch.zeros_like(one), torch.ones_like(one)
    loc, scale = (torch.stack([found.get(c, standard)[i] for c in range(len(encoders))]) for i in range(2))
    return Diagonal(loc, scale, law)


def mean_over(value: Tensor, where: Tensor | None) -> Tensor:
    """The mean of a tensor, or of what `where` (bool, broadcast to its last dimensions) picks of it; 0 of nothing."""
    if where is None or value.dim() < where.dim():
        return value.mean()
    chosen = where.expand(value.shape)
    return torch.where(chosen, value, 0.0).sum() / chosen.sum().clamp_min(1)


def ranked(present: Tensor, rank: Tensor) -> Tensor:
    """In each column of bool [C, B] the row of its `rank`-th True (from 0): int64 [B]."""
    return (present.cumsum(0) > rank).to(torch.uint8).argmax(0)
