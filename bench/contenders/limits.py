"""The machine's limits, measured in the same rounds: GEMM, multiply-adds from L1, stores and copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.case import Call, Contender
from mmebm.kernels import native

FMA = "FMA loop"
COPY = "copy_"
FILL = "fill_"
GEMM = "torch.mm(4096,h,h)"
FMA_SECONDS = 0.03


def gemm(width: int) -> Contender:
    def make(_: Any) -> Call:
        a, b, out = torch.randn(4096, width), torch.randn(width, width), torch.empty(4096, width)
        return lambda: torch.mm(a, b, out=out)

    return Contender(make, gate="none", work=2e-9 * 4096 * width * width, unit="GFLOP")


def fma(isa: str = "", threads: int | None = None) -> Contender:
    """`isa` "" is the best one; `threads` None is torch's number."""

    def make(_: Any) -> Call:
        return lambda: native.fma_rate(FMA_SECONDS, threads or torch.get_num_threads())

    environment = {"MMEBM_ISA": isa} if isa else {}
    return Contender(
        make, gate="none", work=1.0, unit="GFLOP", rate=True, environment=environment, absent=lacks("fma_rate", isa)
    )


def lacks(function: str, isa: str = "") -> Callable[[], str | None]:
    """Says why the native module cannot give `function` for `isa` here."""

    def why() -> str | None:
        if not native.available():
            return f"the native CPU module cannot be loaded: {native.reason()}"
        if not hasattr(native, function):
            return f"the native module has no {function}"
        return no_isa(isa)

    return why


def no_isa(isa: str) -> str | None:
    """Why `isa` cannot be used here."""
    if isa and not native.available():
        return f"the native CPU module cannot be loaded: {native.reason()}"
    if isa and isa not in native.build_info()["isas"]:
        return f"no {isa} here, only {', '.join(native.build_info()['isas'])}"
    return None


def fill(gigabytes: float) -> Contender:
    def make(_: Any) -> Call:
        out = torch.empty(round(gigabytes * 1e9 / 4))
        return lambda: out.fill_(1.0)

    return Contender(make, gate="none", work=gigabytes, unit="GB")


def copy(gigabytes: float) -> Contender:
    """`gigabytes` are those read and those written together."""

    def make(_: Any) -> Call:
        source = torch.zeros(round(gigabytes * 1e9 / 8))
        out = torch.empty_like(source)
        return lambda: out.copy_(source)

    return Contender(make, gate="none", work=gigabytes, unit="GB")
