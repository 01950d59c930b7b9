"""What a run of chains is worth: a table of its coordinates and warnings that say what to do; the energy's trace."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .diagnostics import MIN_DRAWS, check_draws, effective_sample_size, mcse, quantiles, rhat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SamplerReport", "Summary", "plot_energy", "summarise"]

# Vehtari et al. (2021): below 1.01 chains agree, and an ESS of 400 makes R-hat, ESS and standard errors themselves
# reliable. Stan asks for 100 a chain, which is the same 400 for its 4 chains; hundreds of short parallel chains are
# judged by what they know together, so the rule here is the total.
RHAT = 1.01
ESS = 400.0
# In its law a half chain with n effective draws leaves R-hat near 1 + 1 / (2 n), however many chains there are: with
# fewer than 50 it says that chains are short, and cannot say more.
HALF_ESS = 50.0
# With acceptance p and normal quantile q(p / 2), the speed of MALA goes as p |q|^(2/3), of HMC as p |q|^(1/2) (Roberts
# and Rosenthal 1998; Beskos et al. 2013): best at 0.574 and 0.651, at 0.2 60% and 52% of that, at 0.95 38% and 54%.
ACCEPTANCE = (0.2, 0.95)
SIGMAS = 4.0  # false alarms: 6 in 100,000 runs
NAMED = 5  # chains and coordinates that a warning names
SHOWN, WORST = 12, 8
TRACES = 50


@dataclass(frozen=True, eq=False)
class Summary:
    """What draws say of every coordinate, and how well: tensors of the draws' `shape`, float64."""

    mean: Tensor
    sd: Tensor
    mcse_mean: Tensor
    q5: Tensor
    q50: Tensor
    q95: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor
    rhat: Tensor


@dataclass(frozen=True, eq=False)
class SamplerReport(Summary):
    """A `Summary` of the coordinates, with the energy's own and the warnings; `str` gives the table."""

    names: tuple[str, ...]  # of the coordinates, row by row
    chains: int
    draws: int  # of each chain
    energy: Summary | None
    acceptance: float | None  # mean over chains
    non_finite: int  # chains
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        order = list(range(len(self.names)))
        said = f"chains {self.chains}, draws {self.draws} each"
        if self.acceptance is not None:
            said += f", acceptance {self.acceptance:.2f}"
        if len(order) > SHOWN:
            value = [math.inf if math.isnan(r) else r for r in self.rhat.reshape(-1).tolist()]
            order = sorted(order, key=lambda i: -value[i])[:WORST]
            said += f"; the {WORST} of {len(self.names)} coordinates with the largest R-hat"
        cells = _cells(self)
        rows = [["", *Summary.__dataclass_fields__], *([self.names[i], *cells[i]] for i in order)]
        if self.energy is not None:
            rows.append(["energy", *_cells(self.energy)[0]])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [said]
        for name, *numbers in rows:
            right = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
            lines.append("  ".join((name.ljust(widths[0]), *right)))
        return "\n".join([*lines, *(f"warning: {words}" for words in self.warnings)])


