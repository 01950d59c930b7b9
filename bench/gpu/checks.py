"""Every operator of a backend against the reference in float64, on fresh inputs, with outputs poisoned.

What may be lost is twice what PyTorch loses in the same precision: the reference in float32, and for products of
matrices in less their emulation (emulate.py). A chain's check is one of states after two steps; decisions of `mala` and
signs at zero may differ in few rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.gpu import emulate
from mmebm.kernels import dispatch, ops, reference
from mmebm.kernels.cuda import chains as by_cuda
from mmebm.kernels.reference import MLP

FLOOR = 4e-7  # of the values' size: what a last rounding makes of exact results
OUTLIERS = 0.005  # rows left out where a sign or a decision may turn

Inputs = dict[str, Any]


class Check(NamedTuple):
    """`call(inputs, backend, precision)` gives tensors; `plain`, where PyTorch's loss is not that of the reference."""

    operator: str
    inputs: Callable[[torch.Generator, bool], Inputs]
    call: Callable[[Inputs, str, str], Sequence[Tensor]]
    precisions: tuple[str, ...] = ("fp32",)
    plain: Callable[[Inputs, str], Sequence[Tensor]] | None = None
    rowwise: bool = False


def _net(g: torch.Generator, d: int, h: int, layers: int = 2) -> Inputs:
    widths = [d, *[h] * layers, 1]
    pairs = list(pairwise(widths))
    return {
        "weights": [torch.randn(o, i, generator=g) * 1.5 / i**0.5 for i, o in pairs],
        "biases": [0.1 * torch.randn(o, generator=g) for _, o in pairs],
    }


def _energies(g: torch.Generator, tiny: bool) -> Inputs:
    rows, d, h = (37, 5, 16) if tiny else (1000, 32, 128)
    return {"z": torch.randn(rows, d, generator=g), "g": torch.randn(rows, generator=g)} | _net(g, d, h)


def _chains(g: torch.Generator, tiny: bool) -> Inputs:
    x = _energies(g, tiny)
    table = torch.tensor([[0.02, 0.2, 1.0], [0.03, 0.2, 0.5]])
    return x | {"table": table, "rng": torch.tensor([int(x["g"][0] * 1e6), 1 << 33, 7]), "scale": x["z"][0].abs() + 0.5}


def _wide(g: torch.Generator, tiny: bool) -> Inputs:
    """A net that no program holds at once."""
    x = _chains(g, tiny)
    return x | _net(g, x["z"].shape[1], 160 if tiny else 512, 3)


def _experts(g: torch.Generator, tiny: bool) -> Inputs:
    m, rows, d = (3, 21, 5) if tiny else (5, 777, 64)
    mu, logvar = (torch.randn(m, rows, d, generator=g) for _ in range(2))
    return {
        "mu": mu, "logvar": logvar, "scale": (0.3 * logvar).exp(), "z": torch.randn(2, rows, d, generator=g),
        "present": torch.randint(1 << m, (rows,), generator=g), "w": torch.randn(rows, d, generator=g),
    }  # fmt: skip


def _mlp(x: Inputs, activation: str = "silu", bound: float | None = None) -> dict[str, Any]:
    return {"weights": x["weights"], "biases": x["biases"], "activation": activation, "bound": bound}


def _gradients(e: Tensor, leaves: Sequence[Tensor], g: Tensor) -> list[Tensor]:
    """The last layer's weight and bias as one: a sum of terms that cancel has no size of its own to err by."""
    *first, weight = torch.autograd.grad(e, leaves, g)
    at = len(leaves) // 2  # z, weights, biases
    return [*first[:at], *first[at + 1 :], torch.cat((first[at].flatten(), weight))]


def _energy(x: Inputs, backend: str, precision: str) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x["z"], *x["weights"], *x["biases"])]
    n = len(x["weights"])
    e = ops.energy(leaves[0], leaves[1 : 1 + n], leaves[1 + n :], bound=30.0, precision=precision, backend=backend)
    return [e.detach(), *_gradients(e, leaves, x["g"])]


def _plain_energy(x: Inputs, precision: str) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x["z"], *x["weights"], *x["biases"])]
    n = len(x["weights"])
    net = MLP(leaves[1 : 1 + n], leaves[1 + n :], "silu", 0.0, 30.0)
    e, _ = emulate.energy_and_grad(leaves[0], net, precision)
    return [e.detach(), *_gradients(e, leaves, x["g"])]


def _energy_and_grad(x: Inputs, backend: str, precision: str) -> Sequence[Tensor]:
    return ops.energy_and_grad(x["z"], **_mlp(x), precision=precision, backend=backend)


def _plain_grad(x: Inputs, precision: str) -> Sequence[Tensor]:
    return emulate.energy_and_grad(x["z"], MLP(x["weights"], x["biases"], "silu", 0.0, None), precision)


