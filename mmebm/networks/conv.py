"""Convolutional networks of MoPoE (PolyMNIST) and of MMVAE (SVHN), for pictures [C, H, W]."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

_WIDTHS = (32, 64, 128)


def halved(size: int, times: int) -> list[int]:
    """`size` and what is left of it after each of `times` convolutions of stride 2, rounded up."""
    sizes = [size]
    for _ in range(times):
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


class ConvEncoder(nn.Module):
    """x [B, C, H, W] -> (loc, raw scale) [B, dim] each: three 3 x 3 convolutions of stride 2 and a linear layer.

    Source: Sutter, Daunhawer and Vogt, ICLR 2021, the code for PolyMNIST (32-64-128 channels, one layer of `dim`).
    """

    def __init__(self, shape: Sequence[int], dim: int) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        for before, after in zip((channels, *_WIDTHS), _WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        flat = _WIDTHS[-1] * halved(height, 3)[-1] * halved(width, 3)[-1]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, dim), nn.ReLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.body(x).chunk(2, dim=-1)
        return loc, raw


class ConvDecoder(nn.Module):
    """u [R, dim] -> [R, C, H, W]: the encoder's mirror image, without a last activation."""

    def __init__(self, dim: int, shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = shape
        heights, breadths = halved(height, 3)[::-1], halved(width, 3)[::-1]
        layers: list[nn.Module] = [
            nn.Linear(dim, _WIDTHS[-1] * heights[0] * breadths[0]),
            nn.ReLU(),
            nn.Unflatten(-1, (_WIDTHS[-1], heights[0], breadths[0])),
        ]
        widths = (*reversed(_WIDTHS), channels)
        for i in range(3):
            beyond = (heights[i + 1] - 2 * heights[i] + 1, breadths[i + 1] - 2 * breadths[i] + 1)
            layers.append(nn.ConvTranspose2d(widths[i], widths[i + 1], 3, 2, padding=1, output_padding=beyond))
            layers.append(nn.ReLU())
        self.body = nn.Sequential(*layers[:-1])

    def forward(self, u: Tensor) -> Tensor:
        return self.body(u)


class SVHNEncoder(nn.Module):
    """x [B, 3, 32, 32] -> (loc, raw scale) [B, dim] each. Source: Shi et al., NeurIPS 2019 (4 x 4 convolutions)."""

    def __init__(self, shape: Sequence[int], dim: int) -> None:
        super().__init__()
        _expect_svhn(shape)
        layers: list[nn.Module] = []
        for before, after in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.loc, self.raw = nn.Conv2d(_WIDTHS[-1], dim, 4), nn.Conv2d(_WIDTHS[-1], dim, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.loc(h).flatten(1), self.raw(h).flatten(1)


class SVHNDecoder(nn.Module):
    """u [R, dim] -> [R, 3, 32, 32] in (0, 1)."""

    def __init__(self, dim: int, shape: Sequence[int]) -> None:
        super().__init__()
        _expect_svhn(shape)
        widths = (*reversed(_WIDTHS), 3)
        layers: list[nn.Module] = [nn.ConvTranspose2d(dim, widths[0], 4), nn.ReLU()]
        for before, after in pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1], nn.Sigmoid())

    def forward(self, u: Tensor) -> Tensor:
        return self.body(u[..., None, None])


def _expect_svhn(shape: Sequence[int]) -> None:
    if torch.Size(shape) != (3, 32, 32):
        raise ValueError(f"shape: the SVHN network takes pictures [3, 32, 32], got {list(shape)}")
