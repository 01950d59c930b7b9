"""`mmebm.mala` and `mmebm.hmc`: the two paths agree, warm-up finds its target, targets stay what they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmebm
from mmebm.kernels import ops
from mmebm.kernels.reference.noise import MOMENTUM, log_uniform
from mmebm.sampling.adaptation import ROUNDS, Adaptation

DIM = 5
HOLDS: list[dict[str, Any]] = [
    {},
    {"reference": "normal", "reference_scale": 0.7},
    {"reference": "laplace", "reference_scale": torch.linspace(0.5, 1.5, DIM)},
    {"reference": "laplace", "bound": 1.5},
    {"reference": "normal", "negate": True},
]
MALA_HOLDS = [*HOLDS, {"grad_clip": 0.2}, {"reference": "normal", "clamp": (-1.0, 1.5)}]
each_hmc = pytest.mark.parametrize("leapfrog", [1, 4])


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, 9), nn.SiLU(), nn.Linear(9, 1)).to(dtype)


def run(sampler: Callable[..., Any], energy: Any, z: Tensor, **options: Any) -> Any:
    return sampler(energy, z, **{"steps": 12, "step_size": 0.7, "seed": 3} | options)


def ids(hold: dict[str, Any]) -> str:
    return "-".join(hold) or "free"


# the two paths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold", MALA_HOLDS, ids=ids)
def test_mala_of_a_network_is_mala_of_its_callable(hold: dict[str, Any]) -> None:
    energy, z = net(), torch.randn(40, DIM, dtype=torch.float64).clamp(-0.9, 1.4)
    end, info = run(mmebm.mala, energy, z, return_info=True, record_every=3, **hold)
    other, told = run(mmebm.mala, lambda z: energy(z), z, return_info=True, record_every=3, **hold)
    torch.testing.assert_close(end, other)
    assert torch.equal(info.acceptance, told.acceptance)
    for name in ("states", "energies", "mean_energy", "grad_norm", "displacement", "work"):
        torch.testing.assert_close(getattr(info, name), getattr(told, name))


@each_hmc
@pytest.mark.parametrize("hold", HOLDS, ids=ids)
def test_hmc_against_a_transcription(hold: dict[str, Any], leapfrog: int) -> None:
    """Leapfrog and accept/reject written out with autograd; network and callable alike."""
    energy, z = net(), torch.randn(40, DIM, dtype=torch.float64)
    options = {"leapfrog": leapfrog, "step_size": 0.9, "offset": 2, "chain_offset": 7, **hold}
    scale = torch.as_tensor(hold.get("reference_scale", 1.0), dtype=torch.float64)

    def potential(z: Tensor) -> Tensor:
        e = energy(z).squeeze(1) * (-1.0 if hold.get("negate") else 1.0)
        if "bound" in hold:
            e = hold["bound"] * torch.tanh(e / hold["bound"])
        if hold.get("reference") == "normal":
            return e + 0.5 * (z / scale).square().sum(1)
        return e + (z / scale).abs().sum(1) if hold.get("reference") == "laplace" else e

    def force(z: Tensor) -> Tensor:
        leaf = z.detach().requires_grad_()
        return torch.autograd.grad(potential(leaf).sum(), leaf)[0]

    x, taken = z, []
    for k in range(12):
        rng = torch.tensor([3, 2 + k, 7])
        p0 = ops.draw(rng, 1, 40, DIM, law="normal", purpose=MOMENTUM, backend="reference")[0].double()
        y, p = x, p0
        for _ in range(leapfrog):
            p = p - 0.45 * force(y)
            y = y + 0.9 * p
            p = p - 0.45 * force(y)
        log_alpha = potential(x) - potential(y) + 0.5 * (p0.square() - p.square()).sum(1)
        accept = log_uniform(rng, 1, 40)[0] < log_alpha.detach()
        x = torch.where(accept.unsqueeze(1), y, x)
        taken.append(accept)
    acceptance = torch.stack(taken).double().mean(0)
    for each in (energy, lambda z: energy(z)):
        end, info = run(mmebm.hmc, each, z, return_info=True, **options)
        torch.testing.assert_close(end, x)
        assert torch.equal(info.acceptance, acceptance)
    assert 0.1 < acceptance.mean() < 1.0 or not hold, "both answers must be seen"


def test_one_leapfrog_step_is_mala() -> None:
    """The proposal and its probability are the same; the noise is of another purpose, so the laws are compared."""
    z = torch.zeros(20_000, 2)
    options: dict[str, Any] = {"reference": "normal", "step_size": 1.1, "steps": 3, "return_info": True}
    a, one = run(mmebm.mala, nn.Sequential(nn.Linear(2, 1)), z, **options)
    b, two = run(mmebm.hmc, nn.Sequential(nn.Linear(2, 1)), z, leapfrog=1, **options)
    error = math.sqrt(2.0 / len(z))
    assert (one.acceptance.mean() - two.acceptance.mean()).abs() < 5.0 * error
    assert (a.var(0) - b.var(0)).abs().max() < 5.0 * 2.0 * error


@pytest.mark.parametrize("sampler", [mmebm.mala, partial(mmebm.hmc, leapfrog=3)], ids=["mala", "hmc"])
def test_info_is_of_the_recorded_path(sampler: Callable[..., Any]) -> None:
    energy, z = net(), torch.randn(20, DIM, dtype=torch.float64)
    end, info = run(sampler, energy, z, reference="normal", return_info=True, record_every=1)
    path = torch.cat((z.unsqueeze(0), info.states))
    assert torch.equal(path[-1], end)
    torch.testing.assert_close(info.energies, energy(info.states).squeeze(-1))
    left = path[:-1].flatten(0, 1).requires_grad_()
    value = energy(left).squeeze(1)
    (grad,) = torch.autograd.grad(value.sum(), left)
    moves = path.diff(dim=0).norm(dim=2)
    torch.testing.assert_close(info.mean_energy, value.detach().view(12, 20).mean(0))
    torch.testing.assert_close(info.grad_norm, grad.norm(dim=1).view(12, 20).mean(0))
    torch.testing.assert_close(info.displacement, moves.mean(0))
    torch.testing.assert_close(info.acceptance, (moves > 0).double().mean(0))
    assert (moves == 0).any() and info.rng.tolist() == [3, 0, 0]


@pytest.mark.parametrize("sampler", [mmebm.mala, partial(mmebm.hmc, leapfrog=3)], ids=["mala", "hmc"])
@pytest.mark.parametrize("energy", [net(torch.float32), lambda z: z.square().sum(1)], ids=["mlp", "callable"])
def test_a_chain_and_a_batch_can_be_split(sampler: Callable[..., Any], energy: Any) -> None:
    z = torch.randn(12, DIM)
    whole = run(sampler, energy, z)
    assert torch.equal(run(sampler, energy, run(sampler, energy, z, steps=5), steps=7, offset=5), whole)
    parts = [run(sampler, energy, part, chain_offset=first) for first, part in ((0, z[:5]), (5, z[5:]))]
    torch.testing.assert_close(torch.cat(parts), whole)


# targets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leapfrog", [1, 3, 8])
@pytest.mark.parametrize("reference", ["normal", "laplace"])
def test_hmc_leaves_the_target_as_it_is(reference: str, leapfrog: int) -> None:
    """From exact draws: E u^2 = 1 (normal) or 2 (laplace), at 5 standard errors; without rejections it is not."""
    rows, scale = 16384, 1.3
    start = ops.draw(torch.tensor([2, 0, 0]), 1, rows, 4, law=reference, purpose=1)[0]
    flat = nn.Sequential(nn.Linear(4, 1))
    nn.init.zeros_(flat[0].weight)
    end, info = mmebm.hmc(
        flat, scale * start, steps=6, step_size=1.2, leapfrog=leapfrog, reference=reference, reference_scale=scale,
        seed=1, return_info=True,
    )  # fmt: skip
    moment, variance = {"normal": (1.0, 2.0), "laplace": (2.0, 20.0)}[reference]
    u = (end / scale).double().flatten()
    assert u.mean().abs() < 5.0 * math.sqrt(moment / len(u))
    assert (u.square().mean() - moment).abs() < 5.0 * math.sqrt(variance / len(u))
    assert 0.2 < info.acceptance.mean() < 0.999


# warm-up -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1e-3, 0.5, 20.0])
@pytest.mark.parametrize(
    ("sampler", "target"),
    [(mmebm.mala, 0.574), (mmebm.mala, 0.8), (partial(mmebm.hmc, leapfrog=4), 0.651)],
    ids=["mala", "mala_0.8", "hmc"],
)
@pytest.mark.parametrize("energy", [net(torch.float32), lambda z: z.square().sum(1)], ids=["mlp", "callable"])
def test_warm_up_meets_its_acceptance(sampler: Callable[..., Any], target: float, first: float, energy: Any) -> None:
    z = torch.randn(500, DIM)
    # On a normal target leapfrog's acceptance rises and falls with the step: resonances, which a Laplace one has not.
    _, info = run(
        sampler, energy, z, reference="laplace", step_size=first, warmup=150, target_acceptance=target, steps=60,
        return_info=True,
    )  # fmt: skip
    assert abs(float(info.acceptance.mean()) - target) < 0.06
    assert info.rng.tolist() == [3, 150, 0], "the noise goes on after warm-up"


def test_warm_up_has_a_bounded_number_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = ops.mala

    def counted(z: Tensor, *args: Any, **options: Any) -> Any:
        calls.append(len(args[2]))
        return real(z, *args, **options)

    monkeypatch.setattr(ops, "mala", counted)
    run(mmebm.mala, net(torch.float32), torch.randn(4, DIM), warmup=1000, steps=7)
    assert sum(calls) == 1007 and len(calls) <= ROUNDS + 1 and calls[-1] == 7


def test_warm_up_is_reproducible_and_its_size_is_told() -> None:
    z = torch.randn(30, DIM)
    energy = net(torch.float32)
    (a, one), (b, two) = (run(mmebm.mala, energy, z, warmup=40, return_info=True) for _ in range(2))
    assert torch.equal(a, b) and one.step_size == two.step_size
    # What is told is what ran: without warm-up, at that size and offset, from where warm-up ended.
    assert torch.equal(one.coefficients, one.step_size.coefficients(12))


def test_adaptation_by_hand() -> None:
    """Up, up, down, up: the gain falls with each change of direction, and the first leg is not averaged."""
    adaptation = Adaptation(0.6)
    assert adaptation.current == adaptation.outcome == 0.0
    path = []
    for acceptance, crossings in ((0.9, 0), (0.8, 0), (0.2, 1), (0.7, 2), (0.65, 2)):
        path.append((path[-1] if path else 0.0) + 3.0 * (1 + crossings) ** -0.6 * (acceptance - 0.6))
        adaptation.update(acceptance)
        assert adaptation.current == pytest.approx(path[-1])
        if not crossings:
            assert adaptation.outcome == adaptation.current
    assert adaptation.outcome == pytest.approx((path[3] + path[4]) / 2.0)
    adaptation.update(math.nan)
    assert adaptation.current == pytest.approx(path[-1] + 3.0 * 4**-0.6 * -0.6), "lost chains have accepted nothing"


@pytest.mark.parametrize("sampler", [mmebm.mala, mmebm.hmc])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup": -1}, "warmup: expected an integer >= 0, got -1"),
        ({"warmup": 1.5}, "warmup: expected an integer >= 0, got 1.5"),
        ({"target_acceptance": 1.0}, r"target_acceptance: expected a number in \(0, 1\), got 1.0"),
    ],
)
def test_bad_warm_up_is_refused(sampler: Callable[..., Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        run(sampler, net(), torch.randn(4, DIM).double(), **change)


@pytest.mark.parametrize(
    "size",
    [{"step_size": [0.1] * 12}, {"step_size": None, "coefficients": torch.tensor([[0.1, 0.2, 1.0]]).repeat(12, 1)}],
)
def test_a_schedule_is_not_adapted(size: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^warmup: expected one step size to adapt"):
        run(mmebm.mala, net(), torch.randn(4, DIM).double(), warmup=10, **size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leapfrog": 0}, "leapfrog: expected an integer >= 1, got 0"),
        ({"steps": -1}, "steps: expected an integer >= 0, got -1"),
        ({"step_size": -0.1}, "step_size: expected a finite number > 0"),
        ({"record_every": 2}, "record_every: .*return_info=True, got 2"),
        ({"check": "never"}, "check: expected 'auto', 'raise' or 'off'"),
    ],
)
def test_bad_hmc_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        run(mmebm.hmc, net(), torch.randn(4, DIM).double(), **change)


@pytest.mark.parametrize("sampler", [mmebm.mala, mmebm.hmc])
def test_chains_that_start_lost_are_named(sampler: Callable[..., Any]) -> None:
    z = torch.randn(6, DIM)
    z[[1, 4], 2] = torch.tensor([math.nan, math.inf])
    with pytest.raises(mmebm.NonFiniteChains, match=r"^2 of 6 chains are not finite after 12 steps: 1, 4 "):
        run(sampler, net(torch.float32), z)
    end = run(sampler, net(torch.float32), z, check="off")
    assert torch.isfinite(end[[0, 2, 3, 5]]).all()
