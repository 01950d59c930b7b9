"""What chains are to do, written from docs/conventions.md by autograd in any dtype; and the backends that do it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmebm.kernels import dispatch, ops
from mmebm.kernels.reference import MLP, Chain, MalaChain

CHAIN_NOISE, REFERENCE_DRAW, ACCEPT, CHOICE, REPARAMETERISATION, MOMENTUM = range(6)
PURPOSES = range(6)
SLOPE = 0.25

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x: F.leaky_relu(x, SLOPE),
    "relu": F.relu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "elu": F.elu,
}
KINKED = ("leaky_relu", "relu")  # the gradient jumps where a pre-activation is 0


class Net(NamedTuple):
    """An MLP [d] -> [1]: weights [out, in] and biases [out] of its linear layers."""

    weights: list[Tensor]
    biases: list[Tensor]
    activation: str = "silu"

    def energy(self, z: Tensor) -> Tensor:
        """[B, d] -> [B]."""
        pre = self.pre_activations(z)
        return pre[-1].squeeze(1)

    def pre_activations(self, z: Tensor) -> list[Tensor]:
        """Of every layer, the last being the energy [B, 1]."""
        pre: list[Tensor] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = ACTIVATIONS[self.activation](pre[-1]) if pre else z
            pre.append(F.linear(h, weight.to(z.dtype), bias.to(z.dtype)))
        return pre


def random_net(dim: int, hidden: tuple[int, ...], activation: str = "silu", gain: float = 1.0, seed: int = -1) -> Net:
    """Normal parameters, the energy's weights times `gain`; with a seed of its own, the same net in every session."""
    generator = None if seed < 0 else torch.Generator().manual_seed(seed)
    widths = (dim, *hidden, 1)
    weights = [torch.randn(n, m, generator=generator) / math.sqrt(m) for m, n in pairwise(widths)]
    biases = [torch.randn(n, generator=generator) for n in widths[1:]]
    weights[-1] *= gain
    return Net(weights, biases, activation)


def linear(direction: Tensor) -> Net:
    """E = direction . z."""
    return Net([direction.view(1, -1).clone()], [torch.zeros(1)])


def flat(dim: int) -> Net:
    """E = 0."""
    return linear(torch.zeros(dim))


def constant(steps: int, s: float) -> Tensor:
    """The coefficients of step size s: a = s^2 / 2, b = s, t = 1."""
    return torch.tensor([s * s / 2.0, s, 1.0]).repeat(steps, 1)


class Target(NamedTuple):
    """U_k = t E - log p_0 and its drift: bounded, clipped, times t, plus the reference's."""

    net: Net
    reference: str = "none"
    scale: Tensor | None = None  # [d], ones by default
    bound: float | None = None
    grad_clip: float | None = None
    clamp: tuple[float | None, float | None] = (None, None)

    @property
    def dim(self) -> int:
        return self.net.weights[0].shape[1]

    def scales(self) -> Tensor:
        return torch.ones(self.dim) if self.scale is None else self.scale

    def energy(self, z: Tensor) -> Tensor:
        e = self.net.energy(z)
        return e if self.bound is None else self.bound * torch.tanh(e / self.bound)

    def gradient(self, z: Tensor) -> Tensor:
        """dE/dz, before the clip."""
        leaf = z.detach().requires_grad_()
        return torch.autograd.grad(self.energy(leaf).sum(), leaf)[0]

    def minus_log_prior(self, z: Tensor) -> Tensor:
        u = z / self.scales().to(z.dtype)
        return {"none": 0.0 * u, "normal": 0.5 * u * u, "laplace": u.abs()}[self.reference].sum(1)

    def potential(self, z: Tensor, t: Tensor | float = 1.0) -> Tensor:
        """U [B]; t is a number or [B]."""
        return t * self.energy(z) + self.minus_log_prior(z)

    def drift(self, z: Tensor, t: Tensor | float = 1.0) -> Tensor:
        """[B, d]; t is a number or [B, 1]."""
        grad, scale = self.gradient(z), self.scales().to(z.dtype)
        if self.grad_clip is not None:
            norm = grad.square().sum(1, keepdim=True).sqrt()
            grad = torch.where(norm > self.grad_clip, grad * (self.grad_clip / norm), grad)
        grad = t * grad
        if self.reference == "normal":
            return grad + z / scale**2
        if self.reference == "laplace":
            return grad + ((z > 0).to(z.dtype) - (z < 0).to(z.dtype)) / scale
        return grad

    def proposal(self, z: Tensor, row: Tensor, eps: Tensor) -> Tensor:
        """The step of row = (a, b, t), [3] or one for each state [B, 3], before the clamp."""
        a, b, t = row.to(z.dtype).unsqueeze(-1).unbind(-2)
        return z - a * self.drift(z, t) + b * eps.to(z.dtype)

    def step(self, z: Tensor, row: Tensor, eps: Tensor) -> Tensor:
        """One unadjusted step."""
        return self.proposal(z, row, eps).clamp(*self.limits())

    def limits(self) -> tuple[float, float]:
        low, high = self.clamp
        return -math.inf if low is None else low, math.inf if high is None else high

    def inside(self, z: Tensor) -> Tensor:
        """Whether a proposal [B, d] lies in the box: [B]."""
        low, high = self.limits()
        return ((low <= z) & (z <= high)).all(1)

    def log_proposal(self, to: Tensor, z: Tensor, row: Tensor) -> Tensor:
        """log q(to | z) [B], but for what depends on neither."""
        a, b, t = row.to(z.dtype).unsqueeze(-1).unbind(-2)
        return -((to - z + a * self.drift(z, t)) / b).square().sum(1) / 2.0

    def log_alpha(self, z: Tensor, to: Tensor, row: Tensor) -> Tensor:
        """[B], before the box is asked."""
        t = row.to(z.dtype)[..., 2]
        ratio = self.potential(z, t) - self.potential(to, t)
        return (ratio + self.log_proposal(z, to, row) - self.log_proposal(to, z, row)).detach()


