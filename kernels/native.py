"""Calls the compiled kernels of csrc through data pointers. Arguments arrive validated by `ops`.

`MMEBM_ISA` = avx512, avx2 or base forces an instruction set; torch's number of threads is taken at every call.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .pointers import ACTIVATION_NUMBERS, LAWS, Net, address, experts_args, hold_args, mixture_args
from .ranges import ranged
from .reference import MLP, Chain, Constraints, MalaChain


@cache
def _load() -> tuple[ModuleType | None, str | None]:
    """The module, or why it cannot load; asked for once, so that a failure costs one import."""
    try:
        return importlib.import_module("._cpu", __package__), None
    except ImportError as error:
        return None, f"{type(error).__name__}: {error}"


def available() -> bool:
    """Whether the compiled CPU kernels can be called."""
    return _load()[0] is not None


def reason() -> str | None:
    """Why they cannot, None if they can."""
    return _load()[1]


def _cpu() -> ModuleType:
    module, why = _load()
    if module is None:
        raise RuntimeError(f"the native CPU kernels cannot be loaded: {why}")
    return module


def build_info() -> dict[str, Any]:
    """Compiler, flags, OpenMP version and the instruction sets usable here, best last."""
    return dict(_cpu().build_info())


def isa() -> str:
    """The instruction set that calls use now."""
    wanted = os.environ.get("MMEBM_ISA", "auto")
    return str(build_info()["isas"][-1]) if wanted == "auto" else wanted


def _empty(*shape: int) -> Tensor:
    """What a kernel writes into, whatever torch's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def draw(rng: Tensor, steps: int, rows: int, dim: int, law: str, purpose: int, scale: Tensor | None = None) -> Tensor:
    """Draws float32 [steps, rows, dim] of the law, times scale [dim]; rng: int64 [3] = (seed, offset, first chain)."""
    out = _empty(steps, rows, dim)
    scale = None if scale is None else scale.contiguous()
    _cpu().draw(
        out.data_ptr(), address(scale), steps, rows, dim, *rng.tolist(), LAWS[law], purpose, torch.get_num_threads()
    )
    return out


def energy(z: Tensor, net: MLP) -> Tensor:
    """E(z): [B, d] -> [B]."""
    z, packed, e = z.contiguous(), Net(net), _empty(len(z))
    _cpu().energy(z.data_ptr(), len(z), packed.args, e.data_ptr(), 0, torch.get_num_threads())
    return e


def energy_and_grad(z: Tensor, net: MLP) -> tuple[Tensor, Tensor]:
    """E(z) [B] and dE/dz [B, d] in one pass."""
    z, packed, e, grad = z.contiguous(), Net(net), _empty(len(z)), _empty(*z.shape)
    if len(z):
        _cpu().energy(z.data_ptr(), len(z), packed.args, e.data_ptr(), grad.data_ptr(), torch.get_num_threads())
    return e, grad


