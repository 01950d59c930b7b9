"""Products over experts and over subsets of experts, and the mixture's density; forward, and with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.case import SUBJECT, Call, Case, Contender, Family
from bench.contenders import experts, limits, peers
from mmebm.kernels import ops

Function = Callable[..., Any]


@dataclass(frozen=True)
class Experts:
    """M normal experts; `present` and `subset` are bitmasks [B], `subset` never 0."""

    mu: Tensor  # [M, B, d]
    logvar: Tensor  # [M, B, d]
    present: Tensor
    subset: Tensor

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        return self.mu, self.logvar


@dataclass(frozen=True)
class Mixture:
    z: Tensor  # [K, B, d]
    loc: Tensor  # [M, B, d]
    scale: Tensor

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        return self.z, self.loc, self.scale


def experts_inputs(M: int, B: int, d: int, masked: bool) -> Experts:
    generator = torch.Generator().manual_seed(0)
    mu, logvar = torch.randn(M, B, d, generator=generator), torch.randn(M, B, d, generator=generator)
    full = 1 << M
    present = torch.randint(0, full, (B,), generator=generator) if masked else torch.full((B,), full - 1)
    return Experts(mu, logvar, present, torch.randint(1, full, (B,), generator=generator))


def _tuple(output: Any) -> tuple[Tensor, ...]:
    return tuple(output) if isinstance(output, tuple) else (output,)


def _cotangents(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randn(o.shape, generator=generator) for o in outputs)


def with_gradient(function: Function, tensors: tuple[Tensor, ...]) -> Call:
    """Forward, and the gradient of a fixed random weighting of the outputs."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    with torch.no_grad():
        weights = [w.to(leaves[0].dtype) for w in _cotangents(_tuple(function(*tensors)))]

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(_tuple(function(*leaves)), leaves, weights)

    return call


def _calls(make: Function, gradient: bool) -> Callable[[Any], Call]:
    """From "inputs -> function" to what is timed: the function, or it and its gradient."""

    def made(x: Any) -> Call:
        function = make(x)
        if gradient:
            return with_gradient(function, x.differentiable)
        return torch.no_grad()(lambda: _tuple(function(*x.differentiable)))

    return made


def _contenders(functions: dict[str, Function], gradient: bool) -> dict[str, Contender]:
    return {name: Contender(_calls(make, gradient)) for name, make in functions.items()}


def _multivae(kind: str, gradient: bool, reorder: bool = False) -> Contender:
    make, absent, version = peers.MULTIVAE[kind]

    def checked(x: Experts) -> Function:
        function, order = make(x), peers.multivae_order(len(x.mu))
        return lambda mu, logvar: tuple(t[order] for t in function(mu, logvar))

    return Contender(
        _calls(make, gradient),
        checked=_calls(checked, gradient) if reorder else None,
        absent=absent,
        version=version,
    )


def _oracle(operator: Function, gradient: bool) -> Callable[[Any], tuple[Tensor, ...]]:
    """`operator(x)` -> function, run on the reference backend in float64."""
    return lambda x: _calls(operator, gradient)(_double(x))()


def _double(x: Any) -> Any:
    wide = {n: v.double() if v.is_floating_point() else v for n, v in vars(x).items()}
    return type(x)(**wide)


def _case(operator: str, M: int, B: int, d: int, gradient: bool, **rest: Any) -> Case:
    name = f"{operator}{'+backward' if gradient else ''}/M{M}xB{B}xd{d}"
    served = operator.partition("-")[0]
    if served == "subset_experts" and operator.endswith("one"):
        served = "product_of_experts"
    sizes: dict[str, int | str] = {"M": M, "B": B, "d": d}
    return Case(name, served, sizes, unit="GB", tolerance=(1e-4, 1e-4), model={"byte": 1.0}, **rest)


def product(M: int, B: int, d: int, gradient: bool) -> Case:
    def operator(x: Experts, backend: str = "auto") -> Function:
        return lambda mu, logvar: ops.product_of_experts(mu, logvar, x.present, prior="always", backend=backend)

    # Read both of M experts and write both of one; backward, read them again with two gradients and write 2 M.
    gigabytes = 8e-9 * B * d * (M + 1 + (2 * M + 1 if gradient else 0))
    return _case(
        "product_of_experts", M, B, d, gradient,
        inputs=lambda: experts_inputs(M, B, d, masked=True),
        contenders={
            **_contenders({SUBJECT: operator, **experts.PRODUCTS}, gradient),
            "MultiVae": _multivae("product", gradient),
            limits.COPY: limits.copy(gigabytes),
        },
        work=gigabytes,
        oracle=_oracle(lambda x: operator(x, "reference"), gradient),
        limit=limits.COPY,
    )  # fmt: skip