def summarise(
    draws: Tensor,
    *,
    energies: Tensor | None = None,
    acceptance: Tensor | None = None,
    non_finite: int | Tensor = 0,
    names: Sequence[str] | None = None,
) -> SamplerReport:
    """Summary, diagnostics and warnings of draws [chain, draw, *shape].

    Args:
        draws: floating, at least one chain, one draw and one coordinate, on any device; what a sampler records step by
            step, `info.states` [draw, chain, ..], is to be transposed.
        energies: [chain, draw], of the same draws; they get their own row, and are looked through for a drift.
        acceptance: [chain], the mean acceptance of each chain, for MALA and HMC.
        non_finite: how many chains were lost, or bool [chain], which. Those with a draw or an energy that is not finite
            are found without it.
        names: one for each coordinate, row by row; by default z[0], z[1], .. or z[0, 0], ..

    Lost chains are left out of everything but their count. Warnings: lost chains; chains that never moved; an energy
    whose mean over chains differs between the halves of the draws by more than 4 standard errors (from the spread over
    chains, so with two or more; a few chains need more than 4, by Student's law, and R-hat of the energy is sharper
    there); acceptance outside 0.2 .. 0.95; R-hat above 1.01; bulk or tail ESS below 400 in total; and what could not
    be computed. Errors: TypeError or ValueError naming the argument.
    """
    count, energies, acceptance, lost = _checked(draws, energies, acceptance, non_finite)
    chains, length = draws.shape[:2]
    labels = _labels(names, draws.shape[2:])
    kept = (~lost).nonzero().squeeze(1)  # chains that remain, by their number
    warnings = [_lost_words(count, lost, len(kept))] if count else []
    if len(kept) == 0:
        draws = torch.full_like(draws, torch.nan)
        energies = None if energies is None else torch.full_like(energies, torch.nan)
        mean_acceptance = None if acceptance is None else math.nan
    else:
        if len(kept) < chains:
            draws = draws[kept]
            energies = None if energies is None else energies[kept]
        mean_acceptance = None if acceptance is None else float(acceptance[kept].double().mean())
    summary = _summary(draws)
    energy = None if energies is None else _summary(energies)
    if len(kept):
        warnings += _stuck_words(draws, kept)
        warnings += [] if energies is None else _drift_words(energies)
        warnings += [] if mean_acceptance is None else _acceptance_words(mean_acceptance)
        warnings += _diagnostic_words(summary, energy, labels, len(kept), length)
    return SamplerReport(
        **vars(summary),
        names=labels,
        chains=chains,
        draws=length,
        energy=energy,
        acceptance=mean_acceptance,
        non_finite=count,
        warnings=tuple(warnings),
    )


