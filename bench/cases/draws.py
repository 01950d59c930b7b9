"""Draws against torch's generator, and what stages of the kernels cost beside multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.case import SUBJECT, Call, Case, Contender, Family
from bench.cases.langevin import ISAS, ends, rng
from bench.contenders import limits
from mmebm.kernels import native, ops, reference
from mmebm.kernels.reference.noise import REFERENCE_DRAW

DIM = 64
# What native.stage_rates() may give, values per second of one thread.
STAGES = ("silu", "normals")


def normals(count: int) -> Case:
    rows = count // DIM

    def subject(_: Any) -> Call:
        state = rng(0)

        def call() -> Tensor:
            drawn = ops.draw(state, 1, rows, DIM, law="normal", purpose=REFERENCE_DRAW)
            state[1] += 1
            return drawn[0]

        return call

    def expected(_: Any) -> tuple[Tensor, ...]:
        first = torch.arange(rows).view(-1, 1)
        firsts = [int(i) for i in (ends(first)[0], ends(first)[-1])]
        drawn = [reference.draw(rng(i), 1, 1, DIM, "normal", REFERENCE_DRAW)[0].double() for i in firsts]
        return (torch.cat(drawn),)

    return Case(
        name=f"draw/{count}",
        operator="draw",
        sizes={"values": count, "d": DIM},
        inputs=lambda: None,
        contenders={
            SUBJECT: Contender(subject),
            "torch.randn": Contender(lambda _: lambda: torch.randn(rows, DIM), gate="moments"),
            limits.FILL: limits.fill(4e-9 * count),
            limits.FMA: limits.fma(),
        },
        work=1e-9 * count,
        unit="Gvalues",
        oracle=expected,
        select=lambda _, z: (z[[0, -1]],),
        tolerance=(1e-6, 1e-6),
        limit=limits.FMA,
        model={"normals": 1.0},
    )


def _stage(name: str, isa: str) -> Contender:
    def why() -> str | None:
        lacking: Callable[[], str | None] = limits.lacks("stage_rates", isa)
        return lacking() or (None if name in native.stage_rates() else f"native.stage_rates() has no {name}")

    return Contender(
        lambda _: lambda: native.stage_rates()[name] / 1e9,
        gate="none",
        work=1.0,
        unit="Gvalues",
        rate=True,
        environment={"MMEBM_ISA": isa},
        absent=why,
    )


def stages(isa: str) -> Case:
    """On one thread. A stage's ratio to the multiply-add loop is what one of its values costs in flops."""
    return Case(
        name=f"stage/{isa}",
        operator="stage",
        sizes={"isa": isa},
        inputs=lambda: None,
        contenders={limits.FMA: limits.fma(isa, threads=1), **{name: _stage(name, isa) for name in STAGES}},
        work=1.0,
        unit="GFLOP",
        subject=limits.FMA,
    )


FAMILIES = (
    Family(normals, ({"count": 1 << 20}, {"count": 1 << 24}), {"count": 1 << 13}),
    *(Family(stages, ({"isa": isa},), {"isa": isa}) for isa in ISAS),
)
