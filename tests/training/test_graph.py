"""The energy's update as one CUDA graph: that it can be captured is shown on any machine, that it is right on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmebm import data
from mmebm.energy import EnergyMLP
from mmebm.priors import EnergyPrior
from mmebm.sampling.streams import DeviceStream, Stream
from mmebm.training import load_config, train
from mmebm.training.config import ConfigError, EnergyTrainConfig
from mmebm.training.energy import EnergyUpdate

DIM, ROWS = 4, 32
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SETTINGS: dict[str, dict[str, Any]] = {
    "persistent": {},
    "fresh": {"persistent": False},
    "all options": {"regularisation": 0.1, "max_grad_norm": 1.0, "decay": "none"},
}
each_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def update(
    settings: dict[str, Any], device: str = "cpu", graph: bool = False, learn_scale: bool = True
) -> EnergyUpdate:
    torch.manual_seed(0)
    prior = EnergyPrior(EnergyMLP(DIM, (16, 16), spectral_norm=2.0), learn_scale=learn_scale).to(device)
    config = EnergyTrainConfig(chains=24, steps=5, **settings)
    return EnergyUpdate(prior, config, Stream(7, device=device), 10, graph)


def positives(i: int, n: int = ROWS) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(i))


def state(u: EnergyUpdate) -> list[Tensor]:
    chains = [] if u.chains.states is None else [u.chains.states]
    return [t.detach().cpu() for t in (*u.prior.parameters(), *u.prior.buffers(), *chains)]


# on any machine ------------------------------------------------------------------------------------------------------


def test_a_device_stream_takes_what_a_stream_takes() -> None:
    host = Stream(5, 17, first_chain=3)
    device = DeviceStream(Stream(5, 17, first_chain=3))
    for steps in (1, 20, 4):
        assert torch.equal(host.take(steps), device.take(steps))
    assert host.offset == device.offset == int(device.state[1]) == 42


@each_setting
def test_counters_on_the_device_change_nothing(settings: dict[str, Any]) -> None:
    plain, other = update(settings), update(settings)
    other.chains.stream = DeviceStream(other.stream)
    for i in range(4):
        expected, got = plain.step(positives(i)), other.step(positives(i))
        assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert all(torch.equal(a, b) for a, b in zip(state(plain), state(other), strict=True))
    assert plain.stream.offset == other.chains.stream.offset


class NoHost(TorchDispatchMode):
    """Refuses what would wait for a device: reading values, shapes that depend on them, copies to the host."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_to_copy", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if any(name.startswith(wait) for wait in self.WAITS):
            raise AssertionError(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))


@each_setting
def test_nothing_in_it_waits_for_the_device(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once warmed up. On a GPU validation of scales is left out within a capture; here it is as if in one."""
    u = update(settings)
    u.chains.stream = DeviceStream(u.stream)
    weights = torch.full((ROWS,), 1.0 / ROWS)
    for i in range(2):
        u.update(positives(i), weights)
    # Adam's step number is read by the host unless `capturable`, which wants a GPU.
    monkeypatch.setattr(u.optimiser, "step", lambda: None)
    monkeypatch.setattr("mmebm.sampling.target._asks_nothing", lambda t: True)
    with NoHost():
        u.update(positives(2), weights)


def test_the_guard_notices() -> None:
    with pytest.raises(AssertionError, match="waits for the device"), NoHost():
        float(torch.ones(1))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.cuda_graph=true"], "train.cuda_graph: expected device cuda, got cpu"),
        (["device=gpu"], "device: expected cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_impossible_configurations(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("digits", overrides)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_device_is_said(tmp_path: Any) -> None:
    config = load_config("digits", ["device=cuda"])
    with pytest.raises(ValueError, match="device: expected one that is there, got 'cuda'"):
        train(config, data.load("digits", "train"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# on a GPU ------------------------------------------------------------------------------------------------------------


@gpu
@pytest.mark.gpu
@each_setting
def test_replays_are_the_updates(settings: dict[str, Any]) -> None:
    """Up to what the order of sums in a backward pass may change."""
    plain, graphed = update(settings, "cuda"), update(settings, "cuda", graph=True)
    for i in range(8):
        z = positives(i).cuda()
        expected, got = plain.step(z), graphed.step(z)
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)
    for a, b in zip(state(plain), state(graphed), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    assert plain.stream.offset == graphed.stream.offset
    assert graphed.graph is not None and len(graphed.graph.graphs) == 1


@gpu
@pytest.mark.gpu
def test_noise_moves_on_and_a_checkpoint_is_taken_up() -> None:
    u = update({}, "cuda", graph=True, learn_scale=False)
    u.config = u.config.model_copy(update={"learning_rate": 1e-30})
    z = positives(0).cuda()
    for _ in range(5):
        u.step(z)
    first = u.chains.states.clone()
    u.step(z)
    assert not torch.equal(u.chains.states, first)
    kept, offset = u.chains.states.clone(), u.stream.offset
    u.step(z)
    expected = u.chains.states.clone()
    u.chains.states, u.stream.offset = kept, offset
    assert u.graph is not None
    u.graph.forget()
    u.step(z)
    torch.testing.assert_close(u.chains.states, expected)
