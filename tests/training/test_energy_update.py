"""The energy's update against gradients and chains computed by hand; fitting a prior to latents."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from mmebm.energy import EnergyMLP
from mmebm.kernels import ops
from mmebm.priors import EnergyPrior
from mmebm.sampling import Stream
from mmebm.training.config import EnergyTrainConfig, PriorConfig
from mmebm.training.energy import EnergyUpdate, TrainingDiverged, cosine, fit_energy_prior, match_reference

D, SEED, CHAINS, STEPS, STEP_SIZE = 3, 2**63 + 3, 8, 5, 0.3
CHAIN_NOISE, REFERENCE_DRAW, CHOICE = 0, 1, 3
# The library's side is float32: a few dozen roundings of 2^-24 on terms of order 1.
SINGLE = {"rtol": 64 * 2.0**-24, "atol": 64 * 2.0**-24}


class Recorded(Stream):
    """A stream that remembers which steps were taken."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.taken: list[tuple[int, int]] = []

    def take(self, steps: int) -> Tensor:
        self.taken.append((self.offset, steps))
        return super().take(steps)


def settings(**changes: object) -> EnergyTrainConfig:
    values = {"chains": CHAINS, "steps": STEPS, "step_size": STEP_SIZE, "decay": "none", "learning_rate": 1e-3}
    return EnergyTrainConfig(**values | changes)


def tiny(reference: str = "laplace", **options: object) -> EnergyPrior:
    prior = EnergyPrior(EnergyMLP(D, (8,)), reference, torch.tensor([0.7, 1.0, 1.6]), **options)
    with torch.no_grad():
        for p in prior.energy.parameters():
            p.mul_(2.0)
    return prior


def updating(prior: EnergyPrior, **changes: object) -> EnergyUpdate:
    return EnergyUpdate(prior, settings(**changes), Recorded(SEED), 10)


def positives(n: int = 6) -> tuple[Tensor, Tensor]:
    return 2.0 * torch.randn(n, D), torch.rand(n).softmax(0)


# By hand, in float64 --------------------------------------------------------------------------------------------------


def energy(p: dict[str, Tensor], z: Tensor, bound: float | None) -> Tensor:
    h = p["energy.layers.0.weight"] @ z + p["energy.layers.0.bias"]
    e = (p["energy.layers.1.weight"] @ (h * torch.sigmoid(h)) + p["energy.layers.1.bias"])[0]
    return e if bound is None else bound * torch.tanh(e / bound)


def log_reference(p: dict[str, Tensor], z: Tensor, reference: str) -> Tensor:
    law = {"laplace": torch.distributions.Laplace, "normal": torch.distributions.Normal}[reference]
    return law(torch.zeros(D, dtype=torch.float64), p["log_scale"].exp()).log_prob(z).sum()


def parameters(prior: EnergyPrior) -> dict[str, Tensor]:
    return {n: p.detach().double().requires_grad_() for n, p in prior.named_parameters()}


def drawn(offset: int, chain: int, law: str, purpose: int) -> Tensor:
    return ops.draw(torch.tensor([SEED - 2**64, offset, chain]), 1, 1, D, law=law, purpose=purpose)[0, 0].double()


def reference_start(prior: EnergyPrior, offset: int) -> Tensor:
    scale = prior.log_scale.detach().double().exp()
    return torch.stack([scale * drawn(offset, i, prior.reference, REFERENCE_DRAW) for i in range(CHAINS)])


def walked(prior: EnergyPrior, start: Tensor, offset: int) -> Tensor:
    """STEPS steps of z <- z - s^2/2 grad(E - log p_0) + s eps from every row of start."""
    p, ends = parameters(prior), []
    for i, z in enumerate(start.double()):
        for k in range(STEPS):
            leaf = z.clone().requires_grad_()
            (grad,) = torch.autograd.grad(
                energy(p, leaf, prior.bound) - log_reference(p, leaf, prior.reference), leaf
            )  # fmt: skip
            z = z - STEP_SIZE**2 / 2 * grad + STEP_SIZE * drawn(offset + k, i, "normal", CHAIN_NOISE)
        ends.append(z)
    return torch.stack(ends)


