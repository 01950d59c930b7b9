"""`energy`, `energy_and_grad` and `energy_backward`: a tile of rows a program if the network fits, else by layers.

Gradients of parameters are always taken by layers: what they need of every row goes through memory once, and sums over
rows are parts of fixed size, added in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..reference import MLP
from . import launch, layered
from .network import energy_and_grad as _energy_and_grad
from .network import load_network


@triton.jit(do_not_specialize=["rows"], repr=launch.kernel_name("energy"))
def energy_kernel(
    z_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, w3_ptr, b3_ptr, w_ptr, b_ptr, g_ptr, energy_ptr, grad_ptr,
    rows, slope, bound,
    DIM: tl.constexpr, H1: tl.constexpr, H2: tl.constexpr, H3: tl.constexpr,
    M: tl.constexpr, D: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr, DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, HALVED: tl.constexpr, BOUND: tl.constexpr,
    ENERGY: tl.constexpr, GRADIENT: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """E and dE/dz of M rows, the latter times g where that is GIVEN."""
    w1, low1, b1, w2, low2, b2, w3, low3, b3, w, b = load_network(
        w1_ptr, b1_ptr, w2_ptr, b2_ptr, w3_ptr, b3_ptr, w_ptr, b_ptr, DIM, H1, H2, H3, D, P1, P2, P3, DEPTH, PRECISION,
        HALVED,
    )  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    dims = tl.arange(0, D)
    here = row < rows
    mask = here[:, None] & (dims[None, :] < DIM)
    cells = row[:, None] * DIM + dims[None, :]
    z = tl.load(z_ptr + cells, mask=mask, other=0.0)  # [M, D]
    e, grad = _energy_and_grad(
        z, w1, low1, b1, w2, low2, b2, w3, low3, b3, w, b, slope, bound, DEPTH, ACTIVATION, PRECISION, BOUND, HALVED
    )
    if ENERGY:
        tl.store(energy_ptr + row, e, mask=here)
    if GRADIENT:
        if GIVEN:
            grad = grad * tl.load(g_ptr + row, mask=here, other=0.0)[:, None]
        tl.store(grad_ptr + cells, grad, mask=mask)


def _run(z: Tensor, net: MLP, energy: bool, gradient: bool, g: Tensor | None = None) -> tuple[Tensor, Tensor]:
    rows = len(z)
    e, grad = z.new_empty(rows if energy else 0), z.new_empty(z.shape if gradient else 0)
    if rows:
        packed, tile, used = launch.packed(net), launch.tile(net, z.device), launch.precision(net, z.device)
        with launch.on(z.device):
            energy_kernel[(triton.cdiv(rows, tile.rows),)](
                z.contiguous(), *packed.tensors, z if g is None else g.contiguous(), e, grad, rows, net.slope,
                net.bound or 1.0, M=tile.rows, **packed.shape, ACTIVATION=net.activation, PRECISION=used,
                HALVED=used == "bf16" and net.activation == "silu", BOUND=net.bound is not None,
                ENERGY=energy, GRADIENT=gradient, GIVEN=g is not None, num_warps=tile.warps, **launch.OPTIONS,
            )  # fmt: skip
    return e, grad


def energy(z: Tensor, net: MLP) -> Tensor:
    """E(z): [B, d] -> [B]."""
    if launch.too_large(net, z.device):
        return layered.energy(z, net)
    return _run(z, net, energy=True, gradient=False)[0]


def energy_and_grad(z: Tensor, net: MLP) -> tuple[Tensor, Tensor]:
    """E(z) [B] and dE/dz [B, d] in one pass."""
    if launch.too_large(net, z.device):
        return layered.energy_and_grad(z, net)
    return _run(z, net, energy=True, gradient=True)


def energy_backward(
    g: Tensor, z: Tensor, net: MLP, parameters: bool = True
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradient of sum_b g_b E(z_b) in z, and where `parameters`, in weights and biases; g is [B]."""
    if parameters or launch.too_large(net, z.device):
        return layered.energy_backward(g, z, net, parameters)
    return _run(z, net, energy=False, gradient=True, g=g)[1], [], []
