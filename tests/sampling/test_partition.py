"""log Z by annealed importance sampling: closed forms, its error and its sides, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import mmebm
from mmebm.kernels import ops, reference
from mmebm.sampling import bracket, log_partition
from mmebm.sampling.partition import lipschitz_constant

W = torch.tensor([0.8, -0.5, 0.3])
SCALE = torch.tensor([0.5, 1.0, 1.5])


def linear(bias: float = 0.4) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 1))
    with torch.no_grad():
        net[0].weight.copy_(W)
        net[0].bias.fill_(bias)
    return net


def wave(z: Tensor) -> Tensor:
    """Bounded, and a product over coordinates."""
    return 1.5 * torch.cos(2.0 * z).sum(1)


def by_quadrature(law: str, energy: Any, scale: float) -> float:
    """log of the integral of exp(-energy) p_0 in one dimension."""
    x = torch.linspace(-60.0 * scale, 60.0 * scale, 2_000_001, dtype=torch.float64)
    p = {"normal": stats.norm, "laplace": stats.laplace}[law].pdf(x.numpy(), scale=scale)
    values = torch.from_numpy(p) * torch.exp(-energy(x))
    return math.log(float(torch.trapezoid(values, x)))


# name -> settings and the exact value
KNOWN: dict[str, tuple[dict[str, Any], float]] = {
    # E = w z + c under N(0, s^2): log Z = sum w^2 s^2 / 2 - c.
    "linear_normal": (
        {"energy": linear(), "reference": "normal", "reference_scale": SCALE},
        float((W * SCALE).square().sum() / 2.0 - 0.4),
    ),
    # Under Laplace(0, s): log Z = -sum log(1 - w^2 s^2) - c.
    "linear_laplace": (
        {"energy": linear(), "reference": "laplace", "reference_scale": SCALE},
        float(-torch.log1p(-(W * SCALE).square()).sum() - 0.4),
    ),
    "negated": (
        {"energy": linear(-0.4), "reference": "normal", "reference_scale": SCALE, "negate": True},
        float((W * SCALE).square().sum() / 2.0 - 0.4),
    ),
    # E = |z|^2 / 2 under N(0, 1): Z = 2^(-3/2); a callable.
    "square_normal": ({"energy": lambda z: 0.5 * z.square().sum(1), "reference": "normal"}, -1.5 * math.log(2.0)),
    "wave_laplace": (
        {"energy": wave, "reference": "laplace", "reference_scale": 0.7, "lipschitz": 1.0},
        3.0 * by_quadrature("laplace", lambda x: 1.5 * torch.cos(2.0 * x), 0.7),
    ),
    "bounded": (
        {"energy": linear(), "reference": "laplace", "reference_scale": 3.0, "bound": 2.0},
        math.nan,
    ),
}
EXACT = [name for name, (_, exact) in KNOWN.items() if not math.isnan(exact)]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", EXACT)
def test_closed_forms(name: str, reverse: bool) -> None:
    settings, exact = KNOWN[name]
    found = log_partition(shape=3, chains=1500, steps=150, burn_in=300, seed=1, reverse=reverse, **settings)
    assert 0.0 < found.standard_error < 0.05 and found.reverse == reverse
    assert abs(found.value - exact) < 5.0 * found.standard_error
    assert 0.3 < found.ess <= 1.0 and 0.2 < found.acceptance < 0.95
    assert found.log_weights.shape == (1500,) and found.z.shape == (1500, 3)


def test_float64_and_backends_agree() -> None:
    settings, _ = KNOWN["linear_laplace"]
    options = {"shape": 3, "chains": 400, "steps": 60, "seed": 2, "step_size": 0.8} | settings
    single = log_partition(**options)
    other = log_partition(**options, backend="reference")
    double = log_partition(**options | {"energy": linear().double(), "dtype": torch.float64})
    # The same chains to rounding; one in which rounding decides an acceptance may differ.
    assert abs(single.value - other.value) < 0.02 and abs(single.value - double.value) < 0.02
    assert double.log_weights.dtype == torch.float64


def test_one_transition_is_importance_sampling() -> None:
    """t = 1 at once: log w = -E at draws of p_0, whatever the chains do."""
    found = log_partition(linear(), 3, reference="normal", chains=500, schedule=[1.0], step_size=0.3, seed=4)
    # The pilot takes one step of the stream for its starts, then come these.
    z0 = ops.draw(torch.tensor([4, 1, 0]), 1, 500, 3, law="normal", purpose=1)[0]
    log_w = -linear()(z0).squeeze(1).double()
    torch.testing.assert_close(found.log_weights, log_w, rtol=1e-5, atol=1e-6)
    weights = log_w.exp()
    assert found.value == pytest.approx(float(weights.mean().log()), abs=1e-6)
    assert found.standard_error == pytest.approx(float(weights.std() / weights.mean() / math.sqrt(500)), rel=1e-5)
    assert found.ess == pytest.approx(float(weights.sum() ** 2 / weights.square().sum() / 500), rel=1e-5)


def test_the_weights_are_those_of_the_recorded_path() -> None:
    """Three values of t: the operator's `work` and the two ends against the energies of the visited states."""
    t = [0.2, 0.5, 1.0]
    found = log_partition(linear(), 3, reference="normal", chains=64, schedule=t, step_size=0.9, seed=4)
    net = linear()
    table = torch.tensor([[0.405, 0.9, u] for u in t])
    z0 = ops.draw(torch.tensor([4, 1, 0]), 1, 64, 3, law="normal", purpose=1)[0]
    chain = ops.mala(
        z0, [net[0].weight.detach()], [net[0].bias.detach()], table, torch.tensor([4, 2, 0]), reference="normal",
        reference_scale=torch.ones(3), record_every=1,
    )  # fmt: skip
    path = torch.cat((z0.unsqueeze(0), chain.states))
    energies = net(path).squeeze(2).double()
    log_w = -(0.2 * energies[0] + 0.3 * energies[1] + 0.5 * energies[2])
    torch.testing.assert_close(found.log_weights, log_w, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.z, chain.z)


