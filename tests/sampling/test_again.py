"""Repeated calls of `mmebm.langevin`, which share what the first worked out: they give what a first call would give."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import mmebm
from mmebm.kernels import native
from mmebm.sampling import again

pytestmark = pytest.mark.skipif(not native.available(), reason="the native CPU module cannot be loaded")

DIM = 5
SETTINGS: dict[str, Any] = {"steps": 6, "step_size": 0.3, "reference": "laplace"}


def energy(activation: Callable[[], nn.Module] = nn.SiLU) -> nn.Sequential:
    layers = nn.Linear(DIM, 7), activation(), nn.Linear(7, 7), activation(), nn.Linear(7, 1)
    return nn.Sequential(*layers)


def starts(rows: int = 12) -> Tensor:
    return torch.randn(rows, DIM)


def draw(e: Any, z: Tensor, seed: int | None = 3, **settings: Any) -> Tensor:
    end = mmebm.langevin(e, z, seed=seed, **SETTINGS | settings)
    assert isinstance(end, Tensor)
    return end


@pytest.fixture
def no_other_way(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, makes every call without a plan fail."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a call without a plan")

    return lambda: monkeypatch.setattr(sys.modules["mmebm.sampling.langevin"], "Target", refuse)


# what a plan gives ---------------------------------------------------------------------------------------------------


def test_a_plan_gives_what_a_first_call_gives(no_other_way: Callable[[], None]) -> None:
    e, z = energy(), starts()
    calls: list[dict[str, Any]] = [
        {},
        {"seed": -7, "offset": 50},
        {"chain_offset": 9, "check": "off"},
        {"seed": 2**64 - 1, "offset": -1},
    ]
    expected = [draw(copy.deepcopy(e), z, **call) for call in calls]
    more = draw(copy.deepcopy(e), z.repeat(5, 1))
    draw(e, z)
    no_other_way()
    for call, end in zip(calls, expected, strict=True):
        assert torch.equal(draw(e, z, **call), end)
    assert torch.equal(draw(e, z.repeat(5, 1)), more)
    assert not draw(e, z.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 7}, {"step_size": 0.2}, {"reference": "normal"}, {"reference": None}, {"reference_scale": 2.0},
        {"bound": 1.5}, {"grad_clip": 0.001}, {"clamp": (-0.5, None)}, {"negate": True},
        {"convention": mmebm.physics(0.1), "step_size": None},
    ],
    ids=str,
)  # fmt: skip
def test_another_setting_is_another_plan(other: dict[str, Any]) -> None:
    e, z = energy(), starts()
    expected = draw(copy.deepcopy(e), z, **other)
    first = draw(e, z)
    for _ in range(2):
        assert torch.equal(draw(e, z, **other), expected)
        assert torch.equal(draw(e, z), first)
    assert not torch.equal(first, expected)


def test_seeds_are_drawn_as_in_a_first_call(no_other_way: Callable[[], None]) -> None:
    e, z = energy(), starts()
    torch.manual_seed(5)
    first, after = draw(e, z, None), torch.rand(1)
    no_other_way()
    torch.manual_seed(5)
    assert torch.equal(draw(e, z, None), first) and torch.equal(torch.rand(1), after)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(draw(e, z, None, generator=generator), first)
    with pytest.raises(ValueError, match="seed, generator: expected at most one"):
        draw(e, z, generator=generator)


def test_lost_chains_are_named(no_other_way: Callable[[], None]) -> None:
    e, z = energy(), starts()
    z[4, 1] = float("nan")
    draw(e, starts())
    no_other_way()
    with pytest.raises(mmebm.NonFiniteChains, match="1 of 12 chains are not finite after 6 steps: 4 "):
        draw(e, z)
    assert draw(e, z, check="off")[4].isnan().any()


# what ends a plan ----------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x


def _replaced(e: Any) -> None:
    e[2].weight = nn.Parameter(torch.randn(7, 7))


def _other_memory(e: Any) -> None:
    e[2].weight.data = torch.randn(7, 7)


def _transposed(e: Any) -> None:
    e[2].weight.data = e[2].weight.data.t()


def _in_place(e: Any) -> None:
    with torch.no_grad():
        e[2].weight.mul_(2.0)


def _no_bias(e: Any) -> None:
    e[2].bias = None


def _own_forward(e: Any) -> None:
    e[2].forward = lambda x: 3.0 * x


def _swapped(e: Any) -> None:
    e[1], e[3] = nn.Tanh(), nn.Tanh()


def _deeper(e: Any) -> None:
    e.insert(4, nn.Linear(7, 7))
    e.insert(5, nn.SiLU())


def _loaded(e: Any) -> None:
    e.load_state_dict({name: 0.5 * value for name, value in e.state_dict().items()}, assign=True)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": _in_place,
    "another parameter": _replaced,
    "other memory": _other_memory,
    "transposed": _transposed,
    "no bias": _no_bias,
    "hook": lambda e: e[2].register_forward_hook(lambda module, args, out: 2.0 * out),
    "hook before": lambda e: e[2].register_forward_pre_hook(lambda module, args: (2.0 * args[0],)),
    "hook on the whole": lambda e: e.register_forward_hook(lambda module, args, out: 2.0 * out),
    "forward of its own": _own_forward,
    "parametrization": lambda e: parametrize.register_parametrization(e[2], "weight", Twice()),
    "parametrized bias": lambda e: parametrize.register_parametrization(e[2], "bias", Twice()),
    "weight norm by hooks": lambda e: nn.utils.weight_norm(e[2]).weight_g.data.mul_(2.0),
    "another activation": _swapped,
    "another layer": _deeper,
    "loaded": _loaded,
}


@pytest.mark.filterwarnings("ignore:energy. .* has hooks or a forward of its own")
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_energy_is_seen(change: Callable[[Any], Any]) -> None:
    e, z = energy(), starts()
    twin, before = copy.deepcopy(e), draw(e, z)
    assert torch.equal(draw(e, z), before)
    for changed in (e, twin):
        torch.manual_seed(1)
        change(changed)
    expected = draw(twin, z)
    assert not torch.equal(expected, before)
    for _ in range(2):
        assert torch.equal(draw(e, z), expected)


def test_a_changed_slope_is_seen() -> None:
    e, z = energy(lambda: nn.LeakyReLU(0.1)), starts()
    draw(e, z)
    for module in (e[1], e[3]):
        module.negative_slope = 0.6
    assert torch.equal(draw(e, z), draw(copy.deepcopy(e), z))
    e[3].negative_slope = 0.1
    with pytest.warns(UserWarning, match="mixes activations"):
        mixed = draw(e, z)
    other = copy.deepcopy(e)
    torch.testing.assert_close(mixed, draw(lambda z: other(z), z))


def test_a_weight_of_another_dtype_is_refused() -> None:
    e, z = energy(), starts()
    draw(e, z)
    e.double()
    with pytest.raises(TypeError, match=r"weights\[0\]: expected torch.float32"):
        draw(e, z)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"steps": 6.0}, "steps: expected an integer"),
        ({"steps": True, "step_size": 0.3}, "steps: expected an integer"),
        ({"check": "maybe"}, "check: expected"),
        ({"backend": "gpu"}, "backend: expected"),
        ({"record_every": 2}, "record_every: expected"),
    ],
    ids=str,
)
def test_errors_are_those_of_a_first_call(wrong: dict[str, Any], error: str) -> None:
    e, z = energy(), starts()
    draw(e, z)
    draw(e, z, steps=1)
    with pytest.raises(ValueError, match=error):
        draw(e, z, **wrong)


def test_the_environment_is_asked_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    e, z = energy(), starts()
    draw(e, z)
    monkeypatch.setenv("MMEBM_BACKEND", "gpu")
    with pytest.raises(ValueError, match="MMEBM_BACKEND: expected"):
        draw(e, z)


# who may not have one ------------------------------------------------------------------------------------------------


def test_modes_and_transforms_go_the_long_way() -> None:
    e, z = energy(), starts()
    end = draw(e, z)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert torch.equal(draw(e, z), end)
    assert "mmebm::langevin" in {event.key for event in profile.key_averages()}
    with pytest.raises(RuntimeError, match="a chain's end is a sample"):
        torch.func.vmap(lambda z: draw(e, z.unsqueeze(0)))(z)
    assert torch.equal(torch.compile(lambda z: draw(e, z), fullgraph=True, backend="eager")(z), end)


@pytest.mark.parametrize("make", [energy, lambda: mmebm.EnergyMLP(DIM, (7,))], ids=["sequential", "mlp"])
def test_views_of_all_kinds(make: Callable[[], nn.Module]) -> None:
    e, z = make(), starts()
    for _ in range(2):
        end = draw(e, z)
        assert torch.equal(draw(e, z.t().contiguous().t()), end)
        assert torch.equal(draw(e, torch._neg_view(-z)), end)
        assert torch.equal(draw(e, z.view(3, 4, DIM)), end.view(3, 4, DIM))
        assert draw(e, z[:0]).shape == (0, DIM)
    assert torch.equal(draw(e.double(), z.double()), draw(e, z.double(), backend="reference"))


def test_a_plan_keeps_no_energy_alive_and_no_energy_too_many() -> None:
    e, z = energy(), starts()
    for steps in range(40):
        draw(e, z, steps=steps)
    number, alive = id(e), weakref.ref(e)
    assert 0 < len(again._plans[number][1]) <= 16
    parameter = weakref.ref(e[0].weight)
    del e
    gc.collect()
    assert alive() is None and parameter() is None and number not in again._plans
