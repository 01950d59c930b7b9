"""What one step launches, by code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.launches import CODES, launches, table
from mmebm.kernels import ops


def test_operators_are_counted_and_views_are_not() -> None:
    def run(net: nn.Module, z: Tensor, steps: int) -> None:
        for _ in range(steps):
            z = (z.t().unsqueeze(0) * 2.0).squeeze(0).t().detach()
            z.add_(1.0)
            torch.empty(3)

    count, kinds = launches(run)
    assert count == 2 and dict(kinds) == {"mul": 1, "add_": 1}


def test_what_is_done_once_is_no_part_of_a_step() -> None:
    def run(net: nn.Module, z: Tensor, steps: int) -> None:
        z = z.exp()
        for _ in range(steps):
            z = z.sin()

    assert launches(run)[0] == 1


def test_a_callable_launches_its_gradient_and_one_update() -> None:
    """Of three linear layers and two activations: as many ways up as down, and the operator."""
    count, kinds = launches(CODES["mmebm.langevin, any callable"])
    assert dict(kinds) == {"addmm": 3, "mm": 3, "silu": 2, "silu_backward": 2, "langevin_update": 1} and count == 11
    assert "langevin_update" in ops.OPERATORS


def test_a_network_is_one_operator_and_loops_are_not() -> None:
    counts = {name: launches(run)[0] for name, run in CODES.items()}
    assert counts["mmebm.langevin, a recognised network"] == 0
    assert counts["mmebm.langevin, any callable"] < counts["hand-written loop"] < counts["latent-EBM code"]
    assert all(name in table() for name in CODES)