class Backend(NamedTuple):
    """One backend, tensors moved to its device and back."""

    name: str
    device: torch.device

    @property
    def same_in_any_batch(self) -> bool:
        """Whether a chain's states are the same to the bit in batches of any size; on `reference` its noise alone."""
        return self.name != "reference"

    def draw(
        self, rng: Tensor, steps: int, rows: int, dim: int, law: str = "normal", purpose: int = CHAIN_NOISE
    ) -> Tensor:
        """[steps, rows, dim]."""
        drawn = ops.draw(rng.to(self.device), steps, rows, dim, law=law, purpose=purpose, backend=self.name)
        return drawn.cpu()

    def langevin(
        self, target: Target, z: Tensor, table: Tensor, rng: Tensor, record_every: int = 0, statistics: bool = False
    ) -> Chain:
        return Chain(*self._run(ops.langevin, target, z, table, rng, record_every, statistics))

    def mala(
        self, target: Target, z: Tensor, table: Tensor, rng: Tensor, record_every: int = 0, statistics: bool = False
    ) -> MalaChain:
        return MalaChain(*self._run(ops.mala, target, z, table, rng, record_every, statistics))

    def chain_noise(self, rng: Tensor, steps: int, rows: int, dim: int) -> Tensor:
        """[steps, rows, dim] as a chain adds it: on a normal target with a = b = 1 a state is its step's noise."""
        target, table = Target(flat(dim), "normal"), torch.ones(steps, 3)
        return self.langevin(target, torch.zeros(rows, dim), table, rng, record_every=1).states

    def _held(self, operator: str, net: Net, bound: float | None) -> tuple[Net, float]:
        """The net, or where the backend wants a hidden layer and it has none, the same with one; and the slope."""
        mlp = MLP(net.weights, net.biases, net.activation, SLOPE, bound)
        if dispatch.unsupported(self.name, operator, self.device, torch.float32, mlp) is None or len(net.weights) > 1:
            return net, SLOPE
        weights = [net.weights[0], torch.ones(1, 1)]
        return Net(weights, [torch.zeros(1), net.biases[0]], "leaky_relu"), 1.0  # which is the identity

    def _run(
        self,
        operator: Callable[..., Chain | MalaChain],
        target: Target,
        z: Tensor,
        table: Tensor,
        rng: Tensor,
        record_every: int,
        statistics: bool,
    ) -> list[Tensor]:
        def there(*tensors: Tensor) -> list[Tensor]:
            return [t.to(self.device) for t in tensors]

        name = "langevin" if operator is ops.langevin else "mala"
        net, slope = self._held(name, target.net, target.bound)
        options: dict[str, Any] = {
            "reference": target.reference,
            "reference_scale": target.scales().to(self.device),
            "activation": net.activation,
            "slope": slope,
            "bound": target.bound,
            "grad_clip": target.grad_clip,
            "clamp": target.clamp,
        }
        weights, biases = there(*net.weights), there(*net.biases)
        out = operator(
            *there(z), weights, biases, *there(table, rng), **options, record_every=record_every,
            statistics=statistics, precision="fp32", backend=self.name,
        )  # fmt: skip
        return [t.cpu() for t in out]


def serving(name: str, operator: str) -> torch.device | None:
    """Where here the backend serves the operator."""
    devices = ["cuda", "cpu"] if name in ("triton", "cuda") and torch.cuda.is_available() else ["cpu"]
    for device in map(torch.device, devices):
        if dispatch.unsupported(name, operator, device, torch.float32) is None:
            return device
    return None
