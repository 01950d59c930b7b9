"""What is timed on a GPU: whole chains and subsets of experts, against what people use today.

The chain's eager loop in float32 at the highest precision is the gate, the one in the same precision, compiled,
captured by hand or scanned by JAX, the baseline. A chain is judged against the float64 reference before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu import checks, contenders, emulate, peaks
from bench.gpu.clock import Clock
from mmebm.kernels import dispatch, ops
from mmebm.kernels.cuda import chains as by_cuda
from mmebm.kernels.reference import MLP

COLUMNS = (
    "case", "backend", "contender", "precision", "rounds", "min_s", "median_s", "p80_s", "ratio", "rate", "unit",
    "share", "error", "allowed", "verdict", "note",
)  # fmt: skip
STEP_SIZE = 0.1
SECONDS = 12.0  # of rounds for a case


@dataclass(frozen=True)
class Chain:
    """K steps of B chains in d dimensions through an MLP of these widths.

    With `ours`, by every kernel that holds it and nothing else: which should a call choose?
    """

    B: int
    d: int
    hidden: tuple[int, ...]
    precision: str
    K: int = 50
    ours: bool = False

    @property
    def name(self) -> str:
        kind = "kernels" if self.ours else "langevin"
        return f"{kind}/B{self.B}/{self.d}x{'x'.join(map(str, self.hidden))}/{self.precision}"

    def measure(self, clock: Clock, backends: Sequence[str], limits: Mapping[str, float]) -> list[dict[str, Any]]:
        device, generator = clock.device, torch.Generator().manual_seed(self.B)
        widths = (self.d, *self.hidden, 1)
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            linear = nn.Linear(i, o)
            linear.weight.data = torch.randn(o, i, generator=generator) * (1.5 / i**0.5)
            layers += [linear, nn.SiLU()]
        net = nn.Sequential(*layers[:-1]).to(device)
        z = torch.randn(self.B, self.d, generator=generator).to(device)
        rows, calls, others = list[dict[str, Any]](), dict[str, Callable[[], object]](), contenders.Calls()
        for backend in backends:
            row = {"case": self.name, "backend": backend, "contender": "mmebm", "precision": self.precision}
            judged = self._judged(net, z, backend)
            if judged["verdict"] != "ok":
                rows.append(row | judged)
                continue
            calls[f"mmebm {backend}"] = call = self._subject(net, z, backend)
            if backend == "cuda" and self.ours:
                for variant in by_cuda.variants(self._mlp(net), device, adjusted=False):
                    calls[f"mmebm cuda {variant}"] = _forced(variant, call)
        wall = device.type == "cpu"
        if not self.ours:
            others, absent = contenders.chains(net, z, self.K, STEP_SIZE, self.precision)
            rows += _absent(self.name, absent)
        spreads = clock.interleaved(calls | others, 30, SECONDS, wall=wall)
        flops = mlp_flops(widths) * self.B * self.K * emulate.TIMES.get(self.precision, 1)
        best = min((s.median for n, s in spreads.items() if n in calls), default=None)
        for name, spread in spreads.items():
            mine = name in calls
            row = {
                "case": self.name, "backend": name.removeprefix("mmebm ") if mine else "",
                "contender": "mmebm" if mine else name, "precision": self.precision, "rounds": spread.rounds,
                "min_s": spread.least, "median_s": spread.median, "p80_s": spread.p80, "verdict": "timed",
            }  # fmt: skip
            if best is not None:
                row["ratio"] = spread.median / best
            if mine:
                row |= {"rate": 1e-9 * flops / spread.median, "unit": "GFLOP/s"}
                limit = limits.get(peaks.RATES.get(self.precision, "matmul fp32"))
                row["share"] = row["rate"] / limit if limit else ""
            rows.append(row)
        return rows

    def _mlp(self, net: nn.Sequential) -> MLP:
        return MLP(*contenders.parameters(net), "silu", 0.0, None, self.precision)

    def _judged(self, net: nn.Sequential, z: Tensor, backend: str) -> dict[str, Any]:
        """Two steps of a few chains as checks.py has them; a verdict that is not ok where the net is not served."""
        weights, biases = contenders.parameters(net)
        if reason := dispatch.unsupported(backend, "langevin", z.device, z.dtype, self._mlp(net)):
            return {"verdict": "not served", "note": reason}
        x = {
            "z": z[:300].cpu(), "weights": [w.cpu() for w in weights], "biases": [b.cpu() for b in biases],
            "table": torch.tensor([[0.5 * STEP_SIZE**2, STEP_SIZE, 1.0]] * 2), "rng": torch.tensor([5, 0, 0]),
            "scale": torch.ones(self.d),
        }  # fmt: skip
        return checks.judge(checks.CHECKS["langevin"], x, z.device, backend, self.precision)

    def _subject(self, net: nn.Sequential, z: Tensor, backend: str) -> Callable[[], object]:
        weights, biases = contenders.parameters(net)
        table = torch.tensor([[0.5 * STEP_SIZE**2, STEP_SIZE, 1.0]] * self.K, device=z.device)
        rng, scale = torch.tensor([1, 0, 0], device=z.device), torch.ones(self.d, device=z.device)

        def call() -> object:
            end = ops.langevin(
                z, weights, biases, table, rng, reference="laplace", reference_scale=scale, precision=self.precision,
                backend=backend,
            )  # fmt: skip
            rng[1] += self.K
            return end

        return call


def _forced(variant: str, call: Callable[[], object]) -> Callable[[], object]:
    def forced() -> object:
        with by_cuda.forced(variant):
            return call()

    return forced


def _absent(case: str, reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"case": case, "contender": name, "note": why, "verdict": "absent"} for name, why in reasons.items()]


def mlp_flops(widths: Sequence[int]) -> int:
    """Of E's gradient at one state: products forward and backward; the last layer's forward is not needed."""
    return 4 * sum(i * o for i, o in pairwise(widths[:-1]))


@dataclass(frozen=True)
class Subsets:
    """All products of M experts."""

    M: int
    B: int
    d: int

    @property
    def name(self) -> str:
        return f"subset_experts/M{self.M}/B{self.B}/d{self.d}"

    def measure(self, clock: Clock, backends: Sequence[str], limits: Mapping[str, float]) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(0)
        mu, logvar = (torch.randn(self.M, self.B, self.d, generator=generator).to(clock.device) for _ in range(2))
        present = torch.full((self.B,), (1 << self.M) - 1, device=clock.device)
        served = [b for b in backends if not dispatch.unsupported(b, "subset_experts", clock.device, torch.float32)]
        calls: dict[str, Callable[[], object]] = {
            f"mmebm {b}": lambda b=b: ops.subset_experts(mu, logvar, present, prior="always", mode="all", backend=b)  # type: ignore[misc]
            for b in served
        }
        others, absent = contenders.subsets(mu, logvar)
        spreads = clock.interleaved(calls | others, 30, SECONDS, wall=clock.device.type == "cpu")
        best = min((s.median for n, s in spreads.items() if n in calls), default=None)
        size = 4 * self.B * self.d * (2 * self.M + 2 * ((1 << self.M) - 1))
        rows = _absent(self.name, absent)
        for name, spread in spreads.items():
            mine = name in calls
            rate = 1e-9 * size / spread.median
            rows.append({
                "case": self.name, "backend": name.removeprefix("mmebm ") if mine else "", "precision": "fp32",
                "contender": "mmebm" if mine else name, "rounds": spread.rounds, "min_s": spread.least,
                "median_s": spread.median, "p80_s": spread.p80, "verdict": "timed", "rate": rate, "unit": "GB/s",
                "ratio": "" if best is None else spread.median / best,
                "share": rate / limits[peaks.BANDWIDTH] if mine and limits.get(peaks.BANDWIDTH) else "",
            })  # fmt: skip
        return rows


def every(tiny: bool) -> list[Chain | Subsets]:
    """The rows of the table; with `tiny`, one of each kind at sizes that any machine runs."""
    if tiny:
        return [Chain(24, 5, (16, 16), "fp32", 3), Subsets(3, 40, 6)]
    small = [Chain(B, d, hidden, "fp32") for B in (128, 1024) for d, hidden in ((32, (128, 128)), (100, (200, 200)))]
    large = [
        Chain(65_536, 32, (128, 128), "bf16"),
        Chain(65_536, 32, (256, 256), "bf16"),
        Chain(65_536, 32, (256, 256), "bf16x3"),
    ]
    ours = [
        Chain(B, d, hidden, "bf16", ours=True)
        for d, hidden in ((32, (64, 64)), (32, (128, 128)), (64, (128, 128)))
        for B in (65_536, 8_192)
    ]
    ours.append(Chain(65_536, 32, (128, 128), "bf16x3", ours=True))
    return [*large[:2], Subsets(5, 65_536, 64), *small, *large[2:], *ours]