def plot_energy(energies: Tensor, path: str | os.PathLike[str] | None = None) -> Figure:
    """Traces of energies [chain, draw]: at most 50 chains, the mean over all and a band that holds 90% of them.

    Values that are not finite leave gaps and do not count. Written to `path` when given, in the format of its suffix.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _check_energies(energies, None)
    e = energies.detach().double().cpu().numpy()
    x = np.arange(e.shape[1])
    e = np.where(np.isfinite(e), e, np.nan)
    figure = Figure(figsize=(7.0, 3.5), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = np.unique(np.linspace(0, len(e) - 1, min(len(e), TRACES)).round().astype(int))
    axes.plot(x, e[shown].T, color="#555555", linewidth=0.4, alpha=0.5)
    known = np.isfinite(e).any(0)
    mean, low, high = np.full((3, len(x)), np.nan)
    mean[known] = np.nanmean(e[:, known], 0)
    low[known], high[known] = np.nanquantile(e[:, known], (0.05, 0.95), axis=0)
    axes.fill_between(x, low, high, color="#0072B2", alpha=0.2, linewidth=0, label="90% of chains")
    axes.plot(x, mean, color="#0072B2", linewidth=1.5, label=f"mean of {len(e)} chains")
    axes.set_xlabel("draw")
    axes.set_ylabel("energy")
    axes.legend(frameon=False, fontsize=9)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def _checked(
    draws: Tensor, energies: Tensor | None, acceptance: Tensor | None, non_finite: int | Tensor
) -> tuple[int, Tensor | None, Tensor | None, Tensor]:
    """How many chains are lost, energies and acceptance, and which chains these draws show to be lost, [chain]."""
    check_draws(draws)
    chains = draws.shape[0]
    lost = ~torch.isfinite(draws).reshape(chains, -1).all(1)
    if energies is not None:
        _check_energies(energies, draws.shape[:2])
        energies = energies.detach().to(draws.device)
        lost = lost | ~torch.isfinite(energies).all(1)
    count = 0
    if isinstance(non_finite, Tensor):
        if non_finite.dtype != torch.bool or non_finite.shape != (chains,):
            raise ValueError(
                f"non_finite: expected a count or bool [{chains}], got {non_finite.dtype} {list(non_finite.shape)}"
            )
        lost = lost | non_finite.to(draws.device)
    elif isinstance(non_finite, bool) or not isinstance(non_finite, int) or non_finite < 0:
        raise ValueError(f"non_finite: expected a count >= 0 or bool [{chains}], got {non_finite!r}")
    else:
        count = non_finite
    if acceptance is not None:
        if not isinstance(acceptance, Tensor) or acceptance.shape != (chains,) or not acceptance.is_floating_point():
            got = list(acceptance.shape) if isinstance(acceptance, Tensor) else type(acceptance).__name__
            raise ValueError(f"acceptance: expected floating [{chains}], a mean for each chain, got {got}")
        acceptance = acceptance.detach().to(draws.device)
        if not bool(((acceptance >= 0.0) & (acceptance <= 1.0) | lost).all()):
            raise ValueError(f"acceptance: expected values in [0, 1], got {acceptance.tolist()}")
    return max(count, int(lost.sum())), energies, acceptance, lost


def _check_energies(energies: Tensor, shape: torch.Size | None) -> None:
    if not isinstance(energies, Tensor) or not energies.is_floating_point():
        got = energies.dtype if isinstance(energies, Tensor) else type(energies).__name__
        raise TypeError(f"energies: expected a floating tensor [chain, draw], got {got}")
    if shape is not None and energies.shape != shape:
        raise ValueError(f"energies: expected {list(shape)} as the draws have, got shape {list(energies.shape)}")
    if energies.dim() != 2 or not energies.numel():
        raise ValueError(f"energies: expected [chain, draw], at least one of each, got shape {list(energies.shape)}")


def _labels(names: Sequence[str] | None, shape: torch.Size) -> tuple[str, ...]:
    count = math.prod(shape)
    if names is not None:
        if isinstance(names, str) or len(names) != count or not all(isinstance(name, str) for name in names):
            raise ValueError(f"names: expected {count} strings, one for each coordinate, got {names!r}")
        return tuple(names)
    if not shape:
        return ("z",)
    return tuple(f"z[{', '.join(map(str, index))}]" for index in itertools.product(*map(range, shape)))


def _summary(draws: Tensor) -> Summary:
    x = draws.detach().double()
    q5, q50, q95 = quantiles(draws, (0.05, 0.5, 0.95))
    return Summary(
        mean=x.mean((0, 1)),
        sd=x.std((0, 1)) if x.shape[0] * x.shape[1] > 1 else torch.full_like(x[0, 0], torch.nan),
        mcse_mean=mcse(draws),
        q5=q5,
        q50=q50,
        q95=q95,
        ess_bulk=effective_sample_size(draws, "bulk"),
        ess_tail=effective_sample_size(draws, "tail"),
        rhat=rhat(draws),
    )


def _cells(summary: Summary) -> list[list[str]]:
    formats = {"ess_bulk": ".0f", "ess_tail": ".0f", "rhat": ".3f"}
    columns = (
        [format(v, formats.get(name, ".4g")) for v in getattr(summary, name).reshape(-1).tolist()]
        for name in Summary.__dataclass_fields__
    )
    return [list(row) for row in zip(*columns, strict=True)]


def _few(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:NAMED])) + (", .." if len(items) > NAMED else "")


def _lost_words(count: int, lost: Tensor, remaining: int) -> str:
    which = lost.nonzero().squeeze(1).tolist()
    rest = "left out, so that the table is of the survivors" if remaining else "none is left"
    return (
        f"chains that are not finite: {count}{f' (number {_few(which)})' if which else ''}; {rest}. "
        "Take smaller steps, or hold the energy with bound=, grad_clip= or a spectral norm."
    )


def _stuck_words(draws: Tensor, kept: Tensor) -> list[str]:
    if draws.shape[1] < 2:
        return []
    stuck = kept[(draws == draws[:, :1]).reshape(len(draws), -1).all(1)].tolist()
    if not stuck:
        return []
    return [
        f"chains that never moved: {len(stuck)} of {len(draws)} (number {_few(stuck)}); all proposals were rejected, "
        "or a clamp holds the state. Take smaller steps, or start elsewhere."
    ]


def _drift_words(energies: Tensor) -> list[str]:
    half = energies.shape[1] // 2
    if not half or len(energies) < 2:
        return []
    e = energies.double()
    first, second = e[:, :half].mean(1), e[:, -half:].mean(1)
    change = second - first  # [chain], independent whatever the autocorrelation
    error = float(change.std()) / math.sqrt(len(change))
    if float(change.mean()) == 0.0:
        return []
    sigmas = _normal_deviate(float(change.mean().abs()) / error, len(change) - 1) if error else math.inf
    if sigmas <= SIGMAS:
        return []
    return [
        f"the energy has not reached its law: its mean over chains is {float(first.mean()):.4g} in the first half of "
        f"the draws, {float(second.mean()):.4g} in the second, {sigmas:.1f} standard errors away. "
        "Run more steps, or drop the first draws."
    ]


def _normal_deviate(t: float, freedom: int) -> float:
    """The normal deviate as unlikely as Student's t, t >= 0, by Wallace (1959)."""
    return (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))


