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
MAX_SUBSET_EXPERTS = 16
PRIORS = ("never", "always", "full")
SUBSET_MODES = ("all", "one", "kl")
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
    if value is not None and not 2.0**-126 <= value < 2.0**128:
        raise ValueError(f"{name}: expected a number that float32 holds, 1.2e-38 to 3.4e38, or None, got {value}")


def tensor(name: str, t: Tensor, shape: Sequence[int | None], like: Tensor | None = None) -> None:
    """`shape` with None for a free size; dtype and device as in `like` (else any floating dtype)."""
    if t.dim() != len(shape) or any(n is not None and n != m for n, m in zip(shape, t.shape, strict=True)):
        expected = "[" + ", ".join("*" if n is None else str(n) for n in shape) + "]"
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
    if activation not in ACTIVATIONS:
        one_of("activation", activation, tuple(ACTIVATIONS))
    positive("bound", bound)
    if not weights or len(weights) != len(biases):
        raise ValueError(f"weights, biases: expected equally many, at least one, got {len(weights)} and {len(biases)}")
    width, dtype, device, last = z.shape[1], z.dtype, z.device, len(weights) - 1
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        # What every call passes, in one look: this is on the way of each small batch.
        out = 1 if i == last else weight.shape[0] if weight.dim() else None
        fits = weight.shape == (out, width) and bias.shape == (out,)
        if not (fits and weight.dtype is bias.dtype is dtype and weight.device == device == bias.device):
            tensor(f"weights[{i}]", weight, (1 if i == last else None, width), z)
            tensor(f"biases[{i}]", bias, (weight.shape[0],), z)
        width = weight.shape[0]


def constraints(
    z: Tensor, reference: str, scale: Tensor, clip: float | None, lower: float | None, upper: float | None
) -> None:
    if z.shape[1] > MAX_DIM:
        raise ValueError(
            f"z: expected at most {MAX_DIM} dimensions, what 24 bits of call numbers address, got {_shape(z)}"
        )
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
    _count("loc", loc)
    bitmask("present", present, z.shape[-2], z.device)


def gaussian_experts(mu: Tensor, logvar: Tensor, present: Tensor, prior: str) -> None:
    one_of("prior", prior, PRIORS)
    tensor("mu", mu, (None, None, None))
    tensor("logvar", logvar, mu.shape, mu)
    _count("mu", mu)
    bitmask("present", present, mu.shape[1], mu.device)


def subset_mode(mu: Tensor, mode: str, subset: Tensor | None, given: Tensor | None) -> None:
    """`given`: the rng."""
    _subset_mode(mu, mode, SUBSET_MODES)
    count = (subset is not None) + (given is not None)
    if count != (mode == "one"):
        wanted = "exactly one of them for mode 'one'" if mode == "one" else f"neither for mode {mode!r}"
        raise ValueError(f"subset, rng: expected {wanted}, got {('neither', 'one', 'both')[count]}")
    if subset is not None:
        bitmask("subset", subset, mu.shape[1], mu.device)
    if given is not None:
        rng(given, mu.device)


def subset_gradients(g_mu: Tensor, g_logvar: Tensor, g_kl: Tensor, mu: Tensor, mode: str) -> None:
    _subset_mode(mu, mode, ("all", "kl"))
    subsets = (1 << mu.shape[0]) - 1
    product = (subsets, *mu.shape[1:]) if mode == "all" else (0,)
    tensor("g_mu", g_mu, product, mu)
    tensor("g_logvar", g_logvar, product, mu)
    tensor("g_kl", g_kl, (subsets, mu.shape[1]) if mode == "kl" else (0,), mu)


def _subset_mode(mu: Tensor, mode: str, allowed: Sequence[str]) -> None:
    one_of("mode", mode, allowed)
    if mode != "one" and mu.shape[0] > MAX_SUBSET_EXPERTS:
        raise ValueError(
            f"mu: expected at most {MAX_SUBSET_EXPERTS} experts for mode {mode!r}, "
            f"which makes 2^M - 1 products, got {mu.shape[0]}"
        )


def _count(name: str, experts: Tensor) -> None:
    if not 1 <= len(experts) <= MAX_EXPERTS:
        raise ValueError(f"{name}: expected 1 to {MAX_EXPERTS} experts, got {len(experts)}")


def bitmask(name: str, t: Tensor, rows: int, device: torch.device) -> None:
    if t.dtype != torch.int64 or t.shape != (rows,) or t.device != device:
        raise ValueError(f"{name}: expected an int64 bitmask [{rows}] on {device}, got {_shape(t)} on {t.device}")