def energy_backward(
    g: Tensor, z: Tensor, net: MLP, parameters: bool = True
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradient of sum_b g_b E(z_b) in z, and where `parameters`, in weights and biases; g is [B]."""
    g, z, packed, dz = g.contiguous(), z.contiguous(), Net(net), _empty(*z.shape)
    d_weights = [_empty(*w.shape) for w in packed.weights] if parameters else []
    d_biases = [_empty(*b.shape) for b in packed.biases] if parameters else []
    into = [(w.data_ptr(), b.data_ptr()) for w, b in zip(d_weights, d_biases, strict=True)]
    _cpu().energy_backward(
        g.data_ptr(), z.data_ptr(), len(z), packed.args, dz.data_ptr(), into, torch.get_num_threads()
    )
    return dz, d_weights, d_biases


def _chain(
    adjusted: bool,
    z: Tensor,
    net: MLP,
    coefficients: Tensor,
    rng: Tensor,
    hold: Constraints,
    record_every: int,
    statistics: bool,
) -> list[Tensor]:
    z, packed, table, scale = z.contiguous(), Net(net), coefficients.contiguous(), hold.scale.contiguous()
    (rows, dim), steps = z.shape, len(table)
    kept = steps // record_every if record_every else 0
    out, states, energies = z.new_empty(rows, dim), z.new_empty(kept, rows, dim), z.new_empty(kept, rows)
    measured = [z.new_empty(rows if statistics else 0) for _ in range(5)]
    if rows:
        _cpu().chain(
            adjusted, z.data_ptr(), rows, steps, packed.args, table.data_ptr(), tuple(rng.tolist()),
            hold_args(hold, scale), out.data_ptr(), (record_every if kept else 0, address(states), address(energies)),
            tuple(map(address, measured)), torch.get_num_threads(),
        )  # fmt: skip
    return [out, states, energies, *measured]


def langevin(
    z: Tensor,
    net: MLP,
    coefficients: Tensor,
    rng: Tensor,
    hold: Constraints,
    record_every: int = 0,
    statistics: bool = False,
) -> Chain:
    """K = len(coefficients) steps from z [B, d]."""
    return Chain(*_chain(False, z, net, coefficients, rng, hold, record_every, statistics)[:6])


class Prepared:
    """`langevin` of one network with one table and one hold, to be run many times: what does not change is read once.

    Whoever keeps it answers for parameters that stay where they are.
    """

    def __init__(self, net: MLP, coefficients: Tensor, hold: Constraints) -> None:
        self._alive = Net(net), coefficients.contiguous(), hold.scale.contiguous()
        packed, table, scale = self._alive
        self._first = packed.args, table.data_ptr()
        self._hold, self._steps, self._kernel = hold_args(hold, scale), len(table), _cpu().chain

    @ranged("langevin")
    def __call__(self, z: Tensor, seed: int, offset: int, first: int) -> tuple[Tensor, bool]:
        """The end of the chains from z [B, d], B > 0, contiguous; and whether it is finite."""
        out = torch.empty_like(z)
        finite = self._kernel(
            False, z.data_ptr(), len(z), self._steps, *self._first, (seed, offset, first), self._hold, out.data_ptr(),
            (0, 0, 0), (0, 0, 0, 0, 0), torch.get_num_threads(),
        )  # fmt: skip
        return out, finite


def mala(
    z: Tensor,
    net: MLP,
    coefficients: Tensor,
    rng: Tensor,
    hold: Constraints,
    record_every: int = 0,
    statistics: bool = False,
) -> MalaChain:
    """K Metropolis-adjusted steps from z [B, d]."""
    return MalaChain(*_chain(True, z, net, coefficients, rng, hold, record_every, statistics))


def updates(coefficients: Tensor, rng: Tensor, hold: Constraints) -> Callable[[Tensor, Tensor, int], Tensor]:
    """`langevin_update` of (z, grad, step) for a loop: what does not change from step to step is read once."""
    kernel, rows, scale = _cpu().langevin_update, coefficients.tolist(), hold.scale.contiguous()
    (seed, offset, first), held, threads = rng.tolist(), hold_args(hold, scale), torch.get_num_threads()

    def update(z: Tensor, grad: Tensor, step: int) -> Tensor:
        z, grad = z.contiguous(), grad.contiguous()
        out, stream = z.new_empty(z.shape), (seed, _wrap(offset + step), first)
        # `scale` is named so that it outlives its address in `held`.
        kernel(z.data_ptr(), grad.data_ptr(), len(z), len(scale), *rows[step], stream, held, out.data_ptr(), threads)
        return out

    return update


def langevin_update(z: Tensor, grad: Tensor, coefficients: Tensor, rng: Tensor, step: int, hold: Constraints) -> Tensor:
    """Step `step` of a chain given dE/dz [B, d] at z."""
    return updates(coefficients, rng, hold)(z, grad, step)


def _wrap(offset: int) -> int:
    """Two's complement, as int64 arithmetic on the tensor would have it; only the lower 48 bits matter."""
    return (offset + (1 << 63)) % (1 << 64) - (1 << 63)


def product_of_experts(mu: Tensor, logvar: Tensor, present: Tensor, prior: str) -> tuple[Tensor, Tensor]:
    """mu and logvar [M, B, d], present int64 [B] -> mu and logvar [B, d] of the product."""
    present = present.contiguous()
    mean, lv = _empty(*mu.shape[1:]), _empty(*mu.shape[1:])
    _cpu().product(experts_args(mu, logvar, present, prior), mean.data_ptr(), lv.data_ptr(), torch.get_num_threads())
    return mean, lv


def product_of_experts_backward(
    g_mu: Tensor, g_logvar: Tensor, mu: Tensor, logvar: Tensor, present: Tensor, prior: str
) -> tuple[Tensor, Tensor]:
    """The gradient of sum(g_mu mu + g_logvar logvar) in the experts' mu and logvar [M, B, d]."""
    present = present.contiguous()
    d_mu, d_logvar = _empty(*mu.shape), _empty(*mu.shape)
    _cpu().product_backward(
        experts_args(mu, logvar, present, prior), g_mu.data_ptr(), g_logvar.data_ptr(), d_mu.data_ptr(),
        d_logvar.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return d_mu, d_logvar


def subset_experts(mu: Tensor, logvar: Tensor, present: Tensor, prior: str, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """Over every subset: mu, logvar [S, B, d] (mode "all") and KL(q_s || N(0, I)) [S, B] (mode "kl"), else empty."""
    present, subsets = present.contiguous(), (1 << len(mu)) - 1
    shape = (subsets, *mu.shape[1:]) if mode == "all" else (0,)
    means, logvars = _empty(*shape), _empty(*shape)
    kl = _empty(*((subsets, mu.shape[1]) if mode == "kl" else (0,)))
    into = (address(t) for t in (means, logvars, kl))
    if mu.shape[1]:
        _cpu().subsets(experts_args(mu, logvar, present, prior), *into, torch.get_num_threads())
    return means, logvars, kl


def subset_experts_backward(
    g_mu: Tensor, g_logvar: Tensor, g_kl: Tensor, mu: Tensor, logvar: Tensor, present: Tensor, prior: str, mode: str
) -> tuple[Tensor, Tensor]:
    """The gradient of sum(g_mu mu + g_logvar logvar) (mode "all") or sum(g_kl kl) (mode "kl") in the experts."""
    present = present.contiguous()
    d_mu, d_logvar = _empty(*mu.shape), _empty(*mu.shape)
    incoming = (address(g) for g in (g_mu, g_logvar, g_kl))
    if mu.shape[1]:
        _cpu().subsets_backward(
            experts_args(mu, logvar, present, prior),
            *incoming,
            d_mu.data_ptr(),
            d_logvar.data_ptr(),
            torch.get_num_threads(),
        )
    return d_mu, d_logvar


def mixture_log_prob(z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str) -> Tensor:
    """z [.., B, d], loc and scale [M, B, d], present int64 [B] -> [.., B]; an empty row has the standard law."""
    present, out = present.contiguous(), _empty(*z.shape[:-1])
    _cpu().mixture(mixture_args(z, loc, scale, present, law), out.data_ptr(), torch.get_num_threads())
    return out


def mixture_log_prob_backward(
    g: Tensor, z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str, parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of sum g log q in z, and where `parameters`, in loc and scale (else empty)."""
    present, dz = present.contiguous(), _empty(*z.shape)
    d_loc, d_scale = (_empty(*(loc.shape if parameters else (0,))) for _ in range(2))
    into = (dz.data_ptr(), address(d_loc), address(d_scale))
    _cpu().mixture_backward(mixture_args(z, loc, scale, present, law), g.data_ptr(), *into, torch.get_num_threads())
    return dz, d_loc, d_scale


def fma_rate(seconds: float, threads: int) -> float:
    """GFLOP/s of the register tile on operands that stay in L1: what a chain can reach at most."""
    return float(_cpu().fma_rate(seconds, threads)) * 1e-9


def stage_rates(seconds: float = 0.02) -> dict[str, float]:
    """Values per second of one thread: each activation with its derivative by name, and "normals"."""
    rates = {name: float(_cpu().activation_rate(i, seconds)) for name, i in ACTIVATION_NUMBERS.items()}
    return rates | {"normals": float(_cpu().normal_rate(seconds))}
