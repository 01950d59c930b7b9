"""Importance-sampled log-likelihoods against linear normal models, whose likelihood is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmebm
from mmebm.data import MultimodalDataset
from mmebm.evaluation import joint_log_likelihood
from mmebm.likelihoods import Normal
from mmebm.models import MMVAE, MMVAEPlus, MultimodalVAE

D, W, SIZES, S = 2, 1, {"a": 3, "b": 4}, 0.6
SHIFT = torch.tensor([0.5, -0.3])


class Broad(nn.Module):
    """A proposal that covers the prior, whatever x says."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(len(x), self.dim), x.new_full((len(x), self.dim), 1.0)  # softplus(1) = 1.31


def linear_model(plus: bool, prior: nn.Module) -> tuple[MultimodalVAE, Tensor]:
    """The model, and the loadings [7, latents] of x on (z, private latents)."""
    decoders, loadings = {}, torch.zeros(7, D + 2 * W)
    first = 0
    for i, (name, size) in enumerate(SIZES.items()):
        layer = nn.Linear((W if plus else 0) + D, size, bias=False)
        decoders[name] = layer
        rows = slice(first, first + size)
        loadings[rows, :D] = layer.weight.detach()[:, -D:]
        if plus:
            loadings[rows, D + i : D + i + 1] = layer.weight.detach()[:, :W]
        first += size
    options: dict[str, Any] = {
        "posterior": "normal",
        "likelihoods": {n: Normal(1, S) for n in SIZES},
        "decoders": decoders,
        "encoders": {n: Broad(D) for n in SIZES},
        "rescale": dict.fromkeys(SIZES, 3.0),  # training's business
        "beta": 2.5,
    }
    shapes = {n: (size,) for n, size in SIZES.items()}
    if plus:
        return MMVAEPlus(
            shapes, prior, private_dim=W, private_encoders={n: Broad(W) for n in SIZES}, **options
        ), loadings
    return MMVAE(shapes, prior, **options), loadings


def exact(x: Tensor, loadings: Tensor, mean: Tensor) -> Tensor:
    covariance = loadings @ loadings.T + S * S * torch.eye(7)
    law = torch.distributions.MultivariateNormal(loadings[:, :D] @ mean, covariance)
    return law.log_prob(x)


@pytest.mark.parametrize("plus", [False, True], ids=["mmvae", "mmvaeplus"])
@pytest.mark.parametrize("energy", [False, True], ids=["normal", "energy"])
def test_linear_normal_models(plus: bool, energy: bool) -> None:
    """With an energy v z over N(0, I) the prior is N(-v, I), and log Z is |v|^2 / 2."""
    mean, log_z = torch.zeros(D), None
    prior: nn.Module = mmebm.StandardNormal(D)
    if energy:
        prior = mmebm.EnergyPrior(mmebm.EnergyMLP(D, ()), "normal")
        with torch.no_grad():
            prior.energy.layers[0].weight.copy_(-SHIFT)
            prior.energy.layers[0].bias.zero_()
        mean = SHIFT
        log_z = prior.log_partition(chains=2000, steps=60, seed=1)
        assert abs(log_z.value - float(SHIFT.square().sum()) / 2.0) < 5.0 * log_z.standard_error
    model, loadings = linear_model(plus, prior)
    latents = torch.randn(40, D + 2 * W)
    latents[:, :D] += mean
    x = latents @ loadings.T + S * torch.randn(40, 7)
    data = MultimodalDataset({"a": x[:, :3].contiguous(), "b": x[:, 3:].contiguous()}, None, "linear", "test")
    truth = exact(x, loadings, mean)
    found = joint_log_likelihood(model, data, samples=4000, log_z=log_z, seed=2)
    # 8000 weights a row: their error is small beside the spread over rows, and averages over 40 rows.
    assert abs(found.mean - float(truth.mean())) < 0.1
    spread = float(truth.std()) / math.sqrt(40)
    assert found.standard_error == pytest.approx(math.hypot(spread, log_z.standard_error if log_z else 0.0), rel=0.1)
    assert (found.rows, found.samples) == (40, 4000) and (found.log_z is None) == (not energy)
    few = joint_log_likelihood(model, data, samples=2, log_z=log_z, seed=2)
    assert few.mean < found.mean, "with few draws it errs downwards"


def test_batches_change_nothing_but_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = linear_model(True, mmebm.StandardNormal(D))
    data = MultimodalDataset({"a": torch.randn(9, 3), "b": torch.randn(9, 4)}, None, "linear", "test")
    whole = joint_log_likelihood(model, data, samples=3000)
    monkeypatch.setattr("mmebm.evaluation.likelihood._ROWS", 4 * 3000 * 2)
    parts = joint_log_likelihood(model, data, samples=3000)
    assert parts.rows == 9 and parts.mean != whole.mean and abs(parts.mean - whole.mean) < 0.5
    assert joint_log_likelihood(model, data, samples=3000) == parts


def test_log_z_is_asked_for_where_it_belongs() -> None:
    data = MultimodalDataset({"a": torch.randn(4, 3), "b": torch.randn(4, 4)}, None, "linear", "test")
    plain, _ = linear_model(False, mmebm.StandardNormal(D))
    tilted, _ = linear_model(False, mmebm.EnergyPrior(mmebm.EnergyMLP(D, (4,)), "normal"))
    with pytest.raises(ValueError, match=r"^log_z: expected None, the prior has none, got 0.3"):
        joint_log_likelihood(plain, data, log_z=0.3)
    with pytest.raises(ValueError, match=r"^log_z: expected an estimate, as model.prior.log_partition"):
        joint_log_likelihood(tilted, data)
    with pytest.raises(ValueError, match=r"^samples: expected an integer >= 1, got 0"):
        joint_log_likelihood(plain, data, samples=0)
    shifted = [joint_log_likelihood(tilted, data, samples=8, log_z=z).mean for z in (0.0, 1.5)]
    assert shifted[0] - shifted[1] == pytest.approx(1.5)
    assert "log Z = 1.500" in repr(joint_log_likelihood(tilted, data, samples=8, log_z=1.5))