def subsets(M: int, B: int, d: int, gradient: bool) -> Case:
    """Mode "all" on complete data, as MoPoE's code takes it; the prior is in the full subset."""

    def operator(x: Experts, backend: str = "auto") -> Function:
        return lambda mu, logvar: ops.subset_experts(mu, logvar, x.present, mode="all", prior="full", backend=backend)[
            :2
        ]

    gigabytes = 8e-9 * B * d * (2**M - 1)
    limit = limits.COPY if gradient else limits.FILL
    moved = gigabytes * 2 + 16e-9 * M * B * d if gradient else gigabytes
    return _case(
        "subset_experts-all", M, B, d, gradient,
        inputs=lambda: experts_inputs(M, B, d, masked=False),
        contenders={
            **_contenders({SUBJECT: operator, **experts.SUBSETS}, gradient),
            "MultiVae": _multivae("subsets", gradient, reorder=True),
            limit: limits.copy(moved) if gradient else limits.fill(moved),
        },
        work=moved,
        oracle=_oracle(lambda x: operator(x, "reference"), gradient),
        limit=limit,
    )  # fmt: skip


def subsets_kl(M: int, B: int, d: int, gradient: bool) -> Case:
    def operator(x: Experts, backend: str = "auto") -> Function:
        return lambda mu, logvar: ops.subset_experts(mu, logvar, x.present, mode="kl", prior="full", backend=backend).kl

    plain = {name: experts.with_kl(make) for name, make in experts.SUBSETS.items()}
    gigabytes = 4e-9 * B * (2 * M * d + 2**M - 1)
    return _case(
        "subset_experts-kl", M, B, d, gradient,
        inputs=lambda: experts_inputs(M, B, d, masked=False),
        contenders={**_contenders({SUBJECT: operator, **plain}, gradient), limits.COPY: limits.copy(gigabytes)},
        work=gigabytes,
        oracle=_oracle(lambda x: operator(x, "reference"), gradient),
        limit=limits.COPY,
    )  # fmt: skip


def subset_of_each(M: int, B: int, d: int, gradient: bool) -> Case:
    def operator(x: Experts, backend: str = "auto") -> Function:
        options = {"mode": "one", "prior": "full", "subset": x.subset, "backend": backend}
        return lambda mu, logvar: ops.subset_experts(mu, logvar, x.present, **options)[:2]

    gigabytes = 8e-9 * B * d * (M + 1 + (2 * M + 1 if gradient else 0))
    plain = {
        "eager masked": experts.one_masked,
        "torch.compile": experts.compiled_one,
        "eager all, then one": experts.one_of_all(experts.subset_matmul),
    }
    return _case(
        "subset_experts-one", M, B, d, gradient,
        inputs=lambda: experts_inputs(M, B, d, masked=False),
        contenders={**_contenders({SUBJECT: operator, **plain}, gradient), limits.COPY: limits.copy(gigabytes)},
        work=gigabytes,
        oracle=_oracle(lambda x: operator(x, "reference"), gradient),
        limit=limits.COPY,
    )  # fmt: skip


def mixture(K: int, M: int, B: int, d: int, gradient: bool) -> Case:
    def inputs() -> Mixture:
        generator = torch.Generator().manual_seed(0)
        loc, raw = (torch.randn(M, B, d, generator=generator) for _ in range(2))
        return Mixture(torch.randn(K, B, d, generator=generator), loc, torch.exp(0.3 * raw))

    def operator(_: Mixture, backend: str = "auto") -> Function:
        return lambda z, loc, scale: ops.mixture_log_prob(z, loc, scale, law="laplace", backend=backend)

    once = 4e-9 * B * (d * (K + 2 * M) + K)
    gigabytes = 3 * once if gradient else once
    case = _case(
        "mixture_log_prob", M, B, d, gradient,
        inputs=inputs,
        contenders={
            **_contenders({SUBJECT: operator, **experts.MIXTURES}, gradient),
            limits.COPY: limits.copy(gigabytes),
        },
        work=gigabytes,
        oracle=_oracle(lambda x: operator(x, "reference"), gradient),
        limit=limits.COPY,
    )  # fmt: skip
    case.sizes["K"] = K
    return case


def _both(build: Function, **size: int) -> Family:
    sizes = tuple({**size, "gradient": gradient} for gradient in (False, True))
    return Family(build, sizes, {"gradient": True, "M": 3, "B": 40, "d": 5} | ({"K": 2} if "K" in size else {}))


FAMILIES = (
    _both(product, M=5, B=4096, d=64),
    _both(subsets, M=5, B=4096, d=64),
    _both(subsets_kl, M=5, B=4096, d=64),
    _both(subset_of_each, M=5, B=4096, d=64),
    _both(mixture, K=5, M=5, B=256, d=64),
    _both(mixture, K=5, M=5, B=4096, d=64),
)
