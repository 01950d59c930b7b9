"""The shims against the originals' updates written out, on the engine's own noise."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmebm.kernels import ops
from mmebm.sampling.shims import LangevinDynamics, sample_langevin_prior_z


def noise(seed: int, steps: int, rows: int, dim: int) -> Tensor:
    return ops.draw(torch.tensor([seed, 0, 0]), steps, rows, dim, law="normal", purpose=0)


def drawn_seed(generator: torch.Generator) -> int:
    return int(torch.randint(-(1 << 63), (1 << 63) - 1, (), generator=generator))


def double_well(x: Tensor) -> Tensor:
    return (x.square() - 1.0).square().sum(-1)


# torchebm ------------------------------------------------------------------------------------------------------------


class Scheduler:
    """As torchebm's: a value to read, a step, a reset."""

    def __init__(self, first: float, factor: float) -> None:
        self.first, self.factor = first, factor
        self.reset()

    def reset(self) -> None:
        self.value = self.first

    def step(self) -> float:
        self.value *= self.factor
        return self.value

    def get_value(self) -> float:
        return self.value


def torchebm_chain(
    energy: Any, x: Tensor, etas: list[float], scales: list[float], eps: Tensor, clamp: tuple[float, float] | None
) -> Tensor:
    """[steps, n, d]: x <- x - eta grad + scale sqrt(2 eta) eps, then the clamp."""
    states = []
    for eta, scale, e in zip(etas, scales, eps, strict=True):
        leaf = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(energy(leaf).sum(), leaf)
        x = x - eta * grad + scale * math.sqrt(2.0 * eta) * e
        if clamp is not None:
            x = x.clamp(*clamp)
        states.append(x)
    return torch.stack(states)


