"""Operator calls that are saved and run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import mmebm
from mmebm.kernels import ops
from mmebm.kernels.ops import capture

SETTINGS: dict[str, Any] = {"steps": 4, "step_size": 0.2, "reference": "laplace", "seed": 3}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 1))


def test_a_saved_call_gives_the_same(tmp_path: Path) -> None:
    net, z = network(), torch.randn(6, 3)
    expected = mmebm.langevin(net, z, clamp=(-1.0, None), **SETTINGS)
    with capture.captured(tmp_path) as files:
        mmebm.langevin(net, z, clamp=(-1.0, None), **SETTINGS)
    assert files == [tmp_path / "langevin-0.safetensors"]
    call = capture.load(files[0])
    assert torch.equal(call.run()[0], expected)
    assert torch.equal(call.to("cpu", "cpu").run()[0], expected)
    torch.testing.assert_close(call.to("cpu", "reference").run()[0], expected)
    assert call.describe().startswith("langevin(z=[6, 3], weights=[[5, 3], [1, 5]], biases=[[5], [1]], ")
    assert "lower=-1.0, upper=None" in call.describe()


def test_every_operator_can_be_saved(tmp_path: Path) -> None:
    """Lists, masks, numbers, None: whatever schemas have."""
    z, mu = torch.randn(6, 3), torch.randn(2, 6, 3)
    present = torch.tensor([0, 1, 2, 3, 3, 1])
    rng = torch.tensor([1, 2, 3])
    with capture.captured(tmp_path) as files:
        ops.draw(rng, 2, 3, 4, law="laplace", purpose=1)
        ops.mixture_log_prob(z, mu, mu.exp(), present, law="normal")
        ops.product_of_experts(mu, mu, present, prior="always")
        ops.subset_experts(mu, mu, present, prior="never", mode="kl")
        ops.energy(z.requires_grad_(), [torch.randn(1, 3)], [torch.randn(1)]).sum().backward()
    assert sorted(path.stem for path in files) == sorted(
        f"{name}-0"
        for name in ("draw", "mixture_log_prob", "product_of_experts", "subset_experts", "energy", "energy_backward")
    )
    for path in files:
        capture.load(path).run()


def test_only_what_is_asked_for_and_not_too_often(tmp_path: Path) -> None:
    net, z = network(), torch.randn(6, 3)
    with capture.captured(tmp_path, ["langevin"], most=2) as files:
        for _ in range(3):
            mmebm.langevin(net, z, **SETTINGS)
            mmebm.mala(net, z, **SETTINGS)
    assert [path.stem for path in files] == ["langevin-0", "langevin-1"]
    mmebm.langevin(net, z, **SETTINGS)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_call_is_refused(tmp_path: Path) -> None:
    save_file({"z": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="call: expected a saved call of an operator"):
        capture.load(tmp_path / "weights.safetensors")
    save_file({}, tmp_path / "other.safetensors", metadata={"operator": "nothing", "arguments": "[]"})
    with pytest.raises(ValueError, match="call: expected a saved call of an operator"):
        capture.load(tmp_path / "other.safetensors")