def test_the_standard_error_is_the_spread_of_repetitions() -> None:
    """A long way in few steps, 40 times: z-scores have the spread that they should, at 5 standard errors of it."""
    settings, exact = KNOWN["linear_normal"]
    runs = [log_partition(shape=3, chains=300, steps=8, step_size=0.6, seed=s, **settings) for s in range(40)]
    scores = torch.tensor([(r.value - exact) / r.standard_error for r in runs])
    assert abs(float(scores.square().mean()) - 1.0) < 5.0 * math.sqrt(2.0 / 40)


def test_forward_and_reverse_err_to_their_sides() -> None:
    """With few chains the mean of log mean w lies below log Z, that of the reverse estimate above (Jensen)."""
    settings, exact = KNOWN["square_normal"]
    both = [bracket(shape=3, chains=2, steps=1, burn_in=30, step_size=1.2, seed=s, **settings) for s in range(400)]
    below, above = (torch.tensor([pair[i].value - exact for pair in both]) for i in (0, 1))
    assert float(below.mean()) < -5.0 * float(below.std()) / math.sqrt(400)
    assert float(above.mean()) > 5.0 * float(above.std()) / math.sqrt(400)


def test_more_steps_bring_the_sides_together() -> None:
    energy = mmebm.EnergyMLP(2, (16,), spectral_norm=4.0, input_scale=0.7)
    with torch.no_grad():
        for _ in range(50):
            energy.network()
    gaps = []
    for steps in (2, 300):
        low, high = bracket(energy.eval(), 2, reference="normal", chains=500, steps=steps, burn_in=1000, seed=3)
        gaps.append(abs(high.value - low.value))
        error = math.hypot(low.standard_error, high.standard_error)
    assert gaps[1] < 5.0 * error and gaps[1] < gaps[0]


def test_an_energy_prior_knows_its_own() -> None:
    prior = mmebm.EnergyPrior(mmebm.EnergyMLP(3, (8,), spectral_norm=0.5), "normal", 0.8, bound=2.0, grad_clip=0.01)
    prior.eval()
    found = prior.log_partition(chains=300, steps=40, seed=1)
    again = log_partition(
        prior.energy, 3, reference="normal", reference_scale=0.8, bound=2.0, chains=300, steps=40, seed=1
    )
    assert torch.equal(found.log_weights, again.log_weights), "the clip takes no part"


def test_a_generator_and_manual_seed_reproduce() -> None:
    options: dict[str, Any] = {"reference": "normal", "chains": 20, "steps": 5, "step_size": 0.5}
    a, b = (log_partition(linear(), 3, generator=torch.Generator().manual_seed(2), **options).value for _ in range(2))
    torch.manual_seed(1)
    c = [log_partition(linear(), 3, **options).value for _ in range(2)]
    assert a == b and c[0] != c[1]