def _chain(operator: Callable[..., Any], **options: Any) -> Callable[[Inputs, str, str], Sequence[Tensor]]:
    activation = {"activation": options.pop("activation")} if "activation" in options else {}

    def call(x: Inputs, backend: str, precision: str) -> Sequence[Tensor]:
        return operator(
            x["z"], **_mlp(x) | activation, coefficients=x["table"], rng=x["rng"], reference_scale=x["scale"],
            precision=precision, backend=backend, **{"reference": "laplace"} | options,
        )  # fmt: skip

    return call


def _plain_chain(x: Inputs, precision: str, activation: str = "silu") -> list[Tensor]:
    net = MLP(x["weights"], x["biases"], activation, 0.0, None)
    noise = reference.draw(x["rng"], len(x["table"]), *x["z"].shape, "normal", 0).to(x["z"].dtype)
    return [emulate.chain(x["z"], net, x["table"], noise, x["scale"], precision)]


def _update(x: Inputs, backend: str, precision: str) -> Sequence[Tensor]:
    grad = x["z"].flip(0).contiguous()
    return [
        ops.langevin_update(
            x["z"],
            grad,
            x["table"],
            x["rng"],
            1,
            reference="normal",
            reference_scale=x["scale"],
            grad_clip=2.0,
            clamp=(-1.5, None),
            backend=backend,
        )
    ]


def _product(x: Inputs, backend: str, precision: str) -> Sequence[Tensor]:
    mu, logvar = (x[name].detach().requires_grad_() for name in ("mu", "logvar"))
    out = ops.product_of_experts(mu, logvar, x["present"], prior="always", backend=backend)
    return [*(t.detach() for t in out), *torch.autograd.grad(list(out), (mu, logvar), [x["w"], x["w"].flip(0)])]


def _subsets(mode: str) -> Callable[[Inputs, str, str], Sequence[Tensor]]:
    def call(x: Inputs, backend: str, precision: str) -> Sequence[Tensor]:
        mu, logvar = (x[name].detach().requires_grad_() for name in ("mu", "logvar"))
        out = ops.subset_experts(mu, logvar, x["present"], prior="full", mode=mode, backend=backend)
        kept = [t for t in (out.mu, out.logvar, out.kl) if t.numel()]
        weights = [torch.cos(torch.arange(t.numel(), device=t.device, dtype=t.dtype)).view(t.shape) for t in kept]
        return [*(t.detach() for t in kept), *torch.autograd.grad(kept, (mu, logvar), weights)]

    return call


def _mixture(law: str) -> Callable[[Inputs, str, str], Sequence[Tensor]]:
    def call(x: Inputs, backend: str, precision: str) -> Sequence[Tensor]:
        leaves = [x[name].detach().requires_grad_() for name in ("z", "mu", "scale")]
        out = ops.mixture_log_prob(*leaves, x["present"], law=law, backend=backend)
        return [out.detach(), *torch.autograd.grad(out.sum(), leaves)]

    return call


def _draw(law: str) -> Callable[[Inputs, str, str], Sequence[Tensor]]:
    return lambda x, backend, _: [ops.draw(x["rng"], 3, *x["z"].shape, law=law, purpose=1, backend=backend)]


ALL = ("fp32", "tf32", "bf16x3", "bf16w2", "bf16")
CHECKS = {
    "draw normal": Check("draw", _chains, _draw("normal")),
    "draw laplace": Check("draw", _chains, _draw("laplace")),
    "langevin_update": Check("langevin_update", _chains, _update),
    "product_of_experts": Check("product_of_experts", _experts, _product),
    "subset_experts all": Check("subset_experts", _experts, _subsets("all")),
    "subset_experts kl": Check("subset_experts", _experts, _subsets("kl")),
    "mixture_log_prob normal": Check("mixture_log_prob", _experts, _mixture("normal")),
    "mixture_log_prob laplace": Check("mixture_log_prob", _experts, _mixture("laplace")),
    "energy": Check("energy", _energies, _energy, ALL, _plain_energy),
    "energy_and_grad": Check("energy_and_grad", _energies, _energy_and_grad, ALL, _plain_grad),
    "langevin": Check("langevin", _chains, _chain(lambda *a, **k: ops.langevin(*a, **k)[:1]), ALL, _plain_chain, True),
    "langevin wide": Check(
        "langevin", _wide, _chain(lambda *a, **k: ops.langevin(*a, **k)[:1]), ALL, _plain_chain, True
    ),
    "langevin held": Check(
        "langevin", _chains,
        _chain(ops.langevin, reference="normal", grad_clip=0.7, clamp=(-1.4, 1.6), record_every=1, statistics=True),
        rowwise=True,
    ),
    "mala": Check("mala", _chains, _chain(ops.mala, record_every=1, statistics=True), rowwise=True),
}  # fmt: skip


@contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty gives NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def moved(x: Inputs, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Floating tensors in this dtype, but for a table of coefficients; everything on the device."""

    def one(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [one(name, t) for t in value]
        return value.to(device, dtype if value.is_floating_point() and name != "table" else None)

    return {name: one(name, value) for name, value in x.items()}


def loss(got: Sequence[Tensor], exact: Sequence[Tensor], rowwise: bool) -> list[float]:
    """Relative root-mean-square errors, tensor by tensor; infinite where something is not finite."""
    errors = []
    for a, b in zip(got, exact, strict=True):
        difference, size = a.detach().double().cpu() - b.double(), float(b.double().square().mean().sqrt())
        if not difference.numel():
            continue
        squares = difference.square()
        if rowwise and squares.dim() > 1:
            squares = squares.flatten(0, -2).mean(1)
        if rowwise and len(squares) > 1 / OUTLIERS:
            squares = squares.sort().values[: int(len(squares) * (1 - OUTLIERS))]
        error = float(squares.mean().sqrt()) / max(size, 1e-30)
        errors.append(error if error == error else float("inf"))
    return errors


def judge(check: Check, x: Inputs, device: torch.device, backend: str, precision: str) -> dict[str, Any]:
    """A row: the worst error and what was allowed there."""
    cpu = torch.device("cpu")
    row = {"backend": backend, "precision": precision}
    try:
        with poisoned():
            got = check.call(moved(x, device, torch.float32), backend, precision)
        exact = check.call(moved(x, cpu, torch.float64), "reference", "fp32")
        single = moved(x, cpu, torch.float32)
        if check.plain is None or precision == "fp32":
            plain = check.call(single, "reference", "fp32")
        else:
            plain = check.plain(single, precision)
    except (RuntimeError, ValueError) as error:
        return row | {"verdict": f"FAILED: {type(error).__name__}", "note": str(error).splitlines()[0][:200]}
    errors = loss(got, exact, check.rowwise)
    allowed = [2.0 * value + FLOOR for value in loss(plain, exact, check.rowwise)]
    worst = max(range(len(errors)), key=lambda i: errors[i] / allowed[i])
    verdict = "ok" if errors[worst] <= allowed[worst] else "FAILED"
    return row | {"error": errors[worst], "allowed": allowed[worst], "verdict": verdict}


# (rows, dimensions, width) of chains that each kernel of backend cuda runs which holds them; and their activations.
SHAPES = ((1, 32, 64), (65, 32, 128), (129, 32, 256), (300, 64, 64), (129, 64, 128), (300, 20, 200))
ACTIVATIONS = ("silu", "gelu_tanh", "tanh")


def chains_by_kernel(device: torch.device, seed: int, tiny: bool) -> Iterator[dict[str, Any]]:
    """A row for each kernel for chains of backend cuda: calls choose among them by the number of rows."""
    for rows, d, h in SHAPES[:2] if tiny else SHAPES:
        generator = torch.Generator().manual_seed(seed)
        x = _chains(generator, tiny) | _net(generator, d, h)
        x["z"] = torch.randn(rows, d, generator=generator)
        x["scale"] = torch.rand(d, generator=generator) + 0.5
        for activation in ACTIVATIONS[:1] if tiny else ACTIVATIONS:
            check = Check(
                "langevin", _chains, _chain(lambda *a, **k: ops.langevin(*a, **k)[:1], activation=activation), ALL,
                functools.partial(_plain_chain, activation=activation), True,
            )  # fmt: skip
            for precision in ALL:
                net = MLP(x["weights"], x["biases"], activation, 0.0, None, precision)
                for variant in by_cuda.variants(net, device, adjusted=False):
                    with by_cuda.forced(variant):
                        row = judge(check, x, device, "cuda", precision)
                    yield {"case": f"langevin by {variant}, {rows} rows, {d}-{h}-{h}-1, {activation}"} | row


def every(device: torch.device, backends: Sequence[str], seed: int, tiny: bool) -> Iterator[dict[str, Any]]:
    """A row for each check, backend and precision; what a backend does not serve is said."""
    if "cuda" in backends:
        yield from chains_by_kernel(device, seed, tiny)
    for name, check in CHECKS.items():
        generator = torch.Generator().manual_seed(seed)
        x = check.inputs(generator, tiny)
        for backend in backends:
            net = MLP(x["weights"], x["biases"], "silu", 0.0, None) if "weights" in x else None
            reason = dispatch.unsupported(backend, check.operator, device, torch.float32, net)
            if reason:
                yield {"case": name, "backend": backend, "verdict": "not served", "note": reason}
                continue
            for precision in check.precisions:
                yield {"case": name} | judge(check, x, device, backend, precision)
