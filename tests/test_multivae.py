"""The sampler for MultiVae's models, on a stand-in with their interface and on MultiVae where it is installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import mmebm
from mmebm.multivae import EnergyPriorSampler
from mmebm.training.config import EnergyTrainConfig, PriorConfig

SETTINGS: dict[str, Any] = {
    "updates": 3,
    "prior": PriorConfig(hidden=[8], steps=4, reference_scale="matched", spectral_norm=1.0),
    "train": EnergyTrainConfig(chains=16, steps=3, step_size=0.1),
}


class Rows(Dataset):
    """MultiVae's datasets give {data: {modality: row}}."""

    def __init__(self, n: int = 250) -> None:
        self.a, self.b = torch.randn(n, 4), torch.randn(n, 6)

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"data": {"a": self.a[i], "b": self.b[i]}}


class Encoded:
    def __init__(self, z: Tensor, modalities_z: dict[str, Tensor]) -> None:
        self.z, self.modalities_z = z, modalities_z


class Model(nn.Module):
    def __init__(self, several: bool) -> None:
        super().__init__()
        self.multiple_latent_spaces = several
        self.seen: list[Tensor] = []

    def encode(self, batch: dict[str, Any]) -> Encoded:
        data = batch["data"]
        assert not self.training
        self.seen.append(data["a"])
        return Encoded(2.0 * data["a"][:, :3], {"a": data["a"][:, :2], "b": 0.5 * data["b"][:, :2]})


@pytest.mark.parametrize("several", [False, True])
def test_it_fits_codes_and_samples_like_theirs(several: bool) -> None:
    data, model = Rows(), Model(several)
    sampler = EnergyPriorSampler(model, seed=3, **SETTINGS)
    assert not sampler.is_fitted
    with pytest.raises(ArithmeticError, match=r"fit\(train_data\)"):
        sampler.sample(5)
    assert sampler.fit(data) is sampler and sampler.is_fitted
    assert torch.equal(torch.cat(model.seen), data.a), "every row once, in order"
    expected = mmebm.fit_energy_prior(2.0 * data.a[:, :3], seed=3, **SETTINGS)
    for mine, theirs in zip(sampler.priors[""].parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    out = sampler.sample(n_samples=70, batch_size=32)
    assert out.z.shape == (70, 3) and out.one_latent_space == (not several)
    if several:
        assert {m: z.shape for m, z in out.modalities_z.items()} == {"a": (70, 2), "b": (70, 2)}
    again = sampler.sample(70)
    assert not (again.z == out.z).all(1).any(), "no two calls share noise"
    assert sampler.sample(0).z.shape == (0, 3)


def test_a_seed_is_a_run() -> None:
    a, b = (EnergyPriorSampler(Model(False), seed=3, **SETTINGS).fit(Rows(60)) for _ in range(2))
    assert not torch.equal(a.sample(5).z, b.sample(5).z), "other data"
    torch.manual_seed(1)
    a = EnergyPriorSampler(Model(False), seed=3, **SETTINGS).fit(Rows(60))
    torch.manual_seed(1)
    b = EnergyPriorSampler(Model(False), seed=3, **SETTINGS).fit(Rows(60))
    assert torch.equal(a.sample(5).z, b.sample(5).z)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^train_data: expected at least one row"):
        EnergyPriorSampler(Model(False), **SETTINGS).fit(Rows(0))


def test_multivae_itself_decodes_what_it_draws() -> None:
    from bench.contenders import peers

    if peers.absent("multivae.models")():
        pytest.skip("the peers of bench are not installed")
    models, data = peers.load("multivae.models"), peers.load("multivae.data.datasets.base")
    config = models.MVTCAEConfig(n_modalities=2, latent_dim=3, input_dims={"a": (4,), "b": (6,)})
    model = models.MVTCAE(config)
    rows = Rows(120)
    train = data.MultimodalBaseDataset({"a": rows.a, "b": rows.b})
    sampler = EnergyPriorSampler(model, seed=3, **SETTINGS).fit(train)
    out = sampler.sample(20)
    assert type(out).__name__ == "ModelOutput"
    decoded = model.decode(out)
    assert decoded["a"].shape == (20, 4) and decoded["b"].shape == (20, 6)