def _acceptance_words(acceptance: float) -> list[str]:
    low, high = ACCEPTANCE
    if low <= acceptance <= high:
        return []
    do = "smaller steps" if acceptance < low else "larger steps, these are accepted but lead nowhere"
    side = f"below {low}" if acceptance < low else f"above {high}"
    return [f"mean acceptance is {acceptance:.2g}, {side}; MALA is best near 0.57, HMC near 0.65. Take {do}."]


def _diagnostic_words(
    summary: Summary, energy: Summary | None, labels: tuple[str, ...], chains: int, draws: int
) -> list[str]:
    if draws < MIN_DRAWS:
        return [f"{draws} draws of each chain say nothing of convergence: keep at least {MIN_DRAWS}."]
    parts = [summary] if energy is None else [summary, energy]
    names = labels if energy is None else (*labels, "energy")
    r, bulk, tail = (
        torch.cat([getattr(part, name).reshape(-1) for part in parts]).cpu()
        for name in ("rhat", "ess_bulk", "ess_tail")
    )

    def found(bad: Tensor, value: Tensor, digits: str) -> str:
        """How many, the worst value and whose; the largest of `value`, or of its negative where low is bad."""
        worst = int(torch.where(bad, value, -math.inf).argmax())
        return f"{int(bad.sum())} of {len(names)} rows, worst {float(value[worst].abs()):{digits}} ({names[worst]})"

    words = []
    if (bad := r > RHAT).any():
        each = float(bulk[torch.where(bad, r, -math.inf).argmax()]) / (2 * chains)
        if each < HALF_ESS:
            reason = (
                f"half a chain has {each:.2g} effective draws there, and fewer than {HALF_ESS:.0f} keep R-hat up even "
                "in the law. Run the chains longer; where that does not help, they sit in different modes or remember "
                "their starts."
            )
        else:
            reason = "chains differ, by their place or their scale. Run them longer, or start them elsewhere."
        words.append(f"R-hat is above {RHAT} for {found(bad, r, '.3f')}: {reason}")
    for name, ess, what in (("bulk", bulk, "means and medians"), ("tail", tail, "5% and 95% quantiles")):
        if (bad := ess < ESS).any():
            words.append(
                f"{name} ESS is below {ESS:.0f} for {found(bad, -ess, '.0f')}: {what} are not reliable. "
                "Keep more draws, or run more chains."
            )
    if (bad := tail.isnan()).any():  # the last to be known
        which = [names[i] for i in bad.nonzero().squeeze(1).tolist()]
        words.append(
            f"R-hat or ESS is not known for {len(which)} of {len(names)} rows ({_few(which)}): their draws, or all but "
            "their outermost, are one value. See that no clamp holds them and that nothing is dead."
        )
    return words
