"""Energies and their gradients, and how a backend's are compared with the float64 reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmebm.kernels import reference
from mmebm.kernels.reference import MLP

from .networks import double

# (dimensions, hidden widths, rows): tiles are 64 x 64, operands' blocks 32 wide
SHAPES = [
    (1, (3,), 65),
    (3, (), 5),
    (33, (70, 40, 9), 67),
    (130, (65,), 3),
    (5, (7, 6, 5, 4, 3), 64),
    (64, (64, 64), 128),
]


def no_worse(got: Tensor, plain: list[Tensor], exact: Tensor, name: str = "", terms: Tensor | None = None) -> None:
    """At most twice what the reference loses in float32, its worst order of summation or its storing of the result.

    `terms`: the sum of absolute values of what was added up, each rounded once, where that was over rows.
    """
    assert got.dtype == torch.float32 and got.shape == exact.shape, name
    lost = max(float((p - exact).norm()) for p in plain)
    stored = 2.0**-24 * float((exact if terms is None else terms).norm())
    assert (got - exact).norm() <= 2.0 * max(lost, stored), name


def energies(module: Any, g: Tensor, z: Tensor, net: MLP) -> dict[str, Tensor]:
    """Everything a backend says of an energy; gradients of parameters as one tensor each kind."""
    e, grad = module.energy_and_grad(z, net)
    dz, d_weights, d_biases = module.energy_backward(g, z, net, True)
    found = {"energy": module.energy(z, net), "e": e, "grad": grad, "dz": dz}
    found["dz alone"] = module.energy_backward(g, z, net, False)[0]
    found |= {f"d_weights[{i}]": w for i, w in enumerate(d_weights)}
    return found | {"d_biases": torch.cat(d_biases)}


def compare_energies(module: Any, net: MLP, rows: int) -> None:
    """Everything that a backend's module says of an energy, within twice what the reference loses in float32."""
    z, g = 1.5 * torch.randn(rows, net.weights[0].shape[1]), torch.randn(rows)
    got, exact = energies(module, g, z, net), energies(reference, g.double(), z.double(), double(net))
    # Rows in another order: of parameters' gradients, what the sum over them may lose.
    plain = [energies(reference, g, z, net)]
    for order in [torch.randperm(rows) for _ in range(3)]:
        other, back = energies(reference, g[order], z[order], net), order.argsort()
        plain.append(other | {n: other[n][back] for n in ("energy", "e", "grad", "dz", "dz alone")})
    each = [energies(reference, g[i : i + 1].double(), z[i : i + 1].double(), double(net)) for i in range(rows)]
    for name in got:
        terms = torch.stack([r[name].abs() for r in each]).sum(0) if name.startswith("d_") else None
        no_worse(got[name], [p[name] for p in plain], exact[name], name, terms)
    assert torch.equal(got["energy"], got["e"]) and torch.equal(got["dz"], got["dz alone"])
