"""Draws, the update, energies and experts of the CUDA backend, their kernels' bodies run on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmebm.kernels import cuda, layered, ops
from mmebm.kernels.cuda import module
from mmebm.kernels.reference import MLP
from mmebm.kernels.reference.activations import ACTIVATIONS

from .. import experts as by_experts
from ..chains import HOLDS, schedule, stream
from ..energies import SHAPES, compare_energies
from ..experts import PRIORS, experts
from ..networks import network
from ..slow import slow

pytestmark = pytest.mark.usefixtures("emulated")

compare = by_experts.compare
# (experts, rows, dimensions); from six experts on subsets are counted in two loops.
EXPERTS = [(2, 33, 3), (6, 35, 16), *slow([(1, 65, 1), (3, 131, 5), (5, 9, 130), (8, 20, 9)])]


@pytest.mark.parametrize("law", ["normal", "laplace"])
@pytest.mark.parametrize("dim", [1, 2, 9, 16, 30, 70])
def test_draws_are_those_of_the_cpu_to_the_bit(law: str, dim: int, poisoned_empty: None) -> None:
    scale = torch.rand(dim) + 0.5
    for rng in ([7, 3, 5], [-1, 2**32 - 2, 2**32 - 3], [2**63 - 1, 2**48 - 2, 2**48 - 3], [-(2**63), -1, -2]):
        for by in (None, scale):
            options: dict[str, Any] = {"law": law, "purpose": 4, "scale": by}
            got = ops.draw(torch.tensor(rng), 3, 5, dim, backend="cuda", **options)
            assert torch.equal(got, ops.draw(torch.tensor(rng), 3, 5, dim, backend="cpu", **options))
    assert ops.draw(torch.tensor([1, 2, 3]), 0, 5, dim, law=law, purpose=1, backend="cuda").shape == (0, 5, dim)


@pytest.mark.parametrize("hold", HOLDS, ids=lambda h: "-".join(h) or "free")
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (37, 11), (3, 170)])
def test_the_update_alone(hold: dict[str, Any], rows: int, dim: int, poisoned_empty: None) -> None:
    hold = {"reference": "none"} | {name: value for name, value in hold.items() if name != "bound"}
    z, grad, table, scale = torch.randn(rows, dim), torch.randn(rows, dim), schedule(4), torch.rand(dim) + 0.5
    got, plain, exact = (
        ops.langevin_update(
            z.to(dtype), grad.to(dtype), table, stream(), 2, reference_scale=scale.to(dtype), backend=backend, **hold
        )
        for backend, dtype in (("cuda", torch.float32), ("reference", torch.float32), ("reference", torch.float64))
    )
    # Noise of two backends may differ by 2 ulp of its radius, at most 5.8, times b <= 0.7.
    apart = (got - exact).abs() <= 2.0 * (plain - exact).abs().max() + 0.7 * 2.0 * 2.0**-21
    assert apart.all()


@pytest.mark.parametrize("bound", [None, 2.0])
@pytest.mark.parametrize(("dim", "hidden", "rows"), SHAPES)
def test_energies(dim: int, hidden: tuple[int, ...], rows: int, bound: float | None, poisoned_empty: None) -> None:
    compare_energies(cuda, network(dim, hidden, gain=3.0, bound=bound), rows)


@pytest.mark.parametrize("activation", ["gelu", *slow(a for a in ACTIVATIONS if a != "gelu")])
def test_activations(activation: str, poisoned_empty: None) -> None:
    compare_energies(cuda, network(6, (20, 11), gain=3.0, activation=activation), 40)


def test_parts_over_rows_are_added(monkeypatch: pytest.MonkeyPatch, poisoned_empty: None) -> None:
    monkeypatch.setattr(layered, "_ADDED_ROWS", 32)
    compare_energies(cuda, network(4, (9, 70)), 100)


def test_no_rows_have_no_energies_and_no_gradients() -> None:
    net, nothing = network(3, (5,)), torch.randn(0, 3)
    assert cuda.energy(nothing, net).shape == (0,) and cuda.energy_and_grad(nothing, net)[1].shape == (0, 3)
    dz, d_weights, _ = cuda.energy_backward(torch.randn(0), nothing, net)
    assert dz.shape == (0, 3) and not any(w.any() for w in d_weights)


@pytest.mark.parametrize(("count", "rows", "dim"), EXPERTS)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_products(count: int, rows: int, dim: int, prior: str, spread: float, poisoned_empty: None) -> None:
    mu, logvar, present = experts(count, rows, dim)
    mean, lv = compare("product_of_experts", cuda, dim, mu, spread * logvar, present, prior)
    assert not mean[0].any() and not lv[0].any()
    g = torch.randn(rows, dim), torch.randn(rows, dim)
    d_mu, d_logvar = compare("product_of_experts_backward", cuda, dim, *g, mu, spread * logvar, present, prior)
    assert not d_mu[:, 0].any() and not d_logvar[:, 0].any()


@pytest.mark.parametrize("mode", ["all", "kl"])
@pytest.mark.parametrize(("count", "rows", "dim"), EXPERTS)
@pytest.mark.parametrize("prior", PRIORS)
def test_subsets(count: int, rows: int, dim: int, prior: str, mode: str, poisoned_empty: None) -> None:
    mu, logvar, present = experts(count, rows, dim)
    logvar[:, -1] = -(40.0 * logvar[:, -1]).abs()  # one row's precisions fit no common scale
    out = compare("subset_experts", cuda, dim, mu, logvar, present, prior, mode)
    assert not out[2][:, :1].any() if mode == "kl" else not out[0][:, 0].any()
    subsets = (1 << count) - 1
    some, none = (torch.randn(subsets, rows, dim) for _ in range(2)), torch.randn(0)
    g = (*some, none) if mode == "all" else (none, none, torch.randn(subsets, rows))
    compare("subset_experts_backward", cuda, dim, *g, mu, logvar, present, prior, mode)


@pytest.mark.parametrize("law", ["normal", "laplace"])
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize(("count", "rows", "dim"), EXPERTS)
def test_mixtures(count: int, rows: int, dim: int, lead: tuple[int, ...], law: str, poisoned_empty: None) -> None:
    loc, logvar, present = experts(count, rows, dim)
    scale, z = (0.3 * logvar).exp(), 2.0 * torch.randn(*lead, rows, dim)
    z[..., 0, 0] = 0.0
    compare("mixture_log_prob", cuda, dim, z, loc, scale, present, law)
    g = torch.randn(*lead, rows)
    found = compare("mixture_log_prob_backward", cuda, dim, g, z, loc, scale, present, law, True)
    alone = compare("mixture_log_prob_backward", cuda, dim, g, z, loc, scale, present, law, False)
    assert torch.equal(found[0], alone[0]) and not alone[1].numel()


def test_no_rows_and_no_leading_indices(poisoned_empty: None) -> None:
    mu, present = torch.randn(2, 0, 3), torch.zeros(0, dtype=torch.int64)
    assert cuda.product_of_experts(mu, mu, present, "never")[0].shape == (0, 3)
    assert cuda.subset_experts(mu, mu, present, "never", "kl")[2].shape == (3, 0)
    loc, some = torch.randn(2, 4, 3), torch.ones(4, dtype=torch.int64)
    dz, *d = cuda.mixture_log_prob_backward(
        torch.randn(0, 4), torch.randn(0, 4, 3), loc, loc.exp(), some, "normal", True
    )
    assert dz.shape == (0, 4, 3) and not any(t.any() for t in d)


def test_the_operators_come_here() -> None:
    mu, logvar, present = experts(3, 5, 4)
    got = ops.subset_experts(mu, logvar, present, mode="all", backend="cuda")
    want = cuda.subset_experts(mu, logvar, present, "never", "all")
    assert torch.equal(got.mu, want[0]) and torch.equal(got.logvar, want[1])


def test_what_it_cannot_serve_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert cuda.unsupported("divide", cpu, torch.float32) == "it has no kernel for 'divide'"
    assert cuda.unsupported("draw", cpu, torch.float64) == "it computes in float32, the call is in torch.float64"
    monkeypatch.setattr(module, "load", lambda: (None, "ImportError: no such module"))
    assert cuda.unsupported("draw", gpu, torch.float32) == "its native module is missing: ImportError: no such module"
    with pytest.raises(ValueError, match="mmebm::draw: it runs on cuda tensors, the call is on cpu"):
        ops.draw(torch.tensor([1, 2, 3]), 1, 2, 3, law="normal", purpose=0, backend="cuda")
    with pytest.raises(RuntimeError, match="the native CUDA kernels cannot be loaded"):
        cuda.energy(torch.randn(2, 3), MLP([torch.randn(1, 3)], [torch.randn(1)], "silu", 0.0, None))
