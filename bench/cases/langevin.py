"""Chains: `langevin` and `mala` against loops, GEMM and multiply-adds; one update step against its eager form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench.case import SUBJECT, Call, Case, Contender, Family
from bench.contenders import chains, limits, mlp, peers
from mmebm import StepSize, short_run
from mmebm.kernels import dispatch, ops, reference
from mmebm.kernels.reference.noise import CHAIN_NOISE

STEP_SIZE = 0.1
# The gate runs as few steps as keep a loop in PyTorch below this, and looks at the first and last rows.
_GATE_FLOPS = 4e10
_GATE_ROWS = 64
ISAS = ("avx512", "avx2", "base")


@dataclass(frozen=True)
class Chains:
    """Where chains start, what drives them. The target is exp(-E) times a Laplace reference of scale 1."""

    z0: Tensor  # [B, d]
    weights: list[Tensor]
    biases: list[Tensor]
    convention: StepSize
    steps: int

    @property
    def a(self) -> float:
        return self.convention.a[0]

    @property
    def b(self) -> float:
        return self.convention.b[0]

    @cached_property
    def table(self) -> Tensor:
        return self.convention.coefficients(self.steps)

    @cached_property
    def scale(self) -> Tensor:
        return torch.ones(self.z0.shape[1])

    @cached_property
    def noise(self) -> Tensor:
        """What the operator draws for `rng(0)`: [K, B, d]."""
        return ops.draw(rng(0), self.steps, *self.z0.shape, law="normal", purpose=CHAIN_NOISE)


def rng(first: int) -> Tensor:
    return torch.tensor([1, 0, first])


def network(dim: int, width: int, hidden: int) -> tuple[list[Tensor], list[Tensor]]:
    """Weights that keep pre-activations of order 1, and small biases; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    widths = (dim, *[width] * hidden, 1)
    weights = [torch.randn(o, i, generator=generator) * (1.5 / i**0.5) for i, o in pairwise(widths)]
    return weights, [0.1 * torch.randn(len(w), generator=generator) for w in weights]


def starts(rows: int, dim: int) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(1))


def ends(x: Tensor) -> Tensor:
    """The first and the last rows: where the oracle looks."""
    return x if len(x) <= 2 * _GATE_ROWS else torch.cat((x[:_GATE_ROWS], x[-_GATE_ROWS:]))


def oracle(operator: Callable[..., Any]) -> Callable[[Chains], tuple[Tensor, ...]]:
    """The reference's chains in float64 on the same noise, for the rows of `ends`."""

    def expected(x: Chains) -> tuple[Tensor, ...]:
        rows = len(x.z0)
        firsts = [0] if rows <= 2 * _GATE_ROWS else [0, rows - _GATE_ROWS]
        size = rows if len(firsts) == 1 else _GATE_ROWS
        net = reference.MLP([w.double() for w in x.weights], [b.double() for b in x.biases], "silu", 0.0, None)
        hold = reference.Constraints("laplace", x.scale.double(), None, None, None)
        parts = [operator(x.z0[i : i + size].double(), net, x.table, rng(i), hold, 0, False)[0] for i in firsts]
        return (torch.cat(parts),)

    return expected


def subject(operator: str) -> Contender:
    def make(x: Chains) -> Call:
        state, function = rng(0), getattr(ops, operator)

        def call() -> Tensor:
            z = function(x.z0, x.weights, x.biases, x.table, state, reference="laplace", reference_scale=x.scale)[0]
            state[1] += x.steps
            return z

        return call

    return Contender(make)


def _served_by_cpu(operator: str, isa: str) -> Callable[[], str | None]:
    def why() -> str | None:
        reason = limits.no_isa(isa) or dispatch.unsupported("cpu", operator, torch.device("cpu"), torch.float32)
        return f"backend cpu: {reason}" if reason else None

    return why


def chain_case(operator: str, name: str, d: int, h: int, B: int, K: int, convention: StepSize, contenders: Any) -> Case:
    weights, biases = network(d, h, 2)
    flops = mlp.flops(d, h, 2)
    return Case(
        name=name,
        operator=operator,
        sizes={"B": B, "d": d, "h": h, "L": 2, "K": K},
        inputs=lambda steps: Chains(starts(B, d), weights, biases, convention, steps),
        contenders=contenders,
        work=1e-9 * flops * B * K,
        unit="GFLOP",
        oracle=oracle(getattr(reference, operator)),
        select=lambda _, z: (ends(z),),
        moments=lambda x, z: z - x.z0,
        tolerance=(1e-3, 1e-3 * convention.b[0]),
        # A sign(z) flips where z passes zero within rounding; so does, for a whole row, what is accepted.
        outliers=0.03 if operator == "mala" else 0.002,
        steps=K,
        gate_steps=max(1, min(K, round(_GATE_FLOPS / (flops * B)))),
        limit=limits.FMA if limits.FMA in contenders else "",
        model={"flop": 1.0, "silu": 2 * h / flops, "normals": d / flops},
    )