def loss_by_hand(
    prior: EnergyPrior, p: dict[str, Tensor], z: Tensor, weights: Tensor, negatives: Tensor, regularisation: float
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for z_i, w_i in zip(z.double(), weights.double(), strict=True):
        e = energy(p, z_i, prior.bound)
        total = total + w_i * (e + regularisation * e**2)
        if prior.log_scale.requires_grad:
            total = total - w_i * log_reference(p, z_i, prior.reference)
    for z_j in negatives:
        e = energy(p, z_j, prior.bound)
        total = total - (e - regularisation * e**2) / len(negatives)
        if prior.log_scale.requires_grad:
            total = total + log_reference(p, z_j, prior.reference) / len(negatives)
    return total


# One update -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("regularisation", [0.0, 0.3])
@pytest.mark.parametrize("learn_scale", [False, True])
@pytest.mark.parametrize("bound", [None, 1.5])
@pytest.mark.parametrize("reference", ["laplace", "normal"])
def test_one_update_is_the_gradient_by_hand(
    reference: str, bound: float | None, learn_scale: bool, regularisation: float, weighted: bool
) -> None:
    prior = tiny(reference, bound=bound, learn_scale=learn_scale)
    before = copy.deepcopy(prior)
    update = updating(prior, regularisation=regularisation)
    z, weights = positives()
    z.requires_grad_()
    metrics = update.step(z, weights if weighted else None)
    weights = weights if weighted else torch.full((len(z),), 1.0 / len(z))

    negatives = walked(before, reference_start(before, 0), 1)
    torch.testing.assert_close(update.chains.states.double(), negatives, **SINGLE)
    p = parameters(before)
    moved = [n for n in p if n != "log_scale" or learn_scale]
    loss = loss_by_hand(before, p, z.detach(), weights, negatives, regularisation)
    gradients = torch.autograd.grad(loss, [p[n] for n in moved], allow_unused=True)
    for n, g in zip(moved, gradients, strict=True):
        got = prior.get_parameter(n)
        if n == "energy.layers.1.bias" and bound is None and not regularisation:
            torch.testing.assert_close(got.grad, torch.zeros(1), **SINGLE)  # a constant of E cancels
            continue
        torch.testing.assert_close(got.grad.double(), g, **SINGLE)
        # Adam's first step is -lr g / (|g| + eps), whatever the size of g.
        step = -1e-3 * got.grad.double() / (got.grad.double().abs() + 1e-8)
        torch.testing.assert_close(got.detach().double() - p[n].detach(), step, rtol=1e-3, atol=0.0)
    if not learn_scale:
        assert torch.equal(prior.log_scale, before.log_scale) and prior.log_scale.grad is None
    assert z.grad is None and update.updates == 1

    e_q = sum(w * energy(p, z_i, bound) for w, z_i in zip(weights.double(), z.detach().double(), strict=True))
    e_p = sum(energy(p, z_j, bound) for z_j in negatives) / CHAINS
    norm = torch.cat([prior.get_parameter(n).grad.flatten() for n in moved]).double().norm()
    expected = {
        "E_q": e_q,
        "E_p": e_p,
        "E_gap": e_q - e_p,
        "energy_grad_norm": norm,
        "chain_scale": negatives.square().mean().sqrt(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(
            metrics[name].double(), value.detach(), msg=lambda s, name=name: f"{name}: {s}", **SINGLE
        )


@pytest.mark.parametrize("reference", ["laplace", "normal"])
def test_a_learned_scale_moves_by_e_q_minus_e_p(reference: str) -> None:
    prior = tiny(reference, learn_scale=True)
    scale = prior.reference_scale.detach().double()
    update = updating(prior)
    z, weights = positives()
    update.step(z, weights)
    u_q, u_p = z.double().abs() / scale, update.chains.states.double().abs() / scale
    # d log p_0 / d log s = |u| - 1 (laplace), u^2 - 1 (normal)
    power = 1 if reference == "laplace" else 2
    by_hand = (weights.double().unsqueeze(1) * (u_q**power - 1)).sum(0) - (u_p**power - 1).mean(0)
    torch.testing.assert_close(prior.log_scale.grad.double(), -by_hand, **SINGLE)


def test_weights_have_any_shape_and_an_unweighted_row_has_no_say() -> None:
    z, _ = positives()
    grads = []
    for weights, rows in (
        (torch.tensor([0.5, 0.0, 0.25, 0.0, 0.25, 0.0]), z),
        (torch.tensor([0.5, 0.0, 0.25, 0.0, 0.25, 0.0]).view(2, 1, 3), z.view(2, 1, 3, D)),
        (torch.tensor([0.5, 0.25, 0.25]), z[::2]),
    ):
        torch.manual_seed(1)
        prior = tiny()
        updating(prior).step(rows, weights)
        grads.append(torch.cat([p.grad.flatten() for p in prior.energy.parameters()]))
    assert torch.equal(grads[0], grads[1])
    torch.testing.assert_close(grads[0], grads[2])


def test_gradient_norm_is_capped() -> None:
    z, weights = positives()
    free, capped = tiny(), None
    capped = copy.deepcopy(free)
    norm = updating(free).step(z, weights)["energy_grad_norm"]
    cap = float(norm) / 7
    reported = updating(capped, max_grad_norm=cap).step(z, weights)["energy_grad_norm"]
    torch.testing.assert_close(reported, norm)
    for a, b in zip(free.energy.parameters(), capped.energy.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad / 7)


def test_learning_rate_decays() -> None:
    assert [cosine(0, 10), cosine(5, 10), cosine(10, 10), cosine(11, 10)] == pytest.approx([1.0, 0.505, 0.01, 0.01])
    assert cosine(1, 0) == pytest.approx(0.01)
    rates = {}
    for decay in ("none", "cosine"):
        update = updating(tiny(), decay=decay)
        rates[decay] = []
        for _ in range(3):
            update.step(*positives())
            rates[decay].append(update.optimiser.param_groups[0]["lr"])
    assert rates["none"] == [1e-3] * 3
    assert rates["cosine"] == pytest.approx([1e-3 * cosine(i, 10) for i in range(3)])


# Chains and noise -----------------------------------------------------------------------------------------------------


def starts_and_ends(update: EnergyUpdate, updates: int = 3) -> list[tuple[Tensor, Tensor]]:
    """What every update's chains start from and end in; the noise they are given is checked against the stream."""
    seen, chain = [], update.prior.chain

    def recorded(z: Tensor, *, steps: int, **options: object) -> Tensor:
        assert int(options["seed"]) == SEED - 2**64 and (options["offset"], steps) in update.stream.taken
        assert options["step_size"] == STEP_SIZE
        out = chain(z, steps=steps, **options)
        seen.append((z.clone(), out.clone()))
        return out

    update.prior.chain = recorded
    for _ in range(updates):
        update.step(*positives())
    return seen


def chosen(offset: int, share: float) -> list[bool]:
    """Which chains restart: u < share, u in [0, 1) from the first word of their choice call."""
    from mmebm.kernels.reference.noise import words

    rng = torch.tensor([SEED - 2**64, offset, 0])
    return [int(x) < share * 2**32 for x in words(rng, 1, CHAINS, 1, CHOICE)[0, :, 0, 0]]


def test_persistent_chains_go_on() -> None:
    prior = tiny()
    update = updating(prior, persistent=True, reinitialise=0.0, learning_rate=1e-9)
    seen = starts_and_ends(update)
    torch.testing.assert_close(seen[0][0].double(), reference_start(prior, 0), **SINGLE)
    assert torch.equal(seen[1][0], seen[0][1]) and torch.equal(seen[2][0], seen[1][1])
    assert torch.equal(update.chains.states, seen[2][1])
    # Second update: one step of the stream for draws of p_0, one for the choice, then the chains' own.
    torch.testing.assert_close(seen[1][1].double(), walked(prior, seen[1][0], 1 + STEPS + 2), **SINGLE)


def test_a_share_of_the_chains_restarts() -> None:
    prior = tiny()
    seen = starts_and_ends(updating(prior, persistent=True, reinitialise=0.5, learning_rate=1e-9))
    for i, offset in ((1, 1 + STEPS), (2, 1 + STEPS + 2 + STEPS)):
        restarted = (seen[i][0] != seen[i - 1][1]).any(1).tolist()
        assert restarted == chosen(offset + 1, 0.5)
        fresh = reference_start(prior, offset)[restarted]
        torch.testing.assert_close(seen[i][0][restarted].double(), fresh, **SINGLE)
    total = [r for offset in range(200) for r in chosen(offset, 0.02)]
    assert abs(sum(total) / len(total) - 0.02) < 5 * (0.02 * 0.98 / len(total)) ** 0.5


def test_restarting_all_chains_is_having_fresh_ones() -> None:
    prior = tiny()
    seen = starts_and_ends(updating(prior, persistent=True, reinitialise=1.0, learning_rate=1e-9))
    for (start, _), offset in zip(seen, (0, 1 + STEPS, 1 + STEPS + 2 + STEPS), strict=True):
        torch.testing.assert_close(start.double(), reference_start(prior, offset), **SINGLE)


def test_fresh_chains_start_anew() -> None:
    prior = tiny()
    update = updating(prior, persistent=False, learning_rate=1e-9)
    seen = starts_and_ends(update)
    assert update.chains.states is None
    for (start, end), offset in zip(seen, (0, 1 + STEPS, 2 * (1 + STEPS)), strict=True):
        torch.testing.assert_close(start.double(), reference_start(prior, offset), **SINGLE)
        torch.testing.assert_close(end.double(), walked(prior, start, offset + 1), **SINGLE)


@pytest.mark.parametrize("persistent", [False, True])
def test_no_noise_is_used_twice(persistent: bool) -> None:
    update = updating(tiny(), persistent=persistent)
    for _ in range(4):
        update.step(*positives())
    taken = update.stream.taken
    assert sum(steps == STEPS for _, steps in taken) == 4
    ends = [offset + steps for offset, steps in taken]
    assert [offset for offset, _ in taken] == [0, *ends[:-1]] and all(steps > 0 for _, steps in taken)
    assert update.state() == {"updates": 4, "offset": ends[-1]}


def test_an_update_is_determined_by_seed_and_state() -> None:
    z, weights = positives()
    results = []
    for seed in (SEED, SEED, SEED + 1):
        torch.manual_seed(5)
        prior = tiny()
        update = EnergyUpdate(prior, settings(), Stream(seed), 10)
        torch.rand(len(results))
        for _ in range(3):
            update.step(z, weights)
        results.append(torch.cat([p.detach().flatten() for p in prior.parameters()]))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


# The reference's scale, and fitting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["laplace", "normal"])
def test_match_reference_is_maximum_likelihood(reference: str) -> None:
    z = torch.randn(400, D) * torch.tensor([0.2, 1.0, 5.0]) + torch.tensor([0.1, 0.0, 3.0])
    prior = tiny(reference)
    match_reference(prior, z)
    best = prior.reference_log_prob(z).double().sum().item()
    p = {"log_scale": prior.log_scale.detach().double().requires_grad_()}
    by_hand = torch.stack([log_reference(p, row, reference) for row in z.double()]).sum()
    assert best == pytest.approx(by_hand.item(), rel=1e-6)
    (slope,) = torch.autograd.grad(by_hand / len(z), p["log_scale"])
    torch.testing.assert_close(slope, torch.zeros(D, dtype=torch.float64), rtol=0, atol=1e-5)
    match_reference(prior, torch.zeros(4, D))
    assert bool(torch.isfinite(prior.log_scale).all())


def mixture(n: int, seed: int) -> Tensor:
    """Four Gaussians of scale 0.4 at (+-1.5, +-1.5), three times as many at the first as at each other."""
    g = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    return centres[torch.randint(6, (n,), generator=g)] + 0.4 * torch.randn(n, 2, generator=g)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, unbiased; 0 where the laws agree (Szekely and Rizzo 2013)."""
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return 2 * torch.cdist(x, y).mean() - within


FIT_PRIOR = PriorConfig(
    hidden=(32, 32), reference="normal", reference_scale="matched", spectral_norm=None, steps=600, step_size=0.3
)
FIT_TRAIN = EnergyTrainConfig(learning_rate=5e-3, chains=128, steps=20, step_size=0.3)


def test_a_fitted_prior_is_closer_to_the_data_than_its_reference() -> None:
    prior = fit_energy_prior(mixture(2000, 0), prior=FIT_PRIOR, train=FIT_TRAIN, updates=250, batch_size=128)
    data = mixture(4000, 1)
    fitted, reference = prior.sample(4000, seed=1), prior.sample_reference(4000, seed=1)
    blocks = [x.view(10, 400, 2) for x in (data, fitted, reference, mixture(4000, 2))]
    to_fitted, to_reference, to_data = (
        torch.stack([energy_distance(x, y) for x, y in zip(blocks[0], other, strict=True)]) for other in blocks[1:]
    )
    gain = to_reference - to_fitted
    assert float(gain.mean()) > 5 * float(gain.std()) / 10**0.5
    # At least three quarters of the way from p_0 to the data's own distance, which is 0 up to noise.
    noise = 5 * float(to_data.std()) / 10**0.5
    assert float(to_fitted.mean()) < 0.25 * float(to_reference.mean()) + noise
    assert float(to_reference.mean()) > 4 * noise  # else the two thresholds above would say nothing
    assert not prior.training


def test_fitting_leaves_torchs_generator_alone_and_repeats() -> None:
    z = mixture(50, 0)
    train = FIT_TRAIN.model_copy(update={"chains": 8, "steps": 3})
    seen: list[int] = []
    state = torch.random.get_rng_state()
    options = {"prior": FIT_PRIOR, "train": train, "updates": 7, "batch_size": 512, "log_every": 3}
    first = fit_energy_prior(z, seed=4, progress=lambda i, metrics: seen.append(i), **options)
    assert torch.equal(torch.random.get_rng_state(), state) and seen == [3, 6, 7]
    torch.rand(2)
    again, other = fit_energy_prior(z.double(), seed=4, **options), fit_energy_prior(z, seed=5, **options)
    for (n, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), n
        if n != "log_scale":
            assert not torch.equal(a, c), n
    torch.testing.assert_close(first.reference_scale.detach(), z.square().mean(0).sqrt())


def test_one_row_and_other_priors_names() -> None:
    train = FIT_TRAIN.model_copy(update={"chains": 4, "steps": 2})
    named = PriorConfig(name="laplace", hidden=(4,), input_scale=1.0)
    prior = fit_energy_prior(torch.ones(1, 2), prior=named, train=train, updates=2)
    assert prior.sample(3, steps=2, seed=0).shape == (3, 2)
    # Settings of one's own need no spread; those taken from it do.
    with pytest.raises(ValueError, match="z: expected rows that differ, got 4 equal"):
        fit_energy_prior(torch.ones(4, 2), updates=2)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(0, 2), r"z: expected latents \[n, d\] with n, d >= 1, got torch.Size\(\[0, 2\]\)"),
        (torch.zeros(4), r"z: expected latents \[n, d\] with n, d >= 1, got torch.Size\(\[4\]\)"),
        (torch.zeros(4, 1, 2), r"z: expected latents \[n, d\]"),
        (torch.zeros(4, 0), r"z: expected latents \[n, d\] with n, d >= 1"),
        ([[0.0, 1.0]], r"z: expected latents \[n, d\] with n, d >= 1, got list"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 1.0], [torch.inf, 0.0]]), "z: expected finite numbers, got 2 rows"),
    ],
)
def test_unfit_latents(z: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_energy_prior(z, updates=1)


@pytest.mark.parametrize("learning_rate", [0.5, 1e30])
def test_a_diverging_fit_says_so(learning_rate: float) -> None:
    train = FIT_TRAIN.model_copy(update={"learning_rate": learning_rate, "largest_gap": 100.0, "steps": 5})
    with pytest.raises(TrainingDiverged, match=r"the energy diverged at update \d+: .*E_gap"):
        fit_energy_prior(mixture(200, 0), prior=FIT_PRIOR, train=train, updates=200, batch_size=64, log_every=5)
