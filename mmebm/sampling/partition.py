"""log Z(alpha) of p_alpha(z) = exp(-E(z)) p_0(z) / Z(alpha) by annealed importance sampling (Neal 2001).

Chains of MALA transitions follow p_t(z) ∝ exp(-t E(z)) p_0(z) from t = 0, where p_0 is drawn exactly, to t = 1, and
collect

    log w = -sum_k (t_k - t_{k-1}) E(z_{k-1}),      E[w] = Z(alpha)

so that log mean w estimates log Z: never a bound of it in one run, but E[log mean w] <= log Z (Jensen). The same chains
run back from draws of p_alpha have E[1/w] = 1/Z, and -log mean(1/w) errs to the other side (Grosse et al. 2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mmebm.energy import Network
from mmebm.kernels import checks, ops
from mmebm.kernels.reference.noise import REFERENCE_DRAW

from .adaptation import warm_up
from .conventions import StepSize, short_run
from .mala import run_mala
from .streams import Stream, fresh_seed
from .target import Energy, Target

# Steepest slope of each activation: SiLU 1.0998, GELU 1.1290 (tanh form 1.1290), others 1; leaky_relu its larger slope.
_SLOPES = {"silu": 1.09984, "gelu": 1.12905, "gelu_tanh": 1.12906}
# Chains, warm-up steps and places along t of the pilot run that sets step sizes.
PILOT = (256, 96, 9)


@dataclass(frozen=True)
class LogPartition:
    """An estimate of log Z(alpha), p_0 being normalised; `standard_error` is that of the estimate, by the delta method.

    `ess`: the effective share of the weights, 1 / (n sum w^2) for weights that sum to 1; where it is small the standard
    error is too small as well. `acceptance` is the mean over the transitions, `z` [n, *event] where the chains ended:
    draws of p_alpha that `log_weights` [n] belong to, or of p_0 where `reverse`.
    """

    value: float
    standard_error: float
    ess: float
    acceptance: float
    log_weights: Tensor
    z: Tensor
    reverse: bool

    def __repr__(self) -> str:
        kind = "reverse AIS" if self.reverse else "AIS"
        return (
            f"log Z = {self.value:.4f} ± {self.standard_error:.4f} ({kind}, {len(self.log_weights)} chains, "
            f"effective share of weights {self.ess:.3f}, acceptance {self.acceptance:.2f})"
        )


def log_partition(
    energy: Energy,
    shape: int | Sequence[int],
    *,
    reference: str,
    reference_scale: float | Tensor = 1.0,
    bound: float | None = None,
    negate: bool = False,
    chains: int = 1024,
    steps: int = 1000,
    schedule: Tensor | Sequence[float] | None = None,
    step_size: float | None = None,
    reverse: bool = False,
    burn_in: int = 2000,
    lipschitz: float | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    precision: str | None = None,
    backend: str = "auto",
) -> LogPartition:
    """Estimate log Z = log E_{p_0}[exp(-E)] with `chains` chains of `steps` transitions.

    `energy`, `reference`, `reference_scale`, `bound` and `negate` as in `mmebm.langevin`; `shape` of one state. t runs
    over `schedule`, increasing from > 0 to 1, one value a transition; by default (k / steps)^2, denser where exp(-tE)
    p_0 changes fastest. The step size follows a pilot run that adapts it along t, unless `step_size` (short-run) is
    given. `reverse` starts at draws of p_alpha, by the same transitions up from p_0 and `burn_in` more at t = 1, and
    anneals back: it errs upwards where the forward estimate errs downwards, as far as those draws are good.

    Errors: ValueError where p_alpha may not be a distribution: a Laplace reference needs an energy that is bounded or
    has a Lipschitz constant below 1 / scale; it is computed for networks, `lipschitz` says it for a callable.
    """
    checks.one_of("reference", reference, checks.LAWS)
    checks.at_least("chains", chains, 2)
    checks.at_least("burn_in", burn_in, 0)
    event = (shape,) if isinstance(shape, int) else tuple(shape)
    where = torch.device(device)
    seed = int(fresh_seed(where, generator)) if seed is None else seed
    stream = Stream(seed, device=where)
    t = _schedule(schedule, steps)

    def start(n: int) -> Target:
        empty = torch.empty(n, *event, device=where, dtype=dtype)
        target = Target(
            energy, empty, reference=reference, reference_scale=reference_scale, bound=bound, negate=negate,
            event_dims=len(event), precision=precision, backend=backend,
        )  # fmt: skip
        unit = ops.draw(stream.take(1), 1, n, target.rows.shape[1], law=reference, purpose=REFERENCE_DRAW)[0]
        target.rows = unit.to(dtype) * target.hold["reference_scale"]
        return target

    pilot = start(min(chains, PILOT[0]))
    _check_integrable(pilot, lipschitz)
    sizes = _pilot(pilot, t, stream) if step_size is None else [short_run(step_size).b[0]] * len(t)
    target = start(chains)
    table = torch.tensor([(s * s / 2.0, s, u) for s, u in zip(sizes, t, strict=True)], device=where)
    z = target.rows
    if reverse:
        # Up along t first: where E is steep, a chain that stands in a tail of p_0 at t = 1 would never move.
        z = run_mala(target, z, table, stream.take(len(table))).z
        z = run_mala(target, z, table[-1:].expand(burn_in, 3).contiguous(), stream.take(burn_in)).z
        table = table[:-1].flip(0).contiguous()  # transitions at t_{K-1} .. t_1
    path = [1.0, *table[:, 2].tolist(), 0.0] if reverse else [0.0, *table[:, 2].tolist()]
    # What `work` leaves out: the change of t before the first transition, and on the way down the one after the last.
    log_w = -(path[1] - path[0]) * target.energy(z).double()
    chain = run_mala(target, z, table, stream.take(len(table)), statistics=True)
    log_w -= chain.work.double()
    if reverse and len(table):
        log_w -= (path[-1] - path[-2]) * target.energy(chain.z).double()
    return _estimate(log_w, float(chain.acceptance.mean()), target.restored(chain.z), reverse)


def bracket(energy: Energy, shape: int | Sequence[int], **options: object) -> tuple[LogPartition, LogPartition]:
    """The forward and the reverse estimate of `log_partition`, which err to opposite sides on average."""
    return (
        log_partition(energy, shape, **options, reverse=False),  # type: ignore[arg-type]
        log_partition(energy, shape, **options, reverse=True),  # type: ignore[arg-type]
    )


def lipschitz_constant(network: Network, scale: Tensor | None = None) -> float:
    """A bound of |E(x) - E(y)| / |x - y|_2: the product of the layers' spectral norms and the activations' slopes.

    With `scale` [d], of E as a function of z / scale.
    """
    first, *others = (w.detach().double() for w in network.weights)
    if scale is not None:
        first = first * scale.double()
    slope = max(1.0, abs(network.slope)) if network.activation == "leaky_relu" else _SLOPES.get(network.activation, 1.0)
    norms = [float(torch.linalg.matrix_norm(w, 2)) for w in (first, *others)]
    return math.prod(norms) * slope ** len(others)


def _check_integrable(target: Target, lipschitz: float | None) -> None:
    """exp(-E) p_0 has a finite integral: a Laplace law falls as exp(-|z|_1 / scale), a normal one faster than E can."""
    if target.hold["reference"] != "laplace" or target.bound is not None:
        return
    scale = target.hold["reference_scale"]
    if target.network is not None:
        found = lipschitz_constant(target.network, scale)
    elif lipschitz is not None:
        found = lipschitz * float(scale.max())
    else:
        raise ValueError(
            "lipschitz: expected a Lipschitz constant of the energy, or bound=, as a callable under a Laplace "
            "reference may outgrow its tails; got None"
        )
    if not found < 1.0:
        raise ValueError(
            f"energy: expected a Lipschitz constant below 1 / reference_scale, or bound=, as exp(-E) p_0 may have no "
            f"finite integral under a Laplace reference; got {found:.4g} / reference_scale at most"
        )


def _schedule(schedule: Tensor | Sequence[float] | None, steps: int) -> list[float]:
    if schedule is None:
        checks.at_least("steps", steps, 1)
        return [((k + 1) / steps) ** 2 for k in range(steps)]
    t = [float(u) for u in (schedule.double().tolist() if isinstance(schedule, Tensor) else schedule)]
    if not t or t[-1] != 1.0 or t[0] <= 0.0 or any(not a < b for a, b in pairwise(t)):
        raise ValueError(f"schedule: expected numbers that increase from > 0 to 1, got {t[:3]}..{t[-3:]}")
    return t


def _pilot(target: Target, t: list[float], stream: Stream) -> list[float]:
    """A short-run step size for every t: adapted at a few places on the way up, interpolated between them."""
    _, steps, places = PILOT
    at = sorted({round(i * (len(t) - 1) / (places - 1)) for i in range(places)})
    z, size, logs = target.rows, short_run(float(target.hold["reference_scale"].mean())), []
    for k in at:

        def round_of(z: Tensor, size: StepSize, first: int, count: int, k: int = k) -> tuple[Tensor, Tensor]:
            table = size.coefficients(count, z.device, t=[t[k]] * count)
            chain = run_mala(target, z, table, stream.take(count), statistics=True)
            return chain.z, chain.acceptance

        z, size = warm_up(z, size, steps, 0.574, round_of)
        logs.append(math.log(size.b[0]))
    sizes, place = [], 0
    for k in range(len(t)):
        while place + 2 < len(at) and k > at[place + 1]:
            place += 1
        if len(at) == 1:
            sizes.append(math.exp(logs[0]))
            continue
        share = (k - at[place]) / (at[place + 1] - at[place])
        sizes.append(math.exp((1.0 - share) * logs[place] + share * logs[place + 1]))
    return sizes


def _estimate(log_w: Tensor, acceptance: float, z: Tensor, reverse: bool) -> LogPartition:
    n = len(log_w)
    value = float(torch.logsumexp(log_w, 0)) - math.log(n)
    weights = torch.softmax(log_w, 0)
    square = float((weights * weights).sum())
    # Var of log mean w ~ Var(w) / (n mean(w)^2).
    error = math.sqrt(max(0.0, n * square - 1.0) / (n - 1))
    return LogPartition(
        value=-value if reverse else value,
        standard_error=error,
        ess=1.0 / (n * square) if square > 0 else math.nan,
        acceptance=acceptance,
        log_weights=log_w,
        z=z,
        reverse=reverse,
    )