# what is refused -----------------------------------------------------------------------------------------------------


def steep(slope: float) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 1))
    with torch.no_grad():
        net[0].weight.copy_(slope * torch.tensor([0.6, 0.8, 0.0]))
    return net


@pytest.mark.parametrize(
    ("slope", "scale", "fine"), [(0.99, 1.0, True), (1.01, 1.0, False), (0.49, 2.0, True), (0.51, 2.0, False)]
)
def test_a_laplace_reference_needs_a_lipschitz_constant_below_its_own(slope: float, scale: float, fine: bool) -> None:
    options: dict[str, Any] = {"reference_scale": scale, "chains": 16, "steps": 3, "step_size": 0.3, "seed": 0}
    if fine:
        log_partition(steep(slope), 3, reference="laplace", **options)
        return
    with pytest.raises(
        ValueError, match=r"^energy: expected a Lipschitz constant below 1 / reference_scale, or bound="
    ):
        log_partition(steep(slope), 3, reference="laplace", **options)
    log_partition(steep(slope), 3, reference="laplace", bound=1.0, **options)
    log_partition(steep(slope), 3, reference="normal", **options)


def test_a_callable_says_its_lipschitz_constant() -> None:
    options: dict[str, Any] = {"reference": "laplace", "chains": 16, "steps": 3, "step_size": 0.3}
    with pytest.raises(ValueError, match=r"^lipschitz: expected a Lipschitz constant of the energy, or bound="):
        log_partition(wave, 3, **options)
    with pytest.raises(ValueError, match=r"^energy: expected a Lipschitz constant below"):
        log_partition(wave, 3, lipschitz=3.0 * math.sqrt(3.0), **options)
    log_partition(wave, 3, bound=4.5, **options)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "leaky_relu", "relu", "softplus", "tanh", "elu"])
def test_the_lipschitz_bound_holds_and_is_not_idle(activation: str) -> None:
    energy = mmebm.EnergyMLP(4, (16, 8), activation, slope=1.7 if activation == "leaky_relu" else 0.2).double()
    net = energy.network()
    scale = torch.rand(4, dtype=torch.float64) + 0.5
    z = 4.0 * torch.randn(20_000, 4, dtype=torch.float64)
    grad = reference.energy_and_grad(z, reference.MLP(net.weights, net.biases, activation, net.slope, None))[1].detach()
    for bound, steepest in (
        (lipschitz_constant(net), grad.norm(dim=1).max()),
        (lipschitz_constant(net, scale), (grad * scale).norm(dim=1).max()),
    ):
        assert 0.02 * bound < float(steepest) <= bound


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "softplus", "tanh", "elu"])
def test_the_steepest_slopes(activation: str) -> None:
    from mmebm.kernels.reference.activations import ACTIVATIONS
    from mmebm.sampling.partition import _SLOPES

    x = torch.linspace(-20.0, 20.0, 400_001, dtype=torch.float64)
    steepest = float(ACTIVATIONS[activation].first(x, 0.2).abs().max())
    assert steepest <= _SLOPES.get(activation, 1.0) < steepest + 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "none"}, "reference: expected one of normal, laplace, got 'none'"),
        ({"chains": 1}, "chains: expected an integer >= 2, got 1"),
        ({"steps": 0}, "steps: expected an integer >= 1, got 0"),
        ({"burn_in": -1}, "burn_in: expected an integer >= 0, got -1"),
        ({"schedule": [0.5, 0.4, 1.0]}, "schedule: expected numbers that increase from > 0 to 1"),
        ({"schedule": [0.0, 1.0]}, "schedule: expected numbers that increase from > 0 to 1"),
        ({"schedule": [0.5, 0.9]}, "schedule: expected numbers that increase from > 0 to 1"),
        ({"bound": 0.0}, "bound: expected a finite number > 0"),
        ({"step_size": -1.0}, "step_size: expected finite step sizes > 0"),
        ({"reference_scale": torch.ones(2)}, r"reference_scale: expected numbers > 0, one or \[3\]"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        log_partition(**{"energy": linear(), "shape": 3, "reference": "normal", "chains": 8} | change)


def test_repr_says_what_it_is() -> None:
    found = log_partition(linear(), 3, reference="normal", chains=8, steps=2, step_size=0.5, seed=0)
    assert repr(found).startswith("log Z = ") and "(AIS, 8 chains" in repr(found) and "bound" not in repr(found)
