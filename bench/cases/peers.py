"""torchebm on the kind of problem it is shown with: few chains of an MLP energy, under its own step-size convention."""

from __future__ import annotations

from bench.case import SUBJECT, Case, Family
from bench.cases.langevin import chain_case, subject
from bench.contenders import chains, peers
from mmebm import physics

ETA = 0.01


def torchebm(B: int, d: int, h: int = 128, K: int = 100) -> Case:
    """physics(eta) is torchebm's step: a = eta, b = sqrt(2 eta)."""
    contenders = {
        SUBJECT: subject("langevin"),
        "torchebm": peers.torchebm_langevin(),
        "eager autograd": chains.langevin(loop=False)["eager autograd"],
    }
    return chain_case("langevin", f"torchebm/{B}x{d}", d, h, B, K, physics(ETA), contenders)


FAMILIES = (
    Family(
        torchebm,
        ({"B": 64, "d": 8}, {"B": 256, "d": 32}, {"B": 1024, "d": 128}),
        {"B": 64, "d": 5, "h": 9, "K": 4},
    ),
)
