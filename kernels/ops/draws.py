"""`draw`: reference draws, momenta and reparameterisation noise."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, dispatch
from .register import fake, operator, sampler


def _check_draw(rng: Tensor, steps: int, rows: int, dim: int, law: str, purpose: int, scale: Tensor | None) -> None:
    checks.rng(rng)
    checks.at_least("steps", steps, 0)
    checks.at_least("rows", rows, 0)
    checks.at_least("dim", dim, 1)
    if dim > checks.MAX_DIM:
        raise ValueError(f"dim: expected at most {checks.MAX_DIM}, what 24 bits of call numbers address, got {dim}")
    checks.one_of("law", law, checks.LAWS)
    if purpose not in checks.PURPOSES:
        raise ValueError(f"purpose: expected 0 to {checks.PURPOSES[-1]}, got {purpose}")
    if scale is not None:
        checks.tensor("scale", scale, (dim,), torch.empty(0, dtype=torch.float32, device=rng.device))


@operator(
    "draw",
    "(Tensor rng, int steps, int rows, int dim, str law, int purpose, Tensor? scale, str backend) -> Tensor",
)
def _draw(
    rng: Tensor, steps: int, rows: int, dim: int, law: str, purpose: int, scale: Tensor | None, backend: str
) -> Tensor:
    _check_draw(rng, steps, rows, dim, law, purpose, scale)
    return dispatch.select(backend, "draw", rng.device).draw(rng, steps, rows, dim, law, purpose, scale)


@fake("draw")
def _(
    rng: Tensor, steps: int, rows: int, dim: int, law: str, purpose: int, scale: Tensor | None, backend: str
) -> Tensor:
    _check_draw(rng, steps, rows, dim, law, purpose, scale)
    return torch.empty(steps, rows, dim, dtype=torch.float32, device=rng.device)


sampler("draw")


def draw(
    rng: Tensor,
    steps: int,
    rows: int,
    dim: int,
    *,
    law: str,
    purpose: int,
    scale: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Draws float32 [steps, rows, dim] of the standard `law` ("normal" or "laplace"), times `scale` float32 [dim].

    Element (s, i) belongs to step offset + s of chain first + i; `purpose` (0 chain noise, 1 reference draws, 2
    accept/reject, 3 choice, 4 reparameterisation, 5 momenta) keeps streams apart.
    """
    return torch.ops.mmebm.draw(rng, steps, rows, dim, law, purpose, scale, backend)