def langevin(d: int, h: int, B: int, K: int = 50) -> Case:
    contenders = {
        SUBJECT: subject("langevin"),
        **chains.langevin(loop=B <= 4096),
        "torchebm": peers.torchebm_langevin(),
        limits.GEMM: limits.gemm(h),
        limits.FMA: limits.fma(),
    }
    return chain_case("langevin", f"langevin/{d}x{h}/B{B}", d, h, B, K, short_run(STEP_SIZE), contenders)


def langevin_isa(d: int, h: int, B: int, isa: str, K: int = 50) -> Case:
    """One instruction set against its own multiply-add loop, and against the next narrower one."""

    def at(isa: str) -> Contender:
        return Contender(
            subject("langevin").make, environment={"MMEBM_ISA": isa}, absent=_served_by_cpu("langevin", isa)
        )

    narrower = {f"{SUBJECT} {other}": at(other) for other in ISAS[ISAS.index(isa) + 1 :][:1]}
    contenders = {SUBJECT: at(isa), **narrower, limits.FMA: limits.fma(isa)}
    return chain_case("langevin", f"langevin-{isa}/{d}x{h}/B{B}", d, h, B, K, short_run(STEP_SIZE), contenders)


def mala(d: int, h: int, B: int, K: int = 50) -> Case:
    contenders = {SUBJECT: subject("mala"), **chains.MALA, limits.FMA: limits.fma()}
    return chain_case("mala", f"mala/{d}x{h}/B{B}", d, h, B, K, short_run(4 * STEP_SIZE), contenders)


def update(B: int, d: int) -> Case:
    """One step for an energy that is not an MLP."""
    convention = short_run(STEP_SIZE)

    def inputs() -> Chains:
        return Chains(starts(B, d), [starts(B, d).flip(0)], [], convention, 1)

    def updated(x: Chains) -> Call:
        state = rng(0)
        hold = {"reference": "laplace", "reference_scale": x.scale}
        return lambda: ops.langevin_update(x.z0, x.weights[0], x.table, state, 0, **hold)

    def expected(x: Chains) -> tuple[Tensor, ...]:
        hold = reference.Constraints("laplace", x.scale.double(), None, None, None)
        return (reference.langevin_update(x.z0.double(), x.weights[0].double(), x.table, rng(0), 0, hold),)

    return Case(
        name=f"langevin_update/{B}x{d}",
        operator="langevin_update",
        sizes={"B": B, "d": d},
        inputs=inputs,
        contenders={
            SUBJECT: Contender(updated),
            "eager": chains.UPDATE,
            "torch.compile": chains.COMPILED_UPDATE,
            limits.COPY: limits.copy(12e-9 * B * d),
            limits.FMA: limits.fma(),
        },
        work=1e-9 * B * d,
        unit="Gvalues",
        oracle=expected,
        moments=lambda x, z: (z - x.z0 + x.a * (x.weights[0] + x.z0.sign())).reshape(-1, 1),
        tolerance=(1e-5, 1e-6),
        limit=limits.FMA,
        model={"normals": 1.0},
    )


NETS = ((16, 64), (32, 128), (32, 256), (64, 512))
ROWS = (64, 512, 4096, 65536)
TINY = {"d": 5, "h": 9, "B": 200, "K": 4}

FAMILIES = (
    Family(
        langevin, tuple({"d": d, "h": h, "B": B} for d, h in NETS for B in ROWS), {"d": 5, "h": 9, "B": 200, "K": 4}
    ),
    *(
        Family(
            langevin_isa,
            tuple({"d": d, "h": h, "B": 4096, "isa": isa} for d, h in NETS),
            TINY | {"isa": isa},
        )
        for isa in ISAS
    ),
    Family(
        mala,
        ({"d": 16, "h": 64, "B": 64}, {"d": 16, "h": 64, "B": 4096}, {"d": 32, "h": 128, "B": 4096}),
        TINY,
    ),
    Family(update, ({"B": 4096, "d": 64}, {"B": 65536, "d": 64}), {"B": 200, "d": 5}),
)
