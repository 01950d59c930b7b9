"""Each objective against its formula written out in float64 with torch.distributions: values, weights, gradients."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Laplace, Normal

from mmebm import likelihoods
from mmebm.energy import EnergyMLP
from mmebm.kernels import ops
from mmebm.models import MMVAE, MMVAEPlus, MultimodalVAE, Objective
from mmebm.priors import EnergyPrior, Prior, StandardLaplace, StandardNormal
from mmebm.sampling import Stream

SHAPES = {"image": (1, 4, 4), "sound": (5,), "bits": (2, 3)}
RESCALE = {"image": 1.7, "sound": 0.6, "bits": 1.0}
ROWS, D, D_W, BOUND = 2, 3, 2, 0.4
SEED, OFFSET = 2**63 + 11, 5
REPARAMETERISATION = 4
# Both sides are float64 with sums of at most ~100 terms of order 10.
EXACT = {"rtol": 1e-11, "atol": 1e-11}

PRIORS = {
    "normal": lambda: StandardNormal(D, torch.tensor([0.5, 1.0, 2.0])),
    "laplace": lambda: StandardLaplace(D),
    "energy": lambda: EnergyPrior(EnergyMLP(D, (8,)), "laplace", 1.5, bound=BOUND),
    "energy_normal": lambda: EnergyPrior(EnergyMLP(D, (8,), "tanh"), "normal", 0.7),
}
MODELS = {"mmvae": MMVAE, "mmvaeplus": MMVAEPlus}


def tiny(name: str, prior: str, **options: object) -> MultimodalVAE:
    each = {
        "image": likelihoods.Laplace(3, 0.75),
        "sound": likelihoods.Normal(1, 0.5),
        "bits": likelihoods.Bernoulli(2),
    }
    private = {"private_dim": D_W} if name == "mmvaeplus" else {}
    built = MODELS[name](SHAPES, PRIORS[prior](), likelihoods=each, hidden=(8,), **private, **options)
    with torch.no_grad():
        for p in built.parameters():
            p.add_(0.3 * torch.randn(p.shape))  # auxiliary scales start equal, biases near zero
    return built.double()


def batch(rows: int = ROWS) -> dict[str, Tensor]:
    x = {m: torch.randn(rows, *shape, dtype=torch.float64) for m, shape in SHAPES.items()}
    return x | {"bits": (x["bits"] > 0).double()}


# The formula ---------------------------------------------------------------------------------------------------------


def law(name: str, loc: Tensor, scale: Tensor) -> Distribution:
    return {"laplace": Laplace, "normal": Normal}[name](loc, scale)


def expert(posterior: str, encoder: nn.Module, x: Tensor, b: int) -> Distribution:
    loc, raw = (each[b] for each in encoder(x))
    if posterior == "laplace":
        return Laplace(loc, raw.exp() / raw.exp().sum() * len(raw) + 1e-6)
    return Normal(loc, (1.0 + raw.exp()).log() + 1e-6)


def noise(step: int, dim: int, b: int, posterior: str) -> Tensor:
    rng = torch.tensor([SEED - 2**64, OFFSET + step, b])
    return ops.draw(rng, 1, 1, dim, law=posterior, purpose=REPARAMETERISATION)[0, 0].double()


def log_likelihood(m: str, x: Tensor, decoded: Tensor) -> Tensor:
    p = {"image": Laplace(decoded, 0.75), "sound": Normal(decoded, 0.5), "bits": Bernoulli(logits=decoded)}[m]
    return p.log_prob(x).sum()


def energy(prior: EnergyPrior, z: Tensor) -> Tensor:
    first, last = prior.energy.layers
    h = first.weight @ z + first.bias
    h = torch.tanh(h) if prior.energy.activation == "tanh" else h / (1.0 + (-h).exp())
    e = (last.weight @ h + last.bias)[0]
    return e if prior.bound is None else BOUND * torch.tanh(e / BOUND)


def log_prior(prior: Prior | EnergyPrior, z: Tensor, energy_weight: float) -> Tensor:
    if isinstance(prior, EnergyPrior):
        scale = prior.log_scale.exp()
        return law(prior.reference, torch.zeros_like(z), scale).log_prob(z).sum() - energy_weight * energy(prior, z)
    return law(prior.law, torch.zeros_like(z), prior.scale.double()).log_prob(z).sum()


def log_weights(model: MultimodalVAE, x: dict[str, Tensor], energy_weight: float) -> tuple[Tensor, Tensor]:
    """lw_m^k [K, M, B] and z [K, M, B, d], by the letter of the two papers."""
    names, K, q = list(SHAPES), model.samples, model.posterior_law
    M, B, plus = len(names), len(x["image"]), isinstance(model, MMVAEPlus)
    lw, zs = torch.zeros(K, M, B, dtype=torch.float64), torch.zeros(K, M, B, D, dtype=torch.float64)
    for k, m, b in product(range(K), range(M), range(B)):
        experts = [expert(q, model.encoders[j], x[j], b) for j in names]
        z = experts[m].loc + experts[m].scale * noise(k * M + m, D, b, q)
        mixture = sum(e.log_prob(z).sum().exp() for e in experts) / M
        total = model.beta * (log_prior(model.prior, z, energy_weight) - mixture.log())
        if plus:
            private = expert(q, model.private_encoders[names[m]], x[names[m]], b)
            w = private.loc + private.scale * noise(K * M + k * M + m, D_W, b, q)
            p_w = law(q, torch.zeros(D_W).double(), torch.ones(D_W).double())
            total = total + model.beta * (p_w.log_prob(w).sum() - private.log_prob(w).sum())
        for n, name in enumerate(names):
            u = z
            if plus and n == m:
                u = torch.cat((w, z))
            elif plus:
                raw = model.auxiliary[n]
                scale = raw.exp() / raw.exp().sum() * D_W if q == "laplace" else (1.0 + raw.exp()).log()
                eps = noise(2 * K * M + (n * K + k) * M + m, D_W, b, q)
                u = torch.cat(((scale + 1e-6) * eps, z))
            decoded = model.decoders[name](u.unsqueeze(0))[0]
            total = total + RESCALE[name] * log_likelihood(name, x[name][b], decoded)
        lw[k, m, b], zs[k, m, b] = total, z
    return lw, zs


def bound_of(lw: Tensor, estimator: str) -> Tensor:
    K, M, B = lw.shape
    total = torch.zeros((), dtype=torch.float64)
    for m, b in product(range(M), range(B)):
        each = [lw[k, m, b] for k in range(K)]
        total = total + (sum(each) / K if estimator == "elbo" else (sum(e.exp() for e in each) / K).log())
    return total / (M * B)


def evaluate(model: MultimodalVAE, x: dict[str, Tensor], energy_weight: float = 1.0) -> Objective:
    return model.objective(x, Stream(SEED, OFFSET), energy_weight=energy_weight)


# The objectives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["laplace", "normal"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("estimator", ["elbo", "iwae", "dreg"])
@pytest.mark.parametrize("prior", list(PRIORS))
@pytest.mark.parametrize("name", list(MODELS))
def test_objective_is_its_formula(name: str, prior: str, estimator: str, samples: int, posterior: str) -> None:
    model = tiny(
        name, prior, estimator=estimator, samples=samples, posterior=posterior, beta=2.5, rescale=RESCALE
    )  # fmt: skip
    x = batch()
    found = evaluate(model, x, energy_weight=0.3)
    lw, z = log_weights(model, x, energy_weight=0.3)
    value = bound_of(lw, estimator)
    torch.testing.assert_close(found.value, value.detach(), **EXACT)
    torch.testing.assert_close(found.z, z.detach(), **EXACT)
    assert not found.z.requires_grad and not found.weights.requires_grad and not found.value.requires_grad

    normalised = lw.exp() / lw.exp().sum(0) if estimator != "elbo" else torch.full_like(lw, 1.0 / samples)
    torch.testing.assert_close(found.weights, normalised.detach() / (len(SHAPES) * ROWS), **EXACT)
    if estimator == "dreg":  # its loss is a surrogate, whose gradients have a test file of their own
        surrogate = (normalised * lw).sum(0).mean()
        torch.testing.assert_close(found.loss.detach(), -surrogate.detach(), **EXACT)
        return
    torch.testing.assert_close(found.loss.detach(), -value.detach(), **EXACT)
    parameters = model.model_parameters()
    got = torch.autograd.grad(found.loss, parameters)
    for g, expected in zip(got, torch.autograd.grad(-value, parameters), strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", list(MODELS))
def test_float32_is_the_same_objective(name: str) -> None:
    model = tiny(name, "energy", estimator="iwae", samples=3, beta=2.5, rescale=RESCALE)
    x = batch()
    value = bound_of(log_weights(model, x, 1.0)[0], "iwae").detach()
    single = model.float().objective({m: v.float() for m, v in x.items()}, Stream(SEED, OFFSET))
    assert single.loss.dtype == torch.float32
    # Terms of |log p| <~ 100 summed over ~30 values: a few dozen roundings of 2^-24 relative.
    torch.testing.assert_close(single.value.double(), value, rtol=64 * 2.0**-24, atol=0.0)


def test_energy_is_weighed_and_counted_in_beta() -> None:
    model = tiny("mmvae", "energy", beta=2.5)
    x = batch()
    values = [float(evaluate(model, x, weight).value) for weight in (0.0, 0.3, 1.0)]
    mean_energy = torch.stack([energy(model.prior, z) for z in evaluate(model, x).z.reshape(-1, D)]).mean().item()
    assert abs(mean_energy) > 1e-3
    assert values[0] - values[1] == pytest.approx(2.5 * 0.3 * mean_energy, rel=1e-9)
    assert values[0] - values[2] == pytest.approx(2.5 * mean_energy, rel=1e-9)


@pytest.mark.parametrize("estimator", ["elbo", "iwae", "dreg"])
@pytest.mark.parametrize("name", list(MODELS))
def test_energy_and_reference_scale_get_no_gradient(name: str, estimator: str) -> None:
    model = tiny(name, "energy", estimator=estimator, samples=3)
    model.prior.log_scale.requires_grad_(True)
    evaluate(model, batch()).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None and n.startswith("prior.")] == []
    assert [n for n, p in model.named_parameters() if p.grad is None and not n.startswith("prior.")] == []
    moved = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved == {n for n, _ in model.named_parameters() if not n.startswith("prior.")}


@pytest.mark.parametrize("estimator", ["elbo", "iwae"])
def test_log_z_moves_the_value_and_no_gradient(estimator: str) -> None:
    model = tiny("mmvae", "energy", estimator=estimator, samples=3, beta=2.5, rescale=RESCALE)
    x = batch()
    found = evaluate(model, x)
    draws = Laplace(torch.zeros(D).double(), model.prior.log_scale.exp()).sample((200,))
    log_z = torch.stack([-energy(model.prior, z) for z in draws]).exp().mean().log()
    value = bound_of(log_weights(model, x, 1.0)[0] - model.beta * log_z, estimator)
    assert abs(log_z.item()) > 1e-3
    torch.testing.assert_close(found.value - value.detach(), model.beta * log_z.detach(), rtol=1e-9, atol=0.0)
    parameters = model.model_parameters()
    expected = torch.autograd.grad(-value, parameters, retain_graph=True)
    for g, e in zip(torch.autograd.grad(found.loss, parameters), expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("estimator", ["elbo", "iwae", "dreg"])
@pytest.mark.parametrize("name", list(MODELS))
def test_one_call_per_network(name: str, estimator: str) -> None:
    model = tiny(name, "laplace", estimator=estimator, samples=3)
    calls: Counter[str] = Counter()
    rows: set[int] = set()

    def counting(path: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            calls[path] += 1
            if path.startswith("decoders"):
                rows.add(len(inputs[0]))

        return hook

    groups = ["encoders", "decoders"] + (["private_encoders"] if name == "mmvaeplus" else [])
    networks = [f"{group}.{m}" for group in groups for m in SHAPES]
    for path in networks:
        model.get_submodule(path).register_forward_hook(counting(path))
    evaluate(model, batch()).loss.backward()
    assert calls == Counter(networks)
    assert rows == {3 * len(SHAPES) * ROWS}


@pytest.mark.parametrize("name", list(MODELS))
def test_the_stream_moves_on_and_rows_stand_alone(name: str) -> None:
    model, x = tiny(name, "laplace", samples=2), batch(4)
    stream = Stream(SEED, OFFSET)
    first, second = model.objective(x, stream), model.objective(x, stream)
    used = 2 * len(SHAPES) * (1 if name == "mmvae" else 2 + len(SHAPES))
    assert stream.offset == OFFSET + 2 * used
    assert not bool((first.z == second.z).any())
    alone = model.objective({m: v[:1] for m, v in x.items()}, Stream(SEED, OFFSET))
    torch.testing.assert_close(alone.z, first.z[:, :, :1], **EXACT)


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("prior", ["laplace", "energy"])
def test_metrics(name: str, prior: str) -> None:
    model = tiny(name, prior, samples=2, rescale=RESCALE)
    x = batch(3)
    found = evaluate(model, x, energy_weight=0.3)
    names = list(SHAPES)
    q = [[expert("laplace", model.encoders[m], x[m], b) for b in range(3)] for m in names]
    kl, energies = [], []
    for k, m, b in product(range(2), range(3), range(3)):
        z = found.z[k, m, b]
        log_q = (sum(q[j][b].log_prob(z).sum().exp() for j in range(3)) / 3).log()
        kl.append((log_q - log_prior(model.prior, z, 0.0)).item())
        energies.append(energy(model.prior, z).item() if prior == "energy" else 0.0)
    assert float(found.metrics["kl_reference"]) == pytest.approx(math.fsum(kl) / len(kl), rel=1e-10)
    assert float(found.metrics["energy"]) == pytest.approx(math.fsum(energies) / len(energies), rel=1e-10)
    loc = torch.stack([torch.stack([e.loc for e in row]) for row in q]).reshape(-1, D)
    within = torch.stack([torch.stack([e.variance for e in row]) for row in q]).reshape(-1, D)
    root_mean_square = (loc.square() + within).mean().sqrt()
    assert float(found.metrics["posterior_scale"]) == pytest.approx(root_mean_square.item(), rel=1e-10)
    # The parts add up to the whole: sum of lambda log p - KL, beta = 1.
    whole = sum(RESCALE[m] * float(found.metrics[f"log_likelihood/{m}"]) for m in names)
    whole -= float(found.metrics["kl_reference"]) + 0.3 * float(found.metrics["energy"])
    whole -= float(found.metrics.get("kl_private", 0.0))
    assert float(found.value) == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("name", list(MODELS))
def test_one_modality_one_row_is_finite(name: str) -> None:
    private = {"private_dim": D_W} if name == "mmvaeplus" else {}
    model = MODELS[name]({"only": (1, 4, 4)}, StandardLaplace(D), hidden=(8,), **private)
    found = model.objective({"only": torch.zeros(1, 1, 4, 4)}, Stream(0))
    assert all(bool(torch.isfinite(v)) for v in (found.loss, found.value, *found.metrics.values()))


def test_refusals() -> None:
    model, x = tiny("mmvae", "laplace"), batch()
    with pytest.raises(ValueError, match="inputs: expected every modality, missing bits"):
        evaluate(model, {m: v for m, v in x.items() if m != "bits"})
    with pytest.raises(ValueError, match="inputs: unknown modality smell; this model has image, sound, bits"):
        evaluate(model, x | {"smell": x["image"]})
    with pytest.raises(ValueError, match="estimator: expected one of elbo, iwae, dreg, got 'vimco'"):
        tiny("mmvae", "laplace", estimator="vimco")
    with pytest.raises(ValueError, match="samples: expected K >= 1, got 0"):
        tiny("mmvae", "laplace", samples=0)
    for beta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="beta: expected a number > 0"):
            tiny("mmvae", "laplace", beta=beta)
    with pytest.raises(ValueError, match="law: expected one of normal, laplace, got 'cauchy'"):
        evaluate(tiny("mmvae", "laplace", posterior="cauchy"), x)
    with pytest.raises(ValueError, match="rescale: unknown modality smell"):
        tiny("mmvae", "laplace", rescale=RESCALE | {"smell": 1.0})
    with pytest.raises(ValueError, match="rescale: expected every modality, missing sound, bits"):
        tiny("mmvae", "laplace", rescale={"image": 1.0})
    with pytest.raises(ValueError, match="shapes: expected at least one modality, got none"):
        MMVAE({}, StandardLaplace(D))
    with pytest.raises(ValueError, match="private_dim: expected >= 1, got 0"):
        MMVAEPlus(SHAPES, StandardLaplace(D), private_dim=0)
