"""How many kernels a GPU would launch for one Langevin step, by code: operators that compute, seen by a dispatch mode.

Views, and allocations that nothing fills, launch nothing and are not counted. What CUDA adds (a copy of a broadcast
bias, split products) is not seen from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import mmebm

STEPS = 8
_FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh"}


class _Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if name not in _FREE and not aliases and name != "detach":
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))


def _latent_ebm(net: nn.Module, z: Tensor, steps: int) -> None:
    """The prior chain of latent-EBM code (Pang et al. 2020), gradient norm included."""
    z = z.clone().detach()
    z.requires_grad = True
    for _ in range(steps):
        grad = torch.autograd.grad(net(z).sum(), z)[0]
        z.data = z.data - 0.5 * 0.4 * 0.4 * (grad + 1.0 / (1.0 * 1.0) * z.data)
        z.data += 0.4 * torch.randn_like(z).data
        grad.view(len(z), -1).norm(dim=1).mean()


def _tidy(net: nn.Module, z: Tensor, steps: int) -> None:
    for _ in range(steps):
        z = z.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(net(z).sum(), z)
        z = z.detach()
        z = z - 0.08 * (grad + z) + 0.4 * torch.randn_like(z)


def _call(energy: Callable[[nn.Module], Any]) -> Callable[[nn.Module, Tensor, int], None]:
    def run(net: nn.Module, z: Tensor, steps: int) -> None:
        mmebm.langevin(energy(net), z, steps=steps, step_size=0.4, reference="normal", seed=0, check="off")

    return run


CODES: dict[str, Callable[[nn.Module, Tensor, int], None]] = {
    "latent-EBM code": _latent_ebm,
    "hand-written loop": _tidy,
    "mmebm.langevin, any callable": _call(lambda net: lambda z: net(z)),
    "mmebm.langevin, a recognised network": _call(lambda net: net),
}


def launches(run: Callable[[nn.Module, Tensor, int], None]) -> tuple[float, Counter[str]]:
    """Per step, from the difference of a long and a short run, and what they are."""
    net, z = _net(), torch.randn(32, 16)
    counted = []
    for steps in (STEPS, 2 * STEPS):
        with _Counted() as mode:
            run(net, z, steps)
        counted.append(mode.calls)
    more = counted[1] - counted[0]
    return sum(more.values()) / STEPS, Counter({name: n // STEPS for name, n in more.items()})


def table() -> str:
    """Markdown: code, launches a step, what they are."""
    lines = ["| code | launches a step | of them |", "|---|---|---|"]
    for name, run in CODES.items():
        count, kinds = launches(run)
        what = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
        lines.append(f"| {name} | {count:g} | {what or 'none: one operator runs all steps'} |")
    return "\n".join(lines)