@pytest.mark.parametrize("clamp", [None, (-0.8, 0.9)])
@pytest.mark.parametrize("scheduled", [False, True])
def test_torchebms_sampler_step_for_step(scheduled: bool, clamp: tuple[float, float] | None) -> None:
    steps, n, dim = 12, 30, 3
    step: Any = Scheduler(0.02, 0.9) if scheduled else 0.02
    scale: Any = [1.0 + 0.1 * k for k in range(steps)] if scheduled else 0.7
    etas = [0.02 * 0.9**k for k in range(steps)] if scheduled else [0.02] * steps
    scales = scale if scheduled else [scale] * steps
    x = torch.randn(n, dim)
    sampler = LangevinDynamics(double_well, step_size=step, noise_scale=scale, clamp=clamp)
    for _ in range(2):  # schedulers start over at every call
        generator = torch.Generator().manual_seed(4)
        end = sampler.sample(x, n_steps=steps, generator=generator)
        eps = noise(drawn_seed(torch.Generator().manual_seed(4)), steps, n, dim)
        states = torchebm_chain(double_well, x, etas, scales, eps, clamp)
        torch.testing.assert_close(end, states[-1], rtol=1e-4, atol=1e-5)
    out, diagnostics = sampler.sample(
        x, n_steps=steps, thin=5, return_trajectory=True, return_diagnostics=True,
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    kept = states[4::5]
    assert out.shape == (n, 2, dim)
    torch.testing.assert_close(out, kept.transpose(0, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(diagnostics["mean"], kept.mean(1), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(diagnostics["var"], kept.var(1, unbiased=False), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(diagnostics["energy"], double_well(kept).mean(1), rtol=1e-3, atol=1e-5)


def test_torchebms_starts_and_conditions() -> None:
    sampler = LangevinDynamics(lambda x, y: (x - y).square().sum((1, 2)), step_size=0.1)
    generator = torch.Generator().manual_seed(1)
    end = sampler.sample(dim=(2, 3), n_samples=5, n_steps=0, y=torch.ones(1), generator=generator)
    assert torch.equal(end, torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1)))
    far = sampler.sample(dim=(2, 3), n_samples=4000, n_steps=60, model_kwargs={"y": 4.0}, generator=generator)
    # The energy (x - 4)^2 with eta = 0.1: mean 4 (1 - 0.8^60), variance 0.2 / (1 - 0.64).
    assert abs(float(far.mean()) - 4.0) < 5.0 * math.sqrt(0.2 / 0.36 / far.numel())
    single, diagnostics = sampler.sample(
        dim=(2, 3), n_steps=2, y=torch.ones(1), return_diagnostics=True, generator=generator
    )
    assert torch.equal(diagnostics["mean"][-1], single[0]) and not diagnostics["var"].any()


@pytest.mark.parametrize(
    ("make", "call", "message"),
    [
        ({"decay": 0.1}, {}, "decay: expected 0, as torchebm has no use for it, got 0.1"),
        ({"integrator": "heun"}, {}, "integrator: expected None or 'euler_maruyama', got 'heun'"),
        ({"step_size": 0.0}, {}, "step_size: expected a number > 0, got 0.0"),
        ({"noise_scale": -1.0}, {}, "noise_scale: expected a number > 0, got -1.0"),
        ({}, {"thin": 0}, "thin: expected an integer >= 1, got 0"),
        ({}, {"dim": None}, "x, dim: expected one of them, got neither"),
        ({"step_size": [0.1, 0.2]}, {}, "step_size, noise_scale: expected n_steps=100 values, got 2"),
        ({"clamp": (1.0, 0.0)}, {}, "clamp: expected lower < upper"),
    ],
)
def test_what_torchebms_sampler_refuses(make: dict[str, Any], call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        LangevinDynamics(double_well, **make).sample(**{"dim": 3} | call)


# latent-EBM code -----------------------------------------------------------------------------------------------------

NZ = 6


class NetE(nn.Module):
    """The original's energy network: an nn.Sequential behind squeeze and view."""

    def __init__(self, activation: nn.Module | None = None, offset: float = 0.0) -> None:
        super().__init__()
        act = activation or nn.LeakyReLU(0.2)
        self.ebm = nn.Sequential(nn.Linear(NZ, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 1))
        self.offset = offset

    def forward(self, z: Tensor) -> Tensor:
        return (self.ebm(z.squeeze()) + self.offset).view(-1, 1, 1, 1)


FORMS = {"identity": lambda s: s, "tanh": lambda s: torch.tanh(-s), "sigmoid": torch.sigmoid, "softplus": F.softplus}


def original(
    z: Tensor, net: nn.Module, form: str, steps: int, s: float, sig: float, noisy: bool, eps: Tensor
) -> tuple[Tensor, Tensor, list[float]]:
    """Pang et al.'s loop, with the noise given."""
    energies, norm = [], torch.zeros(())
    for k in range(steps):
        leaf = z.detach().requires_grad_()
        en = FORMS[form](net(leaf).squeeze())
        (grad,) = torch.autograd.grad(en.sum(), leaf)
        energies.append(float(en.sum()))
        norm = grad.view(len(z), -1).norm(dim=1).mean()
        z = z - 0.5 * s * s * (grad + z / (sig * sig))
        if noisy:
            z = z + s * eps[k].view_as(z)
    return z, norm, energies


@pytest.fixture
def operator_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    real = ops.langevin

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*args, **options)

    monkeypatch.setattr(ops, "langevin", counted)
    return calls


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("steps", "s", "sig", "noisy"), [(1, 0.4, 1.0, True), (12, 0.4, 1.0, True), (9, 0.2, 0.7, False)]
)
def test_the_prior_chain_step_for_step(
    form: str, steps: int, s: float, sig: float, noisy: bool, operator_calls: list[int]
) -> None:
    net, z = NetE(), torch.randn(10, NZ, 1, 1)
    end, norm = sample_langevin_prior_z(
        z, net, e_l_steps=steps, e_l_step_size=s, e_prior_sig=sig, e_l_with_noise=noisy, e_energy_form=form, seed=4
    )
    expected, last, _ = original(z, net, form, steps, s, sig, noisy, noise(4, steps, 10, NZ))
    assert end.shape == z.shape and not end.requires_grad
    torch.testing.assert_close(end, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm, last, rtol=1e-4, atol=1e-5)
    assert bool(operator_calls) == (form in ("identity", "tanh"))


@pytest.mark.parametrize("net", [NetE(nn.Mish()), NetE(offset=1.0)], ids=["activation", "more_than_its_ebm"])
def test_other_networks_go_the_general_path(net: nn.Module, operator_calls: list[int]) -> None:
    z = torch.randn(10, NZ, 1, 1)
    end, _ = sample_langevin_prior_z(z, net, e_l_steps=5, seed=4)
    expected, _, _ = original(z, net, "identity", 5, 0.4, 1.0, True, noise(4, 5, 10, NZ))
    torch.testing.assert_close(end, expected, rtol=1e-4, atol=1e-5)
    assert not operator_calls


def test_its_defaults_are_the_originals() -> None:
    net, z = NetE(), torch.randn(10, NZ, 1, 1)
    generator = torch.Generator().manual_seed(3)
    end, _ = sample_langevin_prior_z(z, net, generator=generator)
    eps = noise(drawn_seed(torch.Generator().manual_seed(3)), 60, 10, NZ)
    expected, _, _ = original(z, net, "identity", 60, 0.4, 1.0, True, eps)
    torch.testing.assert_close(end, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 5, 6, 12])
def test_verbose_logs_what_the_original_does(steps: int, caplog: pytest.LogCaptureFixture) -> None:
    net, z = NetE(), torch.randn(10, NZ, 1, 1)
    with caplog.at_level(logging.INFO, logger="mmebm"):
        sample_langevin_prior_z(z, net, True, e_l_steps=steps, seed=4)
    _, _, energies = original(z, net, "identity", steps, 0.4, 1.0, True, noise(4, steps, 10, NZ))
    wanted = [i for i in range(steps) if i % 5 == 0 or i == steps - 1]
    messages = [record.getMessage() for record in caplog.records]
    assert [int(m.split("/")[0].split()[-1]) for m in messages] == [i + 1 for i in wanted]
    assert [float(m.split("=")[1]) for m in messages] == pytest.approx([energies[i] for i in wanted], abs=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"e_energy_form": "square"}, "e_energy_form: expected identity, tanh, sigmoid or softplus, got 'square'"),
        ({"e_l_steps": 0}, "e_l_steps: expected an integer >= 1, got 0"),
    ],
)
def test_what_the_prior_chain_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        sample_langevin_prior_z(torch.zeros(3, NZ, 1, 1), NetE(), **change)
