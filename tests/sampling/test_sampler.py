"""`mmebm.Langevin`: the call's chains, its own noise, persistence, and what its state brings back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmebm
from mmebm.kernels import ops
from mmebm.sampling.streams import choose

DIM = 5


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, 9), nn.SiLU(), nn.Linear(9, 1))


def sampler(energy: Any = None, **options: Any) -> mmebm.Langevin:
    settings = {"steps": 6, "step_size": 0.3, "reference": "laplace", "reference_scale": 0.7, "seed": 11} | options
    return mmebm.Langevin(net() if energy is None else energy, DIM, **settings)


def start(offset: int, n: int, law: str = "laplace", scale: float = 0.7) -> Tensor:
    return scale * ops.draw(torch.tensor([11, offset, 0]), 1, n, DIM, law=law, purpose=1)[0]


def test_draws_are_the_calls_chains_with_noise_that_goes_on() -> None:
    energy = net()
    chains = sampler(energy)
    settings: dict[str, Any] = {
        "steps": 6,
        "step_size": 0.3,
        "reference": "laplace",
        "reference_scale": 0.7,
        "seed": 11,
    }
    for offset in (0, 7, 14):  # one step for the starts, six for the chain
        assert chains.offset == offset
        expected = mmebm.langevin(energy, start(offset, 20), **settings, offset=offset + 1)
        assert torch.equal(chains.sample(20), expected)
    assert chains.chains is None


def test_without_a_reference_chains_start_at_a_standard_normal() -> None:
    chains = sampler(reference=None)
    assert torch.equal(chains.sample(8, steps=0), start(0, 8, "normal", 1.0))


def test_a_start_of_ones_own() -> None:
    chains = sampler(start=lambda n: torch.full((n, DIM), 2.0))
    assert torch.equal(chains.sample(3, steps=0), torch.full((3, DIM), 2.0))
    with pytest.raises(ValueError, match=r"^start: expected a tensor \[3, 5\], got torch.Size\(\[3\]\)"):
        sampler(start=lambda n: torch.zeros(n)).sample(3)


def test_persistent_chains_go_on_and_a_share_restarts() -> None:
    energy = net()
    chains = sampler(energy, persistent=True, restart=0.3)
    first = chains.sample(40)
    assert torch.equal(chains.chains, first)
    # The second call: starts at offset 7, the choice at 8, the chain at 9.
    restarted = choose(torch.tensor([11, 8, 0]), 40, 1 << 31) < 0.3 * 2**31
    assert 0 < restarted.sum() < 40
    z = torch.where(restarted.unsqueeze(1), start(7, 40), first)
    expected = mmebm.langevin(
        energy, z, steps=6, step_size=0.3, reference="laplace", reference_scale=0.7, seed=11, offset=9
    )
    assert torch.equal(chains.sample(40), expected)
    with pytest.raises(ValueError, match=r"^n: expected 40, as many as persistent chains go on, got 41"):
        chains.sample(41)
    chains.reset()
    assert chains.chains is None and chains.sample(41).shape == (41, DIM)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_state_brings_everything_back(persistent: bool) -> None:
    energy = net()
    chains = sampler(energy, persistent=persistent)
    chains.sample(10)
    state = chains.state_dict()
    expected = [chains.sample(10) for _ in range(2)]
    other = sampler(energy, persistent=persistent, seed=99)
    other.load_state_dict(state)
    assert all(torch.equal(other.sample(10), z) for z in expected)
    if persistent:
        assert not torch.equal(state["chains"], chains.chains), "a state does not move with the chains"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "state: expected seed, offset and chains, got nothing"),
        ({"seed": 1, "offset": 2, "chains": torch.zeros(3, 4)}, r"chains: expected \[n, 5\], got \[3, 4\]"),
    ],
)
def test_a_wrong_state_changes_nothing(state: dict[str, Any], message: str) -> None:
    chains = sampler(persistent=True)
    chains.sample(4)
    before = chains.state_dict()
    with pytest.raises(ValueError, match=f"^{message}"):
        chains.load_state_dict(state)
    after = chains.state_dict()
    assert torch.equal(before.pop("chains"), after.pop("chains")) and before == after


def test_lost_chains_leave_the_others_where_they_were() -> None:
    wild = {"on": False}

    def energy(z: Tensor) -> Tensor:
        return z.square().sum(1) * (math.nan if wild["on"] else 1.0)

    chains = sampler(energy, persistent=True)
    kept = chains.sample(4).clone()
    wild["on"] = True
    with pytest.raises(mmebm.NonFiniteChains, match=r"^4 of 4 chains"):
        chains.sample(4)
    assert torch.equal(chains.chains, kept)


def test_info_and_images() -> None:
    chains = mmebm.Langevin(
        lambda x: x.square().sum((1, 2, 3)), (3, 2, 2), steps=4, convention=mmebm.physics(0.01), seed=1
    )
    z, info = chains.sample(6, return_info=True, record_every=2)
    assert z.shape == (6, 3, 2, 2) and info.trajectory.shape == (6, 2, 3, 2, 2)


def test_repr_tells_the_step() -> None:
    assert repr(sampler(persistent=True, restart=0.1, bound=3.0)) == (
        "Langevin(Sequential, [5], steps=6, short_run(a=0.045, b=0.3, T=1), reference='laplace', reference_scale=0.7, "
        "bound=3.0, persistent, restart=0.1)"
    )


def test_a_seed_comes_from_torch_or_a_generator() -> None:
    torch.manual_seed(5)
    seeds = [sampler(seed=None).seed for _ in range(2)]
    torch.manual_seed(5)
    assert sampler(seed=None).seed == seeds[0] != seeds[1]
    a, b = (sampler(seed=None, generator=torch.Generator().manual_seed(2)).seed for _ in range(2))
    assert a == b


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"steps": -1}, ValueError, "steps: "),
    ({"step_size": None}, ValueError, "step_size, convention, coefficients: expected exactly one"),
    ({"convention": mmebm.physics(0.1)}, ValueError, "step_size, convention, coefficients: expected exactly one"),
    ({"restart": 1.5}, ValueError, r"restart: expected a share in \[0, 1\], got 1.5"),
    ({"reference": "gauss"}, ValueError, "reference: expected one of"),
    ({"bound": -1.0}, ValueError, "bound: "),
    ({"clamp": (1.0, 0.0)}, ValueError, "clamp: expected lower < upper"),
    ({"grad_clip": 0.0}, ValueError, "grad_clip: "),
    ({"check": "never"}, ValueError, "check: expected one of"),
    ({"temperature": 1.0}, TypeError, "settings: expected reference, .*got temperature"),
    ({"generator": torch.Generator()}, ValueError, "seed, generator: expected at most one"),
    ({"backend": "tpu"}, ValueError, "backend: expected"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_settings_are_checked_when_they_are_given(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        sampler(**change)


def test_a_bad_shape_is_refused() -> None:
    for shape in (0, (), (3, 0)):
        with pytest.raises(ValueError, match=r"^shape: expected the sizes of a state"):
            mmebm.Langevin(net(), shape, steps=1, step_size=0.1)
    with pytest.raises(ValueError, match=r"^weights\[0\]: expected shape \[\*, 4\]"):
        mmebm.Langevin(net(), DIM - 1, steps=1, step_size=0.1)
