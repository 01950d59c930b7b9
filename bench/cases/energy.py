"""The energy: with its gradient in z in one pass; and as training has it, with its gradient in the parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.case import SUBJECT, Call, Case, Contender, Family
from bench.cases.langevin import NETS, ROWS, ends, network, starts
from bench.contenders import limits, mlp
from mmebm.kernels import ops

Energy = Callable[..., Tensor]


@dataclass(frozen=True)
class Net:
    z: Tensor  # [B, d]
    weights: list[Tensor]
    biases: list[Tensor]

    def double(self) -> Net:
        wide = ([t.double() for t in tensors] for tensors in (self.weights, self.biases))
        return Net(self.z.double(), *wide)


def _gradient_by(function: Callable[..., tuple[Tensor, Tensor]]) -> Contender:
    return Contender(lambda x: torch.no_grad()(lambda: function(x.z, x.weights, x.biases)))


def _compiled(x: Net) -> Call:
    function = mlp.compiled(mlp.functional)
    return torch.no_grad()(lambda: function(x.z, x.weights, x.biases))


def energy_and_grad(d: int, h: int, B: int) -> Case:
    weights, biases = network(d, h, 2)
    flops = mlp.flops(d, h, 2)

    def expected(x: Net) -> tuple[Tensor, ...]:
        some = Net(ends(x.z), x.weights, x.biases).double()
        return ops.energy_and_grad(some.z, some.weights, some.biases, backend="reference")

    return Case(
        name=f"energy_and_grad/{d}x{h}/B{B}",
        operator="energy_and_grad",
        sizes={"B": B, "d": d, "h": h, "L": 2},
        inputs=lambda: Net(starts(B, d), weights, biases),
        contenders={
            SUBJECT: _gradient_by(ops.energy_and_grad),
            "eager autograd": _gradient_by(mlp.by_autograd),
            "hand-written backward": _gradient_by(mlp.by_hand),
            "torch.compile": Contender(_compiled),
            limits.GEMM: limits.gemm(h),
            limits.FMA: limits.fma(),
        },
        work=1e-9 * flops * B,
        unit="GFLOP",
        oracle=expected,
        select=lambda _, output: tuple(ends(t) for t in output),
        tolerance=(1e-4, 1e-4),
        limit=limits.FMA,
        model={"flop": 1.0, "silu": 2 * h / flops},
    )


def _training(energy: Energy) -> Callable[[Net], Call]:
    """Mean energy and its gradient in weights and biases."""

    def made(x: Net) -> Call:
        weights, biases = ([t.detach().clone().requires_grad_() for t in ts] for ts in (x.weights, x.biases))

        def call() -> tuple[Tensor, ...]:
            return torch.autograd.grad(energy(x.z, weights, biases).mean(), [*weights, *biases])

        return call

    return made


def energy_parameters(d: int, h: int, B: int) -> Case:
    weights, biases = network(d, h, 2)
    weight_count = mlp.flops(d, h, 2) // 4
    # Two per weight up, two for its gradient, two down, which the first layer does not need.
    flops = 6 * weight_count - 2 * d * h
    return Case(
        name=f"energy+backward/{d}x{h}/B{B}",
        operator="energy",
        sizes={"B": B, "d": d, "h": h, "L": 2},
        inputs=lambda: Net(starts(B, d), weights, biases),
        contenders={
            SUBJECT: Contender(_training(ops.energy)),
            "eager autograd": Contender(_training(mlp.energy)),
            "torch.compile": Contender(lambda x: _training(mlp.compiled(mlp.energy))(x)),
            limits.GEMM: limits.gemm(h),
            limits.FMA: limits.fma(),
        },
        work=1e-9 * flops * B,
        unit="GFLOP",
        oracle=lambda x: _training(mlp.energy)(x.double())(),
        tolerance=(1e-4, 1e-5),
        limit=limits.FMA,
        model={"flop": 1.0, "silu": 2 * h / flops},
    )


FAMILIES = (
    Family(energy_and_grad, tuple({"d": d, "h": h, "B": B} for d, h in NETS for B in ROWS), {"d": 5, "h": 9, "B": 200}),
    Family(
        energy_parameters,
        tuple({"d": d, "h": h, "B": B} for d, h in NETS for B in (256, 4096)),
        {"d": 5, "h": 9, "B": 200},
    ),
)
