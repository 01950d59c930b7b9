"""MVAE, MoPoE, MVTCAE and mmJSD against their formulas written out in float64: values, gradients, posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Laplace, Normal, kl_divergence

from mmebm import likelihoods
from mmebm.energy import EnergyMLP
from mmebm.kernels import ops
from mmebm.models import MMJSD, MODELS, MVAE, MVTCAE, MoPoE, MultimodalVAE
from mmebm.models.normal import NormalVAE
from mmebm.priors import EnergyPrior, Prior, StandardLaplace, StandardNormal
from mmebm.sampling import Stream
from mmebm.training.config import ModelConfig

SHAPES = {"image": (1, 4, 4), "sound": (5,), "bits": (2, 3)}
RESCALE = {"image": 1.7, "sound": 0.6, "bits": 1.0}
NAMES = list(SHAPES)
M, D, ROWS, BETA, WEIGHT = len(SHAPES), 3, 5, 2.5, 0.3
SEED, OFFSET = 2**63 + 11, 5
EXACT = {"rtol": 1e-10, "atol": 1e-10}
PRIORS: dict[str, Callable[[], Prior | EnergyPrior]] = {
    "normal": lambda: StandardNormal(D, torch.tensor([0.5, 1.0, 2.0])),
    "energy": lambda: EnergyPrior(EnergyMLP(D, (8,), "tanh"), "normal", 0.7, bound=0.4),
    "energy_laplace": lambda: EnergyPrior(EnergyMLP(D, (8,), "tanh"), "laplace", 0.8),
    "laplace": lambda: StandardLaplace(D, torch.tensor([0.5, 1.0, 2.0])),
}
VARIANTS: list[tuple[type[NormalVAE], dict[str, Any]]] = [
    (MVAE, {}),
    (MVAE, {"random_subsets": 2, "prior_expert": "never"}),
    (MVAE, {"prior_expert": "full"}),
    (MoPoE, {}),
    (MoPoE, {"choice": "categorical", "prior_expert": "always"}),
    (MoPoE, {"prior_expert": "never"}),
    (MVTCAE, {}),
    (MVTCAE, {"alpha": 0.1}),
    (MMJSD, {}),
    (MMJSD, {"variant": "with_prior", "choice": "categorical"}),
    (MMJSD, {"variant": "multiviewae"}),
]
each_variant = pytest.mark.parametrize(
    ("kind", "options"), VARIANTS, ids=[f"{k.__name__}-{'-'.join(map(str, o.values()))}" for k, o in VARIANTS]
)
Gauss = tuple[Tensor, Tensor]  # mu, variance [d]


def tiny(kind: type[NormalVAE], prior: str, **options: Any) -> NormalVAE:
    each = {
        "image": likelihoods.Laplace(3, 0.75),
        "sound": likelihoods.Normal(1, 0.5),
        "bits": likelihoods.Bernoulli(2),
    }
    options = {"likelihoods": each, "hidden": (8,), "rescale": RESCALE, "beta": BETA} | options
    built = kind(SHAPES, PRIORS[prior](), **options)
    with torch.no_grad():
        for p in built.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    return built.double()


def batch(rows: int = ROWS) -> dict[str, Tensor]:
    x = {m: torch.randn(rows, *shape, dtype=torch.float64) for m, shape in SHAPES.items()}
    return x | {"bits": (x["bits"] > 0).double()}


# The formulas --------------------------------------------------------------------------------------------------------


def expert(model: MultimodalVAE, m: str, x: dict[str, Tensor], b: int) -> Gauss:
    loc, raw = (each[b] for each in model.encoders[m](x[m]))
    return loc, ((1.0 + raw.exp()).log() + 1e-6).square()


def reference(model: MultimodalVAE) -> Independent:
    prior = model.prior
    law = prior.reference if isinstance(prior, EnergyPrior) else prior.law
    scale = prior.log_scale.exp() if isinstance(prior, EnergyPrior) else prior.scale.double()
    return Independent({"normal": Normal, "laplace": Laplace}[law](torch.zeros(D).double(), scale), 1)


def product(factors: list[Gauss], weight: float = 1.0) -> Gauss:
    precision = sum(weight / v for _, v in factors)
    return sum(weight * mu / v for mu, v in factors) / precision, 1.0 / precision


def as_law(q: Gauss) -> Independent:
    return Independent(Normal(q[0], q[1].sqrt()), 1)


def kl(q: Gauss, p: Independent) -> Tensor:
    if isinstance(p.base_dist, Normal):
        return kl_divergence(as_law(q), p)
    # Of Normal and Laplace by quadrature: no closed form is at hand here.
    x = torch.linspace(-12.0, 12.0, 400_001, dtype=torch.float64).unsqueeze(1)
    normal = Normal(q[0], q[1].sqrt())
    z = q[0] + q[1].sqrt() * x
    ratio = normal.log_prob(z) - p.base_dist.log_prob(z)
    density = (-0.5 * x * x).exp() / math.sqrt(2.0 * math.pi)
    return torch.trapezoid(density * ratio, x, dim=0).sum()


def energy(model: MultimodalVAE, z: Tensor) -> Tensor:
    if not isinstance(model.prior, EnergyPrior):
        return z.sum() * 0.0
    first, last = model.prior.energy.layers
    e = (last.weight @ torch.tanh(first.weight @ z + first.bias) + last.bias)[0]
    bound = model.prior.bound
    return e if bound is None else bound * torch.tanh(e / bound)


def log_likelihood(model: MultimodalVAE, m: str, x: Tensor, z: Tensor) -> Tensor:
    return RESCALE[m] * model.likelihoods[m].log_prob(x.unsqueeze(0), model.decoders[m](z.unsqueeze(0)))[0]


class Noise:
    """Reparameterisation noise in the order a model takes it."""

    def __init__(self, taken: int = 0) -> None:
        self.step = OFFSET + taken

    def __call__(self, components: int, b: int, c: int, k: int = 0) -> Tensor:
        rng = torch.tensor([SEED - 2**64, self.step + k * components + c, b])
        return ops.draw(rng, 1, 1, D, law="normal", purpose=4)[0, 0].double()


def of_subset(model: NormalVAE, experts: list[Gauss], s: int) -> Gauss:
    scale = reference(model).base_dist.scale
    p_0 = [(torch.zeros(D).double(), scale.square())]
    expert_of_prior = model.prior_expert == "always" or (model.prior_expert == "full" and s == (1 << M) - 1)
    return product([experts[m] for m in range(M) if s >> m & 1] + p_0 * expert_of_prior)


def draw(q: Gauss, eps: Tensor) -> Tensor:
    return q[0] + q[1].sqrt() * eps


def mvae(model: MVAE, x: dict[str, Tensor], b: int) -> Tensor:
    stream = Stream(SEED, OFFSET)
    subsets = model.subsets(stream)
    noise, total = Noise(stream.offset - OFFSET), []
    for i, s in enumerate(subsets):
        q = of_subset(model, [expert(model, m, x, b) for m in NAMES], s)
        for k in range(model.samples):
            z = draw(q, noise(len(subsets), b, i, k))
            likelihood = sum(log_likelihood(model, m, x[m][b], z) for j, m in enumerate(NAMES) if s >> j & 1)
            total.append(likelihood - BETA * (kl(q, reference(model)) + WEIGHT * energy(model, z)))
    return sum(total) / model.samples


def mopoe(model: MoPoE, x: dict[str, Tensor], b: int) -> Tensor:
    experts = [expert(model, m, x, b) for m in NAMES]
    products = [of_subset(model, experts, s) for s in range(1, 1 << M)]
    count, with_energy = len(products), isinstance(model.prior, EnergyPrior)
    # Without an energy only what a row is decoded from is drawn, after it is chosen.
    taken = count * model.samples if with_energy else 0
    chosen = model.components(count, ROWS, None, Stream(SEED, OFFSET + taken), model.choice)
    noise = Noise() if with_energy else Noise(1)
    total = []
    for k in range(model.samples):
        z = [draw(q, noise(count, b, c, k) if with_energy else noise(1, b, 0, k)) for c, q in enumerate(products)]
        likelihood = sum(log_likelihood(model, m, x[m][b], z[int(chosen[b])]) for m in NAMES)
        divergence = sum(
            kl(q, reference(model)) + WEIGHT * energy(model, at) for q, at in zip(products, z, strict=True)
        )
        total.append(likelihood - BETA * divergence / count)
    return sum(total) / model.samples


def mvtcae(model: MVTCAE, x: dict[str, Tensor], b: int) -> Tensor:
    experts = [expert(model, m, x, b) for m in NAMES]
    q, a, total = product(experts), model.alpha, []
    for k in range(model.samples):
        z = draw(q, Noise()(1, b, 0, k))
        likelihood = sum(log_likelihood(model, m, x[m][b], z) for m in NAMES)
        conditional = sum(kl(q, as_law(e)) for e in experts)
        prior = kl(q, reference(model)) + WEIGHT * energy(model, z)
        total.append((M - a) / M * likelihood - BETA * (a / M * conditional + (1.0 - a) * prior))
    return sum(total) / model.samples


def mmjsd(model: MMJSD, x: dict[str, Tensor], b: int) -> Tensor:
    p_0 = (torch.zeros(D).double(), reference(model).base_dist.scale.square())
    experts = [expert(model, m, x, b) for m in NAMES]
    f = as_law(product([*experts, p_0], 1.0 / (M + 1)))
    summed = experts if model.variant == "multiviewae" else [*experts, p_0]
    divergence = sum(kl(q, f) for q in summed) / (M + 1)
    parts = experts if model.variant == "mmjsd" else [*experts, p_0]
    count, noise, total = len(parts), Noise(), []
    chosen = model.components(count, ROWS, None, Stream(SEED, OFFSET + count * model.samples), model.choice)
    for k in range(model.samples):
        z = [draw(q, noise(count, b, c, k)) for c, q in enumerate(parts)]
        likelihood = sum(log_likelihood(model, m, x[m][b], z[int(chosen[b])]) for m in NAMES)
        energies = sum(energy(model, at) for at in z) / count
        total.append(likelihood - BETA * (divergence + WEIGHT * energies))
    return sum(total) / model.samples


FORMULAS: dict[type[NormalVAE], Callable[[Any, dict[str, Tensor], int], Tensor]] = {
    MVAE: mvae, MoPoE: mopoe, MVTCAE: mvtcae, MMJSD: mmjsd,
}  # fmt: skip


# The models ----------------------------------------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("prior", ["normal", "energy"])
def test_objective_is_its_formula(kind: type[NormalVAE], options: dict[str, Any], prior: str, samples: int) -> None:
    model, x = tiny(kind, prior, samples=samples, **options), batch()
    found = model.objective(x, Stream(SEED, OFFSET), energy_weight=WEIGHT)
    value = sum(FORMULAS[kind](model, x, b) for b in range(ROWS)) / ROWS
    torch.testing.assert_close(found.value, value.detach(), **EXACT)
    torch.testing.assert_close(found.loss.detach(), -value.detach(), **EXACT)
    assert found.weights.shape == found.z.shape[:-1] and float(found.weights.sum()) == pytest.approx(1.0)
    assert not found.z.requires_grad and not found.value.requires_grad
    parameters = model.model_parameters()
    got = torch.autograd.grad(found.loss, parameters)
    for g, expected in zip(got, torch.autograd.grad(-value, parameters), strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("prior", ["laplace", "energy_laplace"])
def test_mvtcae_takes_a_laplace_prior(prior: str) -> None:
    model, x = tiny(MVTCAE, prior), batch()
    found = model.objective(x, Stream(SEED, OFFSET), energy_weight=WEIGHT)
    value = sum(mvtcae(model, x, b) for b in range(ROWS)) / ROWS
    torch.testing.assert_close(found.value, value.detach(), rtol=1e-8, atol=1e-8)  # what the quadrature leaves


@each_variant
def test_positives_are_what_the_objective_weighs(kind: type[NormalVAE], options: dict[str, Any]) -> None:
    model, x = tiny(kind, "energy", **options), batch()
    found = model.objective(x, Stream(SEED, OFFSET))
    z, weights = model.positives(x, Stream(SEED, OFFSET))
    torch.testing.assert_close(z, found.z, **EXACT)
    if weights is not None:
        torch.testing.assert_close(weights, found.weights, **EXACT)
    assert bool((found.weights == found.weights.flatten()[0]).all()), "all equal, where nothing is missing"
    torch.testing.assert_close(found.weights.sum(), torch.ones(()).double())


@each_variant
def test_the_energy_gets_no_gradient(kind: type[NormalVAE], options: dict[str, Any]) -> None:
    model = tiny(kind, "energy", **options)
    model.objective(batch(), Stream(SEED, OFFSET)).loss.backward()
    assert all((p.grad is None) == n.startswith("prior.") for n, p in model.named_parameters())


@each_variant
@pytest.mark.parametrize("given", [("sound",), ("image", "bits"), ("image", "sound", "bits")], ids="+".join)
def test_posterior_of_a_subset(kind: type[NormalVAE], options: dict[str, Any], given: tuple[str, ...]) -> None:
    model, x = tiny(kind, "normal", **options), batch()
    found = model.posterior({m: x[m] for m in given}).experts
    mask = sum(1 << NAMES.index(m) for m in given)
    for b in range(ROWS):
        experts = [expert(model, m, x, b) for m in NAMES]
        mine = [experts[NAMES.index(m)] for m in given]
        if kind is MVAE:
            expected = [of_subset(model, experts, mask)]
        elif kind is MoPoE:
            expected = [of_subset(model, experts, s) for s in range(1, 1 << M) if s & mask == s]
        elif kind is MVTCAE:
            expected = [product(mine)]
        elif options.get("variant", "mmjsd") == "mmjsd" or len(given) == 1:
            expected = mine
        else:
            p_0 = (torch.zeros(D).double(), reference(model).base_dist.scale.square())
            expected = [product([*mine, p_0], 1.0 / (len(given) + 1))]
        torch.testing.assert_close(found.loc[:, b], torch.stack([mu for mu, _ in expected]), **EXACT)
        torch.testing.assert_close(found.scale[:, b].square(), torch.stack([v for _, v in expected]), **EXACT)


@each_variant
def test_float32_one_row_and_one_modality(kind: type[NormalVAE], options: dict[str, Any]) -> None:
    model = kind({"only": (1, 4, 4)}, StandardNormal(D), hidden=(8,), **options)
    found = model.objective({"only": torch.zeros(1, 1, 4, 4)}, Stream(0))
    assert all(bool(torch.isfinite(v)) for v in (found.loss, found.value, *found.metrics.values()))


@each_variant
def test_they_generate(kind: type[NormalVAE], options: dict[str, Any]) -> None:
    model, x = tiny(kind, "energy", **options).float(), {m: v.float() for m, v in batch().items()}
    assert model.encode(x, ["image", "bits"], seed=1).shape == (ROWS, D)
    crossed = model.cross_generate({"sound": x["sound"]}, "sound", seed=1)
    assert {m: tuple(v.shape[1:]) for m, v in crossed.items()} == SHAPES
    assert {m: len(v) for m, v in model.generate(4, steps=2, seed=1).items()} == dict.fromkeys(SHAPES, 4)


@pytest.mark.parametrize("choice", ["slices", "categorical"])
@pytest.mark.parametrize("rows", [3, 7, 40])
def test_every_component_is_decoded_equally_often(choice: str, rows: int) -> None:
    model, stream, count = tiny(MoPoE, "normal"), Stream(7), 7
    draws = torch.stack([model.components(count, rows, None, stream, choice) for _ in range(700)])
    assert draws.min() >= 0 and draws.max() < count
    each = torch.bincount(draws.flatten(), minlength=count) / draws.numel()
    assert (each - 1.0 / count).abs().max() < 4.0 * (count * draws.numel()) ** -0.5
    if choice == "slices":
        assert bool((draws.diff(dim=1) >= 0).all()), "consecutive parts"
        sizes = torch.stack([torch.bincount(d, minlength=count) for d in draws])
        assert sizes.max() - sizes.min() <= 1 + (rows % count > 0)


def test_random_subsets_have_two_to_all_but_one_modalities() -> None:
    model, stream = tiny(MVAE, "normal", random_subsets=3), Stream(3)
    drawn = {s for _ in range(40) for s in model.subsets(stream)[M + 1 :]}
    assert drawn == {0b011, 0b101, 0b110}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MVAE, {"prior_expert": "sometimes"}, "prior_expert: expected one of never, full, always, got 'sometimes'"),
        (MVAE, {"random_subsets": -1}, "random_subsets: expected k >= 0, got -1"),
        (MoPoE, {"choice": "best"}, "choice: expected one of slices, categorical, got 'best'"),
        (MoPoE, {"posterior": "laplace"}, "posterior: MoPoE takes 'normal', got 'laplace'"),
        (MVTCAE, {"alpha": 1.5}, r"alpha: expected a number in \[0, 1\], got 1.5"),
        (MVTCAE, {"estimator": "iwae"}, "estimator: MVTCAE takes 'elbo', got 'iwae'"),
        (MMJSD, {"variant": "other"}, "variant: expected one of mmjsd, with_prior, multiviewae, got 'other'"),
    ],
)
def test_refusals(kind: type[NormalVAE], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(SHAPES, StandardNormal(D), **options)


@pytest.mark.parametrize("kind", [MVAE, MoPoE, MMJSD])
def test_products_with_the_prior_want_a_normal_one(kind: type[NormalVAE]) -> None:
    message = f"prior: {kind.__name__} multiplies p_0 .* expected a normal p_0, got laplace"
    with pytest.raises(ValueError, match=message):
        kind(SHAPES, StandardLaplace(D))
    model = kind(SHAPES, StandardNormal(D), hidden=(8,))
    with pytest.raises(ValueError, match=message):
        model.prior = EnergyPrior(EnergyMLP(D, (8,)), "laplace")


def test_every_model_has_its_switches_in_the_configuration() -> None:
    for name, kind in MODELS.items():
        normal = issubclass(kind, NormalVAE)
        config = {"name": name, "posterior": "normal" if normal else "laplace"}
        assert ModelConfig(**config).name == name
        with pytest.raises(ValueError, match=f"options: {name} takes .*, got colour"):
            ModelConfig(**config, options={"colour": 1})
    assert reduce(lambda a, b: a | b, (o for _, o in VARIANTS)).keys() == {
        "random_subsets", "prior_expert", "choice", "alpha", "variant",
    }  # fmt: skip
    with pytest.raises(ValueError, match="posterior: mvae takes 'normal', got 'laplace'"):
        ModelConfig(name="mvae")
