"""The residual networks of MMVAE+ for PolyMNIST and CUB (Palumbo et al., ICLR 2023), without normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

_WIDTH, _LARGEST = 64, 256
_SLOPE = 0.2


class ResidualBlock(nn.Module):
    """shortcut(x) + 0.1 conv(lrelu(conv(lrelu(x)))), 3 x 3 convolutions."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        between = min(before, after)
        self.first = nn.Conv2d(before, between, 3, padding=1)
        self.second = nn.Conv2d(between, after, 3, padding=1)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.leaky_relu(x, _SLOPE))
        return self.shortcut(x) + 0.1 * self.second(F.leaky_relu(h, _SLOPE))


def _levels(shape: Sequence[int]) -> tuple[list[int], tuple[int, int]]:
    """Channels at every resolution, the finest first, and the coarsest picture: halved while it is even and over 3."""
    _, height, width = shape
    widths = [_WIDTH]
    while height % 2 == width % 2 == 0 and min(height, width) > 3:
        height, width = height // 2, width // 2
        widths.append(min(2 * widths[-1], _LARGEST))
    return widths, (height, width)


class ResNetEncoder(nn.Module):
    """x [B, C, H, W] -> (loc, raw scale) [B, dim] each."""

    def __init__(self, shape: Sequence[int], dim: int) -> None:
        super().__init__()
        widths, (height, width) = _levels(shape)
        layers: list[nn.Module] = [nn.Conv2d(shape[0], _WIDTH, 3, padding=1), ResidualBlock(_WIDTH, _WIDTH)]
        for before, after in pairwise(widths):
            layers += [nn.AvgPool2d(3, stride=2, padding=1), ResidualBlock(before, after)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        flat = widths[-1] * height * width
        self.loc, self.raw = nn.Linear(flat, dim), nn.Linear(flat, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.loc(h), self.raw(h)


class ResNetDecoder(nn.Module):
    """u [R, dim] -> [R, C, H, W], without a last activation."""

    def __init__(self, dim: int, shape: Sequence[int]) -> None:
        super().__init__()
        widths, (height, width) = _levels(shape)
        layers: list[nn.Module] = [
            nn.Linear(dim, widths[-1] * height * width),
            nn.Unflatten(-1, (widths[-1], height, width)),
        ]
        for before, after in zip(widths[::-1], widths[-2::-1], strict=False):
            layers += [ResidualBlock(before, after), nn.Upsample(scale_factor=2)]
        last = nn.Conv2d(_WIDTH, shape[0], 3, padding=1)
        self.body = nn.Sequential(*layers, ResidualBlock(_WIDTH, _WIDTH), nn.LeakyReLU(_SLOPE), last)

    def forward(self, u: Tensor) -> Tensor:
        return self.body(u)
