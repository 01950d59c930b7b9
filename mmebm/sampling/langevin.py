"""The public Langevin call: settings made explicit, then one operator for all steps of all chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmebm.energy import Network, recognise
from mmebm.kernels import checks, ops
from mmebm.kernels.reference import Chain

from .conventions import Size, StepSize, short_run
from .streams import rng_state

Energy = nn.Module | Callable[[Tensor], Tensor]


class NonFiniteChains(RuntimeError):
    """Some chains left the finite numbers; the message says how many and what to look at."""


@dataclass(frozen=True)
class LangevinInfo:
    """What a chain can tell beside its final state. `states` and `energies` are empty unless `record_every` is set."""

    states: Tensor  # [K // n, B, d], after steps n, 2n, ..
    energies: Tensor  # [K // n, B]
    mean_energy: Tensor  # [B], over z_0..z_{K-1}
    grad_norm: Tensor  # [B], mean |dE/dz| before the clip
    displacement: Tensor  # [B], mean |z_{k+1} - z_k|
    non_finite: int | None  # chains; None where check="off"
    coefficients: Tensor  # [K, 3] = (a, b, t)
    rng: Tensor  # [3] = (seed, offset, first chain) at the first step


def _table(
    steps: int, step_size: Size | None, convention: StepSize | None, coefficients: Tensor | None, device: torch.device
) -> Tensor:
    given = [
        n
        for n, v in (("step_size", step_size), ("convention", convention), ("coefficients", coefficients))
        if v is not None
    ]
    if len(given) != 1:
        raise ValueError(f"step_size, convention, coefficients: expected exactly one, got {given or 'none'}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps: expected an integer >= 0, got {steps!r}")
    if step_size is not None:
        convention = short_run(step_size)
    if convention is not None:
        if not isinstance(convention, StepSize):
            raise TypeError(f"convention: expected a StepSize such as physics(eta), got {convention!r}")
        return convention.coefficients(steps, device)
    if not isinstance(coefficients, Tensor) or coefficients.shape != (steps, 3):
        got = list(coefficients.shape) if isinstance(coefficients, Tensor) else type(coefficients).__name__
        raise ValueError(f"coefficients: expected a tensor [steps={steps}, 3] of (a, b, t), got {got}")
    return coefficients.detach().to(torch.float32)


def _scale(reference_scale: float | Tensor, z: Tensor) -> Tensor:
    def wrong() -> ValueError:
        return ValueError(f"reference_scale: expected numbers > 0, one or [{z.shape[1]}], got {reference_scale}")

    if isinstance(reference_scale, int | float):
        if not (reference_scale > 0 and math.isfinite(reference_scale)):
            raise wrong()
        return z.new_full((z.shape[1],), reference_scale)
    scale = torch.as_tensor(reference_scale).detach().to(z)
    if scale.dim() > 1 or scale.numel() not in (1, z.shape[1]):
        raise wrong()
    if not torch.compiler.is_compiling() and not bool((scale > 0).all()):
        raise wrong()
    return scale.expand(z.shape[1]).contiguous()


def _bounded(e: Tensor, bound: float | None) -> Tensor:
    return e if bound is None else bound * torch.tanh(e / bound)


def _any_energy(
    energy: Energy,
    z: Tensor,
    coefficients: Tensor,
    rng: Tensor,
    bound: float | None,
    negate: bool,
    record_every: int,
    statistics: bool,
    **hold: object,
) -> Chain:
    """The K-step loop for an energy that is not an MLP: autograd for the gradient, one operator for the update."""

    def value(z: Tensor) -> Tensor:
        e = energy(z)
        if not isinstance(e, Tensor) or e.numel() != len(z):
            raise ValueError(f"energy: expected one value per row, [{len(z)}], got {getattr(e, 'shape', type(e))}")
        return _bounded(-e.reshape(-1) if negate else e.reshape(-1), bound)

    steps, rows = len(coefficients), len(z)
    states, energies = [], []
    totals = z.new_zeros(3, rows if statistics else 0)
    for k in range(steps):
        # A caller in inference mode sees no difference; the clone is an ordinary tensor.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            e = value(leaf)
            (grad,) = torch.autograd.grad(e.sum(), leaf)
        before, z = z, ops.langevin_update(z, grad, coefficients, rng, k, **hold)  # type: ignore[arg-type]
        if statistics:
            totals += torch.stack((e.detach(), grad.norm(dim=1), (z - before).norm(dim=1)))
        if record_every and (k + 1) % record_every == 0:
            states.append(z)
            with torch.no_grad():
                energies.append(value(z))
    kept = torch.stack(states) if states else z.new_empty(0, *z.shape)
    return Chain(
        z if steps else z.clone(),
        kept,
        torch.stack(energies) if energies else z.new_empty(0, rows),
        *(totals / max(1, steps)),
    )


def langevin(
    energy: Energy,
    z0: Tensor,
    *,
    steps: int,
    step_size: Size | None = None,
    convention: StepSize | None = None,
    coefficients: Tensor | None = None,
    reference: str | None = None,
    reference_scale: float | Tensor = 1.0,
    bound: float | None = None,
    grad_clip: float | None = None,
    clamp: tuple[float | None, float | None] | None = None,
    negate: bool = False,
    seed: int | Tensor | None = None,
    offset: int = 0,
    generator: torch.Generator | None = None,
    chain_offset: int = 0,
    record_every: int | None = None,
    precision: str | None = None,
    backend: str = "auto",
    check: str = "auto",
    return_info: bool = False,
) -> Tensor | tuple[Tensor, LangevinInfo]:
    """`steps` unadjusted Langevin steps of U = E - log p_0 from every row of `z0` [B, d]; returns z [B, d], detached.

    `energy`: an `EnergyMLP`, an `nn.Sequential` recognised as one, or a callable z [B, d] -> [B] or [B, 1]; low is
    probable, `negate=True` says that it gives f = -E. Exactly one of `step_size` (short-run: a = s^2/2, b = s),
    `convention` (`physics(eta)`, `welling_teh(eps)`, ..) and `coefficients` [steps, 3] = (a, b, t).
    `reference`: "laplace", "normal" or None, with `reference_scale` a number or [d]. `bound` c makes E into
    c tanh(E / c); `grad_clip` caps |dE/dz| per chain and step; `clamp` = (lo, hi) the state.

    Noise depends on (seed, offset + step, chain_offset + row) alone: a batch may be split over rows, and K over calls
    with advanced offsets, and give the same chains. Without `seed` one is drawn from `generator` or torch's default.
    `check`: "auto" raises `NonFiniteChains` in eager CPU calls and where info is returned, "raise" always, "off" never.
    With `return_info` also a `LangevinInfo`. Errors: ValueError or TypeError naming the argument.
    """
    if not isinstance(z0, Tensor):
        raise TypeError(f"z0: expected a tensor [B, d], got {type(z0).__name__}")
    checks.tensor("z0", z0, (None, None))
    if check not in ("auto", "raise", "off"):
        raise ValueError(f"check: expected 'auto', 'raise' or 'off', got {check!r}")
    if record_every is not None and (record_every < 1 or not return_info):
        raise ValueError(f"record_every: expected an integer >= 1 together with return_info=True, got {record_every}")
    z0 = z0.detach()
    table = _table(steps, step_size, convention, coefficients, z0.device)
    rng = rng_state(seed, offset, chain_offset, device=z0.device, generator=generator)
    hold = {
        "reference": reference or "none",
        "reference_scale": _scale(reference_scale, z0),
        "grad_clip": grad_clip,
        "clamp": clamp or (None, None),
    }
    checks.positive("bound", bound)
    net = recognise(energy)
    if isinstance(net, Network):
        net = (net.negated() if negate else net).detached()
        chain = ops.langevin(
            z0, net.weights, net.biases, table, rng, activation=net.activation, slope=net.slope, bound=bound,
            record_every=record_every or 0, statistics=return_info, precision=precision, backend=backend, **hold,  # type: ignore[arg-type]
        )  # fmt: skip
    elif callable(energy):
        hold["backend"] = backend
        chain = _any_energy(energy, z0, table, rng, bound, negate, record_every or 0, return_info, **hold)
    else:
        raise TypeError(f"energy: expected a module or a callable z [B, d] -> [B], got {type(energy).__name__}")

    eager_cpu = z0.device.type == "cpu" and not torch.compiler.is_compiling()
    lost = None
    if check == "raise" or (check == "auto" and (return_info or eager_cpu)):
        finite = torch.isfinite(chain.z).all(dim=1)
        lost = int((~finite).sum())
        if lost:
            raise NonFiniteChains(_explain(lost, chain, table, finite))
    if not return_info:
        return chain.z
    return chain.z, LangevinInfo(*chain[1:], non_finite=lost, coefficients=table, rng=rng)


def _explain(lost: int, chain: Chain, table: Tensor, finite: Tensor) -> str:
    a, b, _ = table.max(dim=0).values.tolist()
    norm = chain.grad_norm[finite] if len(chain.grad_norm) else chain.grad_norm
    seen = f", mean |dE/dz| of the finite ones {float(norm.mean()):.4g}" if len(norm) else ""
    return (
        f"{lost} of {len(chain.z)} chains are not finite after {len(table)} steps "
        f"(largest a={a:.4g}, b={b:.4g}{seen}). "
        "Take smaller steps, or hold the energy with bound=, grad_clip= or a spectral norm."
    )
