"""Loops captured as CUDA graphs: what can be captured and what a graph depends on here, replays where a GPU is."""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmebm
from mmebm.kernels import dispatch
from mmebm.sampling import graphs
from mmebm.sampling.capturing import capturing
from mmebm.sampling.target import Target

DIM = 5


class Mixed(nn.Module):
    """No MLP, with a buffer and a method."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(DIM, 16), nn.Mish(), nn.Linear(16, 1))
        self.register_buffer("gain", torch.tensor(2.0))

    def forward(self, z: Tensor) -> Tensor:
        return self.gain * self.body(z).squeeze(1)

    def shifted(self, z: Tensor) -> Tensor:
        return self(z) + 0.5 * z.square().sum(1)


def target(energy: Any, z: Tensor | None = None, **change: Any) -> Target:
    settings: dict[str, Any] = {
        "reference": "laplace", "reference_scale": 1.0, "bound": None, "negate": False, "event_dims": 1,
        "precision": None, "backend": "auto",
    }  # fmt: skip
    return Target(energy, torch.randn(8, DIM) if z is None else z, **settings | change)


# anywhere ------------------------------------------------------------------------------------------------------------


def test_on_the_cpu_the_loop_runs_as_it_is() -> None:
    assert graphs.obstacle(target(Mixed())) == "the chains are on cpu"
    graphs._graphs.clear()
    mmebm.langevin(Mixed(), torch.randn(8, DIM), steps=3, step_size=0.1)
    assert not graphs._graphs


def test_what_can_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Mixed()
    assert graphs._module(target(net)) is net and graphs._module(target(net.shifted)) is net
    assert graphs._module(target(lambda z: net(z))) is None
    monkeypatch.setenv("MMEBM_CUDA_GRAPHS", "0")
    assert graphs.obstacle(target(net)) == "MMEBM_CUDA_GRAPHS is 0"


def test_a_key_changes_with_what_a_graph_holds() -> None:
    net = Mixed()
    first = graphs.key(target(net), 5, 0, False)
    assert graphs.key(target(net), 5, 0, False) == first
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    assert graphs.key(target(net), 5, 0, False) == first, "updates in place are read by a replay"
    others = [
        graphs.key(target(net), 6, 0, False),
        graphs.key(target(net), 5, 1, False),
        graphs.key(target(net), 5, 0, True),
        graphs.key(target(net.shifted), 5, 0, False),
        graphs.key(target(Mixed()), 5, 0, False),
        graphs.key(target(net, torch.randn(9, DIM)), 5, 0, False),
        *(
            graphs.key(target(net, **change), 5, 0, False)
            for change in (
                {"bound": 1.0}, {"negate": True}, {"reference": "normal"}, {"grad_clip": 1.0}, {"clamp": (0.0, 1.0)},
                {"backend": "reference"},
            )
        ),
    ]  # fmt: skip
    net.eval()
    others.append(graphs.key(target(net), 5, 0, False))
    net.train().load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    others.append(graphs.key(target(net), 5, 0, False))
    assert len({first, *others}) == len(others) + 1


def network(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, width), nn.SiLU(), nn.Linear(width, 1))


def test_a_networks_weights_are_given_and_its_shapes_are_the_key() -> None:
    first = graphs.key(target(network()), 5, 0, False)
    assert graphs.key(target(network()), 5, 0, False) == first
    others = [
        graphs.key(target(network(17)), 5, 0, False),
        graphs.key(target(network(), precision="bf16"), 5, 0, False),
        graphs.key(target(network(), bound=1.0), 5, 0, False),
        graphs.key(target(Mixed()), 5, 0, False),
    ]
    assert len({first, *others}) == 5
    t = target(network())
    given = graphs._given(t, torch.zeros(5, 3), torch.zeros(3))
    assert [g.data_ptr() for g in given[4:]] == [p.data_ptr() for p in (*t.network.weights, *t.network.biases)]


def test_which_chains_are_one_launch() -> None:
    net, device = target(network()).mlp(), torch.device("cpu")
    assert net is not None and dispatch.in_one_launch("cpu", net, device)
    assert not dispatch.in_one_launch("reference", net, device)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="backend triton cannot run here")
def test_which_of_tritons_chains_are_one_launch() -> None:
    for width, one in ((64, True), (300, False)):
        net = target(network(width), precision="bf16").mlp()
        assert net is not None and dispatch.in_one_launch("triton", net, torch.device("cpu")) == one


def test_nothing_is_collected_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("device", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    assert gc.isenabled()
    with capturing(None, torch.device("cuda")):  # type: ignore[arg-type]
        assert not gc.isenabled()
    assert gc.isenabled()


# with a GPU ----------------------------------------------------------------------------------------------------------

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SETTINGS: dict[str, Any] = {"steps": 7, "step_size": 0.2, "reference": "laplace", "check": "off"}


@pytest.fixture
def net() -> Iterator[Mixed]:
    graphs._graphs.clear()
    yield Mixed().cuda()
    graphs._graphs.clear()


def eager(net: nn.Module, z: Tensor, **options: Any) -> Any:
    return mmebm.langevin(lambda z: net(z), z, **SETTINGS | options)


class TestOnGpu:
    pytestmark = needs_gpu

    def test_a_replay_is_the_loop(self, net: Mixed) -> None:
        for seed in (1, 2):
            z = torch.randn(64, DIM, device="cuda")
            assert torch.equal(mmebm.langevin(net, z, seed=seed, **SETTINGS), eager(net, z, seed=seed))
        assert len(graphs._graphs) == 1 and next(iter(graphs._graphs.values())) is not None

    def test_info_is_captured_too(self, net: Mixed) -> None:
        z = torch.randn(64, DIM, device="cuda")
        options: dict[str, Any] = {"seed": 1, "return_info": True, "record_every": 2}
        (a, one), (b, two) = mmebm.langevin(net, z, **SETTINGS, **options), eager(net, z, **options)
        assert torch.equal(a, b)
        for name in ("states", "energies", "mean_energy", "grad_norm", "displacement"):
            assert torch.equal(getattr(one, name), getattr(two, name))

    def test_seeds_offsets_and_steps_are_given_anew(self, net: Mixed) -> None:
        z = torch.randn(64, DIM, device="cuda")
        runs = [mmebm.langevin(net, z, seed=s, offset=o, **SETTINGS) for s, o in ((1, 0), (1, 7), (2, 0), (1, 0))]
        assert torch.equal(runs[0], runs[3]) and not torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
        small = mmebm.langevin(net, z, seed=1, **SETTINGS | {"step_size": 0.01})
        assert torch.equal(small, eager(net, z, seed=1, step_size=0.01)) and len(graphs._graphs) == 1

    def test_results_are_safe_from_the_next_replay(self, net: Mixed) -> None:
        z = torch.randn(64, DIM, device="cuda")
        first = mmebm.langevin(net, z, seed=1, **SETTINGS)
        kept = first.clone()
        mmebm.langevin(net, z, seed=2, **SETTINGS)
        assert torch.equal(first, kept)

    def test_updates_in_place_are_seen_and_new_addresses_captured(self, net: Mixed) -> None:
        z = torch.randn(64, DIM, device="cuda")
        mmebm.langevin(net, z, seed=1, **SETTINGS)
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1.5)
        assert torch.equal(mmebm.langevin(net, z, seed=1, **SETTINGS), eager(net, z, seed=1))
        assert len(graphs._graphs) == 1
        net.load_state_dict({n: 0.5 * t for n, t in net.state_dict().items()}, assign=True)
        assert torch.equal(mmebm.langevin(net, z, seed=1, **SETTINGS), eager(net, z, seed=1))
        assert len(graphs._graphs) == 2

    def test_torchs_generator_is_left_alone_by_replays(self, net: Mixed) -> None:
        z = torch.randn(64, DIM, device="cuda")
        mmebm.langevin(net, z, seed=1, **SETTINGS)
        torch.manual_seed(3)
        expected = torch.randn(5, device="cuda")
        torch.manual_seed(3)
        mmebm.langevin(net, z, seed=1, **SETTINGS)
        assert torch.equal(torch.randn(5, device="cuda"), expected)

    def test_what_cannot_be_captured_runs_and_says_so_once(self, net: Mixed) -> None:
        class Syncing(Mixed):
            def forward(self, z: Tensor) -> Tensor:
                return super().forward(z) * float(z.sum() == z.sum())

        stubborn, z = Syncing().cuda(), torch.randn(64, DIM, device="cuda")
        stream = torch.cuda.current_stream()
        with pytest.warns(UserWarning, match="cannot be captured: .*stream is capturing"):
            first = mmebm.langevin(stubborn, z, seed=1, **SETTINGS)
        assert torch.equal(first, mmebm.langevin(stubborn, z, seed=1, **SETTINGS))
        # And nothing is left of it.
        assert torch.cuda.current_stream() == stream
        torch.manual_seed(3)
        drawn = torch.randn(5, device="cuda")
        torch.manual_seed(3)
        assert torch.equal(torch.randn(5, device="cuda"), drawn)
        assert torch.equal(mmebm.langevin(net, z, seed=1, **SETTINGS), eager(net, z, seed=1))
        assert [graph is None for graph in graphs._graphs.values()] == [True, False]

    def test_graphs_that_nobody_holds_end_no_capture(self, net: Mixed) -> None:
        """A captured graph in a cycle is freed by the collector, whenever that runs."""
        z = torch.randn(64, DIM, device="cuda")
        mmebm.langevin(net, z, seed=1, **SETTINGS)
        cycle: list[Any] = [graphs._graphs.popitem()[1]]
        cycle.append(cycle)
        del cycle
        before = gc.get_threshold()
        gc.set_threshold(1, 1, 1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                mmebm.langevin(net, z, seed=1, **SETTINGS)
        finally:
            gc.set_threshold(*before)

    def test_a_network_that_is_many_launches(self, net: Mixed) -> None:
        """The reference's loop over steps; weights change place from call to call, as a norm's do."""
        wide, z = network(300).cuda(), torch.randn(64, DIM, device="cuda")
        for scale in (1.0, 2.0):
            with torch.no_grad():
                for p in wide.parameters():
                    p.data = scale * p
            replayed = mmebm.langevin(wide, z, seed=1, backend="reference", **SETTINGS)
            torch.testing.assert_close(replayed, eager(wide, z, seed=1, backend="reference"), rtol=1e-4, atol=1e-4)
        assert len(graphs._graphs) == 1

    def test_only_so_many_are_kept(self, net: Mixed) -> None:
        for rows in range(1, graphs.KEPT + 4):
            mmebm.langevin(net, torch.randn(rows, DIM, device="cuda"), seed=1, **SETTINGS)
        assert len(graphs._graphs) == graphs.KEPT
