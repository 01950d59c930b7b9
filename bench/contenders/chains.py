"""K steps of Langevin dynamics and of MALA as people write them, on the inputs of `bench.cases.langevin`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.case import Call, Contender
from bench.contenders import mlp

if TYPE_CHECKING:
    from bench.cases.langevin import Chains

Noise = Callable[[int, Tensor], Tensor]


def fresh(_: int, z: Tensor) -> Tensor:
    return torch.randn_like(z)


def _loop(x: Chains, gradient: Callable[..., tuple[Tensor, Tensor]], noise: Noise) -> Call:
    def call() -> Tensor:
        z = x.z0
        for k in range(x.steps):
            grad = gradient(z, x.weights, x.biases)[1]
            z = z - x.a * (grad + z.sign()) + x.b * noise(k, z)
        return z

    return torch.no_grad()(call)


def _by(gradient: Callable[..., tuple[Tensor, Tensor]]) -> Contender:
    return Contender(lambda x: _loop(x, gradient, fresh), checked=lambda x: _loop(x, gradient, lambda k, _: x.noise[k]))


def _step(z: Tensor, weights: list[Tensor], biases: list[Tensor], a: float, b: float) -> Tensor:
    grad = mlp.functional(z, weights, biases)[1]
    return z - a * (grad + z.sign()) + b * torch.randn_like(z)


def _compiled_step(x: Chains) -> Call:
    step = mlp.compiled(_step)

    def call() -> Tensor:
        z = x.z0
        for _ in range(x.steps):
            z = step(z, x.weights, x.biases, x.a, x.b)
        return z

    return torch.no_grad()(call)


def _compiled_loop(x: Chains) -> Call:
    def loop(z: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        for _ in range(x.steps):
            z = _step(z, weights, biases, x.a, x.b)
        return z

    whole = mlp.compiled(loop)
    return torch.no_grad()(lambda: whole(x.z0, x.weights, x.biases))


def langevin(loop: bool) -> dict[str, Contender]:
    """`loop`: also torch.compile of all K steps at once."""
    found = {
        "eager autograd": _by(mlp.by_autograd),
        "hand-written backward": _by(mlp.by_hand),
        "torch.compile step": Contender(_compiled_step, gate="moments", steps_like="eager autograd"),
    }
    if loop:
        found["torch.compile loop"] = Contender(_compiled_loop, gate="moments", steps_like="eager autograd")
    return found


def loop_of_modules(module: Callable[[Chains], nn.Module]) -> Contender:
    """The loop of a tidy user: their nn.Sequential, autograd.grad of its sum, drift and noise in place."""

    def make(x: Chains, noise: Noise = fresh) -> Call:
        net = module(x)

        def call() -> Tensor:
            z = x.z0.clone()
            for k in range(x.steps):
                z.requires_grad_(True)
                (grad,) = torch.autograd.grad(net(z).sum(), z)
                z = z.detach()
                z = z - x.a * (grad + z.sign()) + x.b * noise(k, z)
            return z

        return call

    return Contender(make, checked=lambda x: make(x, lambda k, _: x.noise[k]))


def _mala(x: Chains) -> Call:
    def target(z: Tensor) -> tuple[Tensor, Tensor]:
        e, grad = mlp.by_autograd(z, x.weights, x.biases)
        return e + z.abs().sum(1), grad + z.sign()

    def call() -> Tensor:
        z = x.z0
        u, grad = target(z)
        for _ in range(x.steps):
            noise = torch.randn_like(z)
            proposal = z - x.a * grad + x.b * noise
            u_new, grad_new = target(proposal)
            back = (z - proposal + x.a * grad_new) / x.b
            log_alpha = u - u_new + 0.5 * (noise.square() - back.square()).sum(1)
            accept = torch.rand_like(u).log() < log_alpha
            u = torch.where(accept, u_new, u)
            z, grad = (torch.where(accept.unsqueeze(1), new, old) for new, old in ((proposal, z), (grad_new, grad)))
        return z

    return torch.no_grad()(call)


MALA: dict[str, Contender] = {"eager autograd": Contender(_mala, gate="moments")}


def _update(z: Tensor, grad: Tensor, a: float, b: float) -> Tensor:
    return z - a * (grad + z.sign()) + b * torch.randn_like(z)


def _update_call(x: Chains) -> Call:
    return lambda: _update(x.z0, x.weights[0], x.a, x.b)


def _compiled_update(x: Chains) -> Call:
    update = mlp.compiled(_update)
    return lambda: update(x.z0, x.weights[0], x.a, x.b)


def _update_on_noise(x: Chains) -> Call:
    return lambda: x.z0 - x.a * (x.weights[0] + x.z0.sign()) + x.b * x.noise[0]


UPDATE = Contender(_update_call, checked=_update_on_noise)
COMPILED_UPDATE = Contender(_compiled_update, gate="moments")
