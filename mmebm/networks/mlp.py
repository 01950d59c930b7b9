"""Multilayer perceptrons on flattened modalities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def _layers(widths: Sequence[int]) -> list[nn.Module]:
    return [module for i, o in pairwise(widths) for module in (nn.Linear(i, o), nn.ReLU())]


class MLPEncoder(nn.Module):
    """x [B, *shape] -> the (loc, raw scale) of one latent block, [B, dim] each."""

    def __init__(self, shape: Sequence[int], dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = (int(torch.Size(shape).numel()), *hidden)
        self.body = nn.Sequential(nn.Flatten(), *_layers(widths), nn.Linear(widths[-1], 2 * dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.body(x).chunk(2, dim=-1)
        return loc, raw


class MLPDecoder(nn.Module):
    """u [R, dim] -> [R, *shape], in (0, 1) with a last `sigmoid`."""

    def __init__(self, dim: int, shape: Sequence[int], hidden: Sequence[int], *, sigmoid: bool = False) -> None:
        super().__init__()
        widths = (dim, *reversed(hidden))
        out = nn.Linear(widths[-1], int(torch.Size(shape).numel()))
        last = [nn.Sigmoid()] if sigmoid else []
        self.body = nn.Sequential(*_layers(widths), out, *last, nn.Unflatten(-1, tuple(shape)))

    def forward(self, u: Tensor) -> Tensor:
        return self.body(u)
