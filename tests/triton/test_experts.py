"""Products and mixtures of experts of the Triton backend, under the interpreter, against the float64 reference.

What the interpreter cannot see, the hardware's exponential and what a compiler makes of a tile, is looked for in the
machine code below: a tile's values stay in registers and sums over experts in a thread.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="backend triton cannot run here")

from mmebm.kernels import ops
from mmebm.kernels.triton import mixture, product, subsets

from ..experts import PRIORS, compare, experts
from ..slow import slow
from .cubin import compiled

interpreted = pytest.mark.interpreted
# (experts, rows, dimensions): tiles hold 512 or fewer values, in blocks of 64 dimensions.
SHAPES = [(2, 33, 3), (5, 9, 130), (1, 65, 1), (3, 131, 5), (4, 33, 65), (6, 35, 16)]
each_shape = pytest.mark.parametrize(("count", "rows", "dim"), [*SHAPES[:2], *slow(SHAPES[2:])])
each_prior = pytest.mark.parametrize("prior", ["full", *slow(p for p in PRIORS if p != "full")])


@interpreted
@each_shape
@each_prior
def test_products(count: int, rows: int, dim: int, prior: str, poisoned_empty: None) -> None:
    mu, logvar, present = experts(count, rows, dim)
    mean, lv = compare("product_of_experts", product, dim, mu, logvar, present, prior)
    assert not mean[0].any() and not lv[0].any()
    g = torch.randn(rows, dim), torch.randn(rows, dim)
    d_mu, d_logvar = compare("product_of_experts_backward", product, dim, *g, mu, logvar, present, prior)
    assert not d_mu[:, 0].any() and not d_logvar[:, 0].any()


@interpreted
@pytest.mark.parametrize("mode", ["all", "kl"])
@each_shape
@each_prior
def test_subsets(count: int, rows: int, dim: int, prior: str, mode: str, poisoned_empty: None) -> None:
    mu, logvar, present = experts(count, rows, dim)
    out = compare("subset_experts", subsets, mu.shape[2], mu, logvar, present, prior, mode)
    assert not out[2][:, :1].any() if mode == "kl" else not out[0][:, 0].any()
    some, none = (torch.randn((1 << count) - 1, rows, dim) for _ in range(2)), torch.randn(0)
    g = (*some, none) if mode == "all" else (none, none, torch.randn((1 << count) - 1, rows))
    compare("subset_experts_backward", subsets, dim, *g, mu, logvar, present, prior, mode)


@interpreted
@each_prior
def test_one_scale_serves_where_it_can(prior: str, poisoned_empty: None) -> None:
    """Tiles whose precisions fit one scale and tiles whose do not give the same product, to rounding."""
    mu, logvar, present = experts(4, 12, 64)
    shape = subsets.tile(4, 64)
    assert shape["R"] < 11, "the last row is in another tile than the first"
    narrow = subsets.subset_experts(mu, logvar, present, prior, "all")
    logvar[:, -1] = torch.where(logvar[:, -1].isnan(), logvar[:, -1], torch.tensor([-90.0, 0.0, 3.0, 40.0])[:, None])
    wide = compare("subset_experts", subsets, mu.shape[2], mu, logvar, present, prior, "all")
    for a, b in zip(narrow[:2], wide[:2], strict=True):
        torch.testing.assert_close(a[:, :11], b[:, :11])


@interpreted
@pytest.mark.parametrize("law", ["normal", "laplace"])
@pytest.mark.parametrize("lead", [(), (3,), (2, 2)], ids=str)
@each_shape
def test_mixtures(count: int, rows: int, dim: int, lead: tuple[int, ...], law: str, poisoned_empty: None) -> None:
    loc, logvar, present = experts(count, rows, dim)
    scale, z = (0.3 * logvar).exp(), 2.0 * torch.randn(*lead, rows, dim)
    z[..., 0, 0] = 0.0
    compare("mixture_log_prob", mixture, dim, z, loc, scale, present, law)
    g = torch.randn(*lead, rows)
    found = compare("mixture_log_prob_backward", mixture, dim, g, z, loc, scale, present, law, True)
    alone = compare("mixture_log_prob_backward", mixture, dim, g, z, loc, scale, present, law, False)
    assert torch.equal(found[0], alone[0]) and not alone[1].numel()


@interpreted
def test_no_rows_and_no_leading_indices(poisoned_empty: None) -> None:
    mu, present = torch.randn(2, 0, 3), torch.zeros(0, dtype=torch.int64)
    assert product.product_of_experts(mu, mu, present, "never")[0].shape == (0, 3)
    assert subsets.subset_experts(mu, mu, present, "never", "kl")[2].shape == (3, 0)
    loc, some = torch.randn(2, 4, 3), torch.ones(4, dtype=torch.int64)
    dz, *d = mixture.mixture_log_prob_backward(
        torch.randn(0, 4), torch.randn(0, 4, 3), loc, loc.exp(), some, "normal", True
    )
    assert dz.shape == (0, 4, 3) and not any(t.any() for t in d)


@interpreted
def test_the_operators_come_here() -> None:
    mu, logvar, present = experts(3, 5, 4)
    for mode in ("all", "kl"):
        got = ops.subset_experts(mu, logvar, present, mode=mode, backend="triton")
        want = subsets.subset_experts(mu, logvar, present, "never", mode)
        for a, b in zip((got.mu, got.logvar, got.kl), want, strict=True):
            assert torch.equal(a, b)
    got, want = ops.product_of_experts(mu, logvar, present, backend="triton"), (mu, logvar, present, "never")
    assert all(torch.equal(a, b) for a, b in zip(got, product.product_of_experts(*want), strict=True))


FIVE = {"EXPERTS": 5, "PRIOR": "full"}
COMPILED: dict[str, tuple[Any, dict[str, Any]]] = {
    "product": (product.product_kernel, FIVE | product.tile(5)),
    "product_backward": (product.product_backward_kernel, FIVE | product.tile(5)),
    "subsets_all": (subsets.subsets_kernel, FIVE | {"MODE": "all"} | subsets.tile(5, 64)),
    "subsets_kl": (subsets.subsets_kernel, FIVE | {"MODE": "kl"} | subsets.tile(5, 64)),
    "subsets_all_backward": (subsets.subsets_backward_kernel, FIVE | {"MODE": "all"} | subsets.tile(5, 64)),
    "subsets_kl_backward": (subsets.subsets_backward_kernel, FIVE | {"MODE": "kl"} | subsets.tile(5, 64)),
    "mixture": (mixture.mixture_kernel, {"EXPERTS": 5, "LAW": "laplace", "SHARES": False} | mixture.tile(5, 64)),
    "mixture_backward": (
        mixture.mixture_backward_kernel,
        {"EXPERTS": 5, "LAW": "normal", "PARAMETERS": True} | mixture.tile(5, 64),
    ),
}


@pytest.mark.parametrize("sm", [90, *slow([80])])
@pytest.mark.parametrize("name", COMPILED)
def test_kernels_keep_to_their_registers(name: str, sm: int) -> None:
    kernel, constants = COMPILED[name]
    code = compiled(kernel, constants, sm, aligned=True)
    assert code.stack == 0 and code.whole["LDL"] + code.whole["STL"] == 0
    if name.startswith("product"):
        assert code.whole["BAR"] + code.whole["SHFL"] == 0, "all experts of a value are one thread's"
        # Of five experts mu and logvar; masks; gradients: none is read twice, none of the padding's.
        assert code.whole["LDG"] <= 2 * 5 + 4 + 2
