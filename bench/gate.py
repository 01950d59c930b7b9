"""The gate before the clock: a contender that computes something else is not timed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.case import Call, Case, environment

# Chains that the comparison of moments takes at least, and how many standard errors may lie between.
CHAINS = 4096
SIGMAS = 6.0


def values(case: Case, inputs: Any, output: Any, expected: tuple[Tensor, ...]) -> str | None:
    """Why `output` is not what the float64 oracle gives, or None."""
    got = case.select(inputs, output)
    if len(got) != len(expected):
        return f"{len(got)} results where {len(expected)} are expected"
    relative, absolute = case.tolerance
    for i, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        if mine.shape != theirs.shape:
            return f"result {i} has shape {list(mine.shape)}, expected {list(theirs.shape)}"
        error = (mine.double() - theirs).abs() - relative * theirs.abs()
        # not (error <= ..): a NaN is an error; equal infinities are none
        wrong = ~(error <= absolute) & (mine.double() != theirs)
        share = wrong.double().mean().item() if wrong.numel() else 0.0
        if share > case.outliers:
            worst = error.nan_to_num(nan=math.inf).max().item()
            return f"result {i}: {share:.2%} of the values exceed the tolerance, by {worst:.3g} at worst"
    return None


def pooled(case: Case, inputs: Any, call: Call) -> Tensor:
    """Moments need rows: what as many calls give as make `CHAINS` of them, float64 [rows, dims]."""
    first = case.moments(inputs, call()).double()
    calls = math.ceil(CHAINS / len(first)) - 1
    return torch.cat([first, *(case.moments(inputs, call()).double() for _ in range(calls))])


def moments(mine: Tensor, theirs: Tensor) -> str | None:
    """Why two samples [rows, dims] have not the same means and variances, or None."""
    if not bool(torch.isfinite(mine).all()):
        return "it is not finite"
    (m1, v1, s1), (m2, v2, s2) = _moments(mine), _moments(theirs)
    mean = (m1 - m2).abs() / (v1 / len(mine) + v2 / len(theirs)).sqrt()
    variance = (v1 - v2).abs() / (s1 + s2).sqrt()
    for name, distance in (("means", mean), ("variances", variance)):
        worst = distance.nan_to_num(nan=math.inf).max().item()
        if worst > SIGMAS:
            return f"{name} lie {worst:.1f} standard errors apart"
    return None


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and the squared standard error of the variance, per dimension."""
    mean, variance = x.mean(0), x.var(0)
    fourth = (x - mean).pow(4).mean(0)
    return mean, variance, (fourth - variance**2).clamp_min(1e-30) / len(x)


def judge(case: Case, inputs: Any, made: Mapping[str, tuple[Call, Any]]) -> dict[str, str | None]:
    """For every contender in `made` (its call and the inputs it was made for), why it is refused, or None.

    `inputs` are those of the "values" gate; the subject must be among `made`, as "moments" compares with it.
    """
    expected = case.oracle(inputs) if case.oracle is not None else None
    verdicts: dict[str, str | None] = {}
    for name, (call, own) in made.items():
        with environment(case.contenders[name].environment):
            try:
                verdicts[name] = _verdict(case, name, call, own, inputs, expected)
            except Exception as error:
                verdicts[name] = f"it raises {type(error).__name__}: {error}"
    return verdicts


def _verdict(
    case: Case, name: str, call: Call, own: Any, inputs: Any, expected: tuple[Tensor, ...] | None
) -> str | None:
    contender = case.contenders[name]
    if contender.gate == "values" and expected is not None:
        if contender.checked is not None:
            call = contender.checked(inputs)
        elif own is not inputs:
            call = contender.make(inputs)
        return values(case, inputs, call(), expected)
    if contender.gate == "moments":
        return moments(pooled(case, own, call), pooled(case, own, case.contenders[case.subject].make(own)))
    return None
