"""How an operator enters the library `mmebm`: its schema, its body, its fake and its autograd, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])

NET = "Tensor[] weights, Tensor[] biases, str activation, float slope, float? bound"
HOLD = "str reference, Tensor reference_scale, float? grad_clip, float? lower, float? upper"
WHERE = "str precision, str backend"

SCHEMAS: dict[str, str] = {}

_library = torch.library.Library("mmebm", "DEF")


def operator(name: str, schema: str) -> Callable[[Function], Function]:
    """Define mmebm::`name`; what is decorated is its body on every device."""
    SCHEMAS[name] = schema
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))

    def implement(function: Function) -> Function:
        _library.impl(name, function, "CompositeExplicitAutograd")
        return function

    return implement


def fake(name: str) -> Callable[[Function], Function]:
    """What is decorated gives the shapes of `name`, after the same checks."""
    return torch.library.register_fake(f"mmebm::{name}", lib=_library)


def gradient(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """`save(ctx, inputs, output)` keeps what `backward(ctx, *grads)` needs."""
    torch.library.register_autograd(f"mmebm::{name}", backward, setup_context=save, lib=_library)


def sampler(name: str) -> None:
    """Mark what `name` returns non-differentiable: a chain is a draw, not a function to train through."""

    def save(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*((output,) if isinstance(output, Tensor) else output))

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"mmebm::{name} is not differentiable: its result is a sample")

    gradient(name, refuse, save)


def differentiable_once(name: str) -> None:
    """Refuse the gradient of `name`_backward by name, where it would be silently zero."""

    def save(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    def refuse(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(f"mmebm::{name} is differentiable once; its gradient has no gradient")

    gradient(f"{name}_backward", refuse, save)
