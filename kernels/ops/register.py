"""How an operator enters the library `mmebm`: its schema, its body, its fake and its autograd, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..ranges import Range
from . import capture

Function = TypeVar("Function", bound=Callable[..., Any])

NET = "Tensor[] weights, Tensor[] biases, str activation, float slope, float? bound"
HOLD = "str reference, Tensor reference_scale, float? grad_clip, float? lower, float? upper"
WHERE = "str precision, str backend"

SCHEMAS: dict[str, str] = {}
_BODIES: dict[str, Callable[..., Any]] = {}

_library = torch.library.Library("mmebm", "DEF")


def operator(name: str, schema: str) -> Callable[[Function], Function]:
    """Define mmebm::`name`; what is decorated is its body on every device."""
    SCHEMAS[name] = schema
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))

    def implement(function: Function) -> Function:
        span = Range(name)

        def body(*args: Any) -> Any:
            if capture.active is not None:
                capture.active.take(name, args)
            with span:
                return function(*args)

        _library.impl(name, body, "CompositeExplicitAutograd")
        _BODIES[name] = body
        return function

    return implement


def fake(name: str) -> Callable[[Function], Function]:
    """What is decorated gives the shapes of `name`, after the same checks."""
    return torch.library.register_fake(f"mmebm::{name}", lib=_library)


def gradient(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """`save(ctx, inputs, output)` keeps what `backward(ctx, *grads)` needs."""
    torch.library.register_autograd(f"mmebm::{name}", backward, setup_context=save, lib=_library)


def transformed() -> bool:
    """Whether the caller is inside a transform of torch.func, or forward-mode derivatives are on, in eager code."""
    return not torch.compiler.is_compiling() and _transforms()


def _transforms() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def watched() -> bool:
    """Whether tracing, a mode, a transform, a profiler or a capture wants to see the operators that are called."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_torch_function_mode_enabled()
        or _transforms()
        or torch.autograd._profiler_enabled()
        or capture.active is not None
    )


def sample(name: str, z: Tensor, *args: Any) -> Any:
    """torch.ops.mmebm.`name` of a sampler, or its body at once where nobody watches and there is no gradient to refuse.

    The dispatcher costs some 60 us a call on lists of tensors (torch 2.13), a tenth of a small chain.
    """
    followed = torch.is_grad_enabled() and (z.requires_grad or any(_requires_grad(a) for a in args[:2]))
    if followed or type(z) is not Tensor or watched() or z.is_neg():
        return getattr(torch.ops.mmebm, name)(z, *args)
    return _BODIES[name](z, *args)


def _requires_grad(argument: Any) -> bool:
    """Of a tensor, or of one in a list of weights or biases."""
    tensors = argument if isinstance(argument, list) else (argument,)
    return any(isinstance(t, Tensor) and t.requires_grad for t in tensors)


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
