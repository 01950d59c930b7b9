"""Validation shared by the operators and their fakes: every message names the argument, what it takes and what came."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .reference.activations import ACTIVATIONS

REFERENCES = ("normal", "laplace", "none")
LAWS = ("normal", "laplace")
PURPOSES = range(6)
MAX_EXPERTS = 31
MAX_DIM = 1 << 26


def _shape(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value}")


def positive(name: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a finite number > 0 or None, got {value}")


def tensor(name: str, t: Tensor, shape: Sequence[int | None], like: Tensor | None = None) -> None:
    """`shape` with None for a free size; dtype and device as in `like` (else any floating dtype)."""
    expected = "[" + ", ".join("*" if n is None else str(n) for n in shape) + "]"
    if t.dim() != len(shape) or any(n is not None and n != m for n, m in zip(shape, t.shape, strict=True)):
        raise ValueError(f"{name}: expected shape {expected}, got {_shape(t)}")
    if like is None and t.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {_shape(t)}")
    if like is not None and t.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype} as the first tensor has, got {_shape(t)}")
    if like is not None and t.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} as the first tensor is on, got {t.device}")


def rng(t: Tensor, device: torch.device | None = None) -> None:
    if t.dtype != torch.int64 or t.shape != (3,):
        raise ValueError(f"rng: expected int64 [3] = (seed, offset, first chain), got {_shape(t)}")
    if device is not None and t.device != device:
        raise ValueError(f"rng: expected on {device} as the first tensor is, got {t.device}")


def network(
    z: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: str, bound: float | None
) -> None:
    tensor("z", z, (None, None))
    one_of("activation", activation, tuple(ACTIVATIONS))
    positive("bound", bound)
    if not weights or len(weights) != len(biases):
        raise ValueError(f"weights, biases: expected equally many, at least one, got {len(weights)} and {len(biases)}")
    width = z.shape[1]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        out = 1 if i == len(weights) - 1 else None
        tensor(f"weights[{i}]", weight, (out, width), z)
        tensor(f"biases[{i}]", bias, (weight.shape[0],), z)
        width = weight.shape[0]


def constraints(
    z: Tensor, reference: str, scale: Tensor, clip: float | None, lower: float | None, upper: float | None
) -> None:
    one_of("reference", reference, REFERENCES)
    tensor("reference_scale", scale, (z.shape[1],), z)
    positive("grad_clip", clip)
    low = -math.inf if lower is None else lower
    high = math.inf if upper is None else upper
    if not low < high:
        raise ValueError(f"clamp: expected lower < upper, got ({lower}, {upper})")


def coefficients(t: Tensor, device: torch.device) -> None:
    if t.dtype != torch.float32 or t.dim() != 2 or t.shape[1] != 3:
        raise ValueError(f"coefficients: expected float32 [K, 3] = (a, b, t) per step, got {_shape(t)}")
    if t.device != device:
        raise ValueError(f"coefficients: expected on {device} as z is, got {t.device}")


def experts(z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str) -> None:
    one_of("law", law, LAWS)
    if z.dim() < 2 or z.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"z: expected floating [.., B, d], got {_shape(z)}")
    tensor("loc", loc, (None, *z.shape[-2:]), z)
    tensor("scale", scale, loc.shape, z)
    if not 1 <= len(loc) <= MAX_EXPERTS:
        raise ValueError(f"loc: expected 1 to {MAX_EXPERTS} experts, got {len(loc)}")
    if present.dtype != torch.int64 or present.shape != z.shape[-2:-1] or present.device != z.device:
        raise ValueError(
            f"present: expected an int64 bitmask [{z.shape[-2]}] on {z.device}, "
            f"got {_shape(present)} on {present.device}"
        )
