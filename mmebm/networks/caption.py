"""Convolutional networks for captions, one-hot words [L, V] with L a multiple of 8 (MMVAE+'s for CUB, L = 32).

Words are embedded in 128 dimensions and the caption is taken as a picture [1, L, 128].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_EMBEDDED = 128
_BASE = 32


def _down(before: int, after: int, rows: bool) -> list[nn.Module]:
    """Halves the columns, and the rows too where asked."""
    kernel, stride, padding = ((4, 4), (2, 2), (1, 1)) if rows else ((1, 4), (1, 2), (0, 1))
    conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
    return [conv, nn.BatchNorm2d(after), nn.ReLU()]


def _up(before: int, after: int, rows: bool) -> list[nn.Module]:
    kernel, stride, padding = ((4, 4), (2, 2), (1, 1)) if rows else ((1, 4), (1, 2), (0, 1))
    conv = nn.ConvTranspose2d(before, after, kernel, stride, padding, bias=False)
    return [conv, nn.BatchNorm2d(after), nn.ReLU()]


def _same(before: int, after: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


class CaptionEncoder(nn.Module):
    """x [B, L, V] -> (loc, raw scale) [B, dim] each; a `shallow` one, MMVAE+'s for private latents, has three layers.

    Source: Palumbo et al., ICLR 2023, the 2024 release; its `squeeze`, which breaks batches of one, is not taken over.
    """

    def __init__(self, shape: Sequence[int], dim: int, *, shallow: bool = False) -> None:
        super().__init__()
        length, words = shape
        self.embedding = nn.Linear(words, _EMBEDDED)
        layers = _down(1, _BASE, True) + _down(_BASE, 2 * _BASE, True) + _down(2 * _BASE, 4 * _BASE, True)
        left = length // 8
        if shallow:
            self.body = nn.Sequential(*layers, nn.Flatten())
            flat = 4 * _BASE * left * (_EMBEDDED // 8)
        else:
            layers += _down(4 * _BASE, 8 * _BASE, False) + _down(8 * _BASE, 16 * _BASE, False)
            self.body = nn.Sequential(*layers, nn.Flatten())
            flat = 16 * _BASE * left * (_EMBEDDED // 32)  # a last convolution over all of it is a linear layer
        self.loc, self.raw = nn.Linear(flat, dim), nn.Linear(flat, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(self.embedding(x).unsqueeze(1))
        return self.loc(h), self.raw(h)


class CaptionDecoder(nn.Module):
    """u [R, dim] -> logits [R, L, V]; the first `private` of u's coordinates have a tower of their own.

    Source: as the encoder's; the softmax is the likelihood's.
    """

    def __init__(self, dim: int, shape: Sequence[int], *, private: int = 0) -> None:
        super().__init__()
        length, words = shape
        self.private = private
        self.shared = self._tower(dim - private, length // 8, deep=True)
        self.own = self._tower(private, length // 8, deep=False) if private else None
        joined = 4 * _BASE * (2 if private else 1)
        self.body = nn.Sequential(
            *_same(joined, 4 * _BASE),
            *_up(4 * _BASE, 2 * _BASE, True),
            *_up(2 * _BASE, _BASE, True),
            nn.ConvTranspose2d(_BASE, 1, 4, 2, 1, bias=False),
            nn.ReLU(),
        )
        self.words = nn.Linear(_EMBEDDED, words)

    @staticmethod
    def _tower(dim: int, rows: int, deep: bool) -> nn.Sequential:
        """[R, dim] -> [R, 128, L / 8, 16]."""
        first = nn.ConvTranspose2d(dim, 16 * _BASE, (rows, 4), bias=False)
        layers = [nn.Unflatten(-1, (dim, 1, 1)), first, nn.BatchNorm2d(16 * _BASE), nn.ReLU()]
        layers += _up(16 * _BASE, 8 * _BASE, False)
        if deep:
            layers += _same(8 * _BASE, 8 * _BASE)
        return nn.Sequential(*layers, *_up(8 * _BASE, 4 * _BASE, False))

    def forward(self, u: Tensor) -> Tensor:
        h = self.shared(u[..., self.private :])
        if self.own is not None:
            h = torch.cat((self.own(u[..., : self.private]), h), 1)
        return self.words(self.body(h).squeeze(1))
