"""What `evaluate` reports: every number computed again from the images, by numpy; and the mixture control."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmebm import likelihoods
from mmebm.data import MultimodalDataset
from mmebm.energy import EnergyMLP
from mmebm.evaluation.classifiers import Classifiers
from mmebm.evaluation.evaluate import evaluate, objective_label, posterior_draws, samplers
from mmebm.evaluation.likelihood import joint_log_likelihood
from mmebm.evaluation.mixture import fit_mixture
from mmebm.evaluation.probe import linear_probe
from mmebm.models import MMVAE, MMVAEPlus, MultimodalVAE
from mmebm.priors import EnergyPrior, StandardLaplace, StandardNormal
from mmebm.sampling.streams import Stream

from .untrained import untrained

NAMES, CLASSES, D = ("a", "b", "c"), 4, 3
SHAPES = {m: (3, 8, 8) for m in NAMES}
SEED = 3
SIZES: dict[str, Any] = {"samples": 90, "cross_rows": 40, "components": 2, "latents": 120, "seed": SEED}
PRIORS = {
    "normal": lambda: StandardNormal(D),
    "laplace": lambda: StandardLaplace(D),
    "energy": lambda: EnergyPrior(EnergyMLP(D, (8,)), steps=4, step_size=0.3),
}


def tiny_model(prior: str = "energy", kind: str = "mmvaeplus", **options: Any) -> MultimodalVAE:
    options = {"hidden": (16,), **options}
    model: MultimodalVAE = (
        MMVAE(SHAPES, PRIORS[prior](), **options)
        if kind == "mmvae"
        else MMVAEPlus(SHAPES, PRIORS[prior](), private_dim=2, **options)
    )
    with torch.no_grad():  # untrained decoders are nearly constant: classes would be too
        for decoder in model.decoders.values():
            decoder.body[-2].weight.mul_(8.0)
    return model.eval()


def dataset(rows: int, split: str, labelled: bool = True) -> MultimodalDataset:
    random = torch.Generator().manual_seed(rows)
    pixels = {m: torch.rand(rows, *SHAPES[m], generator=random) for m in NAMES}
    labels = torch.randint(CLASSES, (rows,), generator=random)
    return MultimodalDataset(pixels, labels if labelled else None, "toy", split)


@pytest.fixture(scope="module")
def classifiers() -> Classifiers:
    return untrained(SHAPES, CLASSES, dict(zip(NAMES, (0.91, 0.92, 0.93), strict=True)), 0.875)


def classes(classifiers: Classifiers, images: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {m: classifiers.logits(m, x).numpy().argmax(1) for m, x in images.items()}


def frechet(a: np.ndarray, b: np.ndarray, ridge: float = 1e-6) -> float:
    """tr (A B)^1/2 by the eigenvalues of the product, with the ridge that frechet_distance documents."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    eye = ridge * (np.trace(cov_a) + np.trace(cov_b)) / (2 * len(cov_a)) * np.eye(len(cov_a))
    cross = np.sqrt(np.clip(np.linalg.eigvals((cov_a + eye) @ (cov_b + eye)).real, 0, None)).sum()
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(cov_a + cov_b) + 2 * np.trace(eye) - 2 * cross)


@pytest.mark.parametrize("prior", list(PRIORS))
def test_every_number_is_what_the_images_say(prior: str, classifiers: Classifiers) -> None:
    model, train, held_out = tiny_model(prior), dataset(150, "train"), dataset(70, "test")
    assert train.labels is not None and held_out.labels is not None
    found = evaluate(model, train, held_out, classifiers, **SIZES)
    assert json.loads(json.dumps(found)) == found and found["split"] == "test"
    assert found["classifier_accuracy"] == {"a": 0.91, "b": 0.92, "c": 0.93} and found["real_agreement"] == 0.875

    spread = torch.from_numpy(np.floor(np.linspace(0, len(train) - 1, 120)).astype(np.int64))
    draws = {
        "prior": model.prior.sample(90, seed=SEED),
        "gmm2": fit_mixture(model.encode(train.batch(spread), seed=SEED), 2, SEED)(90, SEED),
        "posterior": model.encode(
            train.batch(torch.from_numpy(np.floor(np.linspace(0, 149, 90)).astype(np.int64))), seed=SEED
        ),
    }
    if isinstance(model.prior, EnergyPrior):
        draws["p_0"] = model.prior.sample(90, seed=SEED, steps=0)
    assert set(found["joint"]) == set(draws)
    for name, z in draws.items():
        row, images = found["joint"][name], model.decode(z, seed=SEED)
        guessed = classes(classifiers, images)
        agree = [len({int(guessed[m][i]) for m in NAMES}) == 1 for i in range(90)]
        coherence = sum(agree) / 90
        assert 0 < coherence < 1  # else the rest would show little
        assert row["coherence"] == pytest.approx(coherence) and row["n"] == 90
        assert row["standard_error"] == pytest.approx(math.sqrt(coherence * (1 - coherence) / 90))
        assert row["counts"] == {m: [int((guessed[m] == k).sum()) for k in range(CLASSES)] for m in NAMES}
        pooled = np.concatenate(list(guessed.values()))
        shares = [float((pooled == k).mean()) for k in range(CLASSES)]
        entropy = -sum(p * math.log(p) for p in shares if p) / math.log(CLASSES)
        assert 0.1 < entropy < 1 and row["entropy"] == pytest.approx(entropy)
        for m in NAMES:
            features = [classifiers.features(m, x).numpy() for x in (images[m], held_out.modalities[m])]
            assert row["frechet"][m] == pytest.approx(frechet(*features), rel=1e-5)
        assert row["mean_frechet"] == pytest.approx(sum(row["frechet"].values()) / 3)

    inputs, labels = {m: x[:40] for m, x in held_out.modalities.items()}, held_out.labels[:40].numpy()
    off_diagonal = []
    draws_of = model.subset_draws(inputs, [1, 2, 4], Stream(SEED))
    for i, source in enumerate(NAMES):
        z = draws_of.z[draws_of.of[i], torch.arange(40)]
        assert torch.equal(draws_of.of[i], torch.full((40,), i)), "an expert's draw is its own"
        w = model.decoder_inputs(draws_of.z.flatten(0, 1), SEED)
        u = {m: v.unflatten(0, (3, 40))[i] for m, v in w.items()}
        assert all(torch.equal(v[:, -D:], z) for v in u.values())
        made = classes(classifiers, {m: model.decoders[m](v) for m, v in u.items()})
        for target in NAMES:
            right = float((made[target] == labels).mean())
            assert found["cross"]["matrix"][source][target] == pytest.approx(right)
            if source != target:
                off_diagonal.append(right)
    assert len(off_diagonal) == 6 and len(set(off_diagonal)) > 1
    assert found["cross"]["mean"] == pytest.approx(sum(off_diagonal) / 6) and found["cross"]["n"] == 40

    everything = torch.arange(70)
    probe = linear_probe(
        model.encode(train.batch(spread), seed=SEED), train.labels[spread],
        model.encode(held_out.batch(everything), seed=SEED + 1), held_out.labels,
    )  # fmt: skip
    assert found["probe"] == {"train": probe.train, "test": probe.test, "n_train": 120, "n_test": 70}
    value = float(model.objective(inputs, Stream(SEED)).value.detach())
    assert found["objective"] == {"value": pytest.approx(value), "label": objective_label(model)}


def test_no_more_rows_than_there_are(classifiers: Classifiers) -> None:
    sizes = SIZES | {"cross_rows": 1000, "latents": 1000}
    found = evaluate(tiny_model(), dataset(50, "train"), dataset(30, "validation"), classifiers, **sizes)
    assert found["split"] == "validation" and found["cross"]["n"] == 30
    assert (found["probe"]["n_train"], found["probe"]["n_test"]) == (50, 30)


def test_a_seed_determines_everything(classifiers: Classifiers) -> None:
    model, train, held_out = tiny_model(), dataset(80, "train"), dataset(60, "test")
    first = evaluate(model, train, held_out, classifiers, **SIZES)
    torch.rand(5)
    assert evaluate(model, train, held_out, classifiers, **SIZES) == first
    for seed in (4, -1, 2**40):  # whatever a run's configuration may hold
        other = evaluate(model, train, held_out, classifiers, **SIZES | {"seed": seed})
        assert all(other["joint"][k]["frechet"] != first["joint"][k]["frechet"] for k in first["joint"])


def test_settings_are_in_the_result(classifiers: Classifiers) -> None:
    scales = {"a": 0.3, "b": 0.75, "c": 1.5}
    options = {
        "likelihoods": {m: likelihoods.Laplace(3, s) for m, s in scales.items()}, "samples": 3, "estimator": "dreg",
        "beta": 2.5, "rescale": {"a": 1.0, "b": 0.5, "c": 2.0},
    }  # fmt: skip
    data = dataset(40, "train"), dataset(30, "test")
    settings = evaluate(tiny_model("energy", **options), *data, classifiers, **SIZES)["settings"]
    plain = {
        "model": "MMVAEPlus", "prior": "EnergyPrior", "samples_K": 3, "estimator": "dreg", "beta": 2.5,
        "likelihoods": {"a": "Laplace(scale=0.3)", "b": "Laplace(scale=0.75)", "c": "Laplace(scale=1.5)"},
        "rescale": {"a": 1.0, "b": 0.5, "c": 2.0},
    }  # fmt: skip
    assert settings == plain | {"chain_steps": 4, "step_size": 0.3, "convention": "short_run"}
    settings = evaluate(tiny_model("normal", "mmvae", **options), *data, classifiers, **SIZES)["settings"]
    assert settings == plain | {"model": "MMVAE", "prior": "StandardNormal"}  # no chains, no convention


@pytest.mark.parametrize("prior", list(PRIORS))
def test_the_objective_says_what_it_lacks(prior: str) -> None:
    label = objective_label(tiny_model(prior, samples=5, estimator="iwae", beta=0.5))
    assert label.startswith("iwae, K=5, beta=0.5")
    assert ("without -log Z(alpha)" in label) == (prior == "energy")


def test_what_needs_labels_or_classifiers_is_none_without_them(classifiers: Classifiers) -> None:
    labelled, without = dataset(40, "train"), dataset(40, "train", labelled=False)
    for data in ((labelled, without), (without, labelled)):
        found = evaluate(tiny_model(), *data, classifiers, **SIZES)
        assert found["probe"] is None and found["probe_by_size"] is None and found["joint"] is not None
        assert (found["cross"] is None) == (data[1] is without)
    found = evaluate(tiny_model(), labelled, labelled, None, **SIZES)
    assert found["joint"] is found["cross"] is found["classifier_accuracy"] is None
    assert found["probe"] is not None
    assert set(found["reconstruction"]["by_size"]) == {"1", "2"}
    assert all(e["rmse"] > 0 for targets in found["reconstruction"]["by_size"].values() for e in targets.values())


def test_a_likelihood_on_request(classifiers: Classifiers) -> None:
    model, data = tiny_model("energy"), dataset(40, "test")
    sizes = SIZES | {"likelihood_samples": 3, "likelihood_rows": 20}
    found = evaluate(model, dataset(40, "train"), data, classifiers, **sizes)["likelihood"]["joint"]
    assert isinstance(model.prior, EnergyPrior)
    log_z = model.prior.log_partition(seed=SEED)
    again = joint_log_likelihood(model, data, samples=3, rows=20, log_z=log_z, seed=SEED)
    assert (found["mean"], found["rows"], found["samples"]) == (again.mean, 20, 3)
    assert found["log_z"] == log_z.value


def test_rows_may_lack_modalities(classifiers: Classifiers) -> None:
    model, random = tiny_model("normal"), torch.Generator().manual_seed(0)
    full = dataset(60, "test")
    masks = {m: torch.rand(60, generator=random) < 0.7 for m in NAMES}
    hidden = {m: torch.where(masks[m].view(-1, 1, 1, 1), x, torch.nan) for m, x in full.modalities.items()}
    data = MultimodalDataset(hidden, full.labels, "toy", "test", masks=masks)
    found = evaluate(model, data, data, classifiers, **SIZES | {"likelihood_samples": 2})
    plain = json.dumps(found)
    assert "NaN" not in plain and "Infinity" not in plain
    anything = torch.stack(list(masks.values())).any(0)
    assert 50 < found["likelihood"]["joint"]["rows"] == int(anything.sum()) < 60


# The ways to draw z -------------------------------------------------------------------------------------------------


class Told(nn.Module):
    """Encodes modality i and the row's own number: loc = (i, number, ..), almost no spread."""

    def __init__(self, i: int) -> None:
        super().__init__()
        self.i = i

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        number = x.flatten(1)[:, :1]
        return torch.cat((torch.full_like(number, self.i), number, number), 1), torch.full((len(x), D), -30.0)


def told(rows: int) -> tuple[MultimodalVAE, MultimodalDataset]:
    model = MMVAE(
        SHAPES, StandardNormal(D), posterior="normal", hidden=(4,), encoders={m: Told(i) for i, m in enumerate(NAMES)}
    )
    number = torch.arange(float(rows))[:, None, None, None].expand(-1, 3, 8, 8)
    return model.eval(), MultimodalDataset(dict.fromkeys(NAMES, number), torch.arange(rows) % CLASSES, "toy", "train")


@pytest.mark.parametrize("n", [700, 1000, 5000])
def test_posterior_draws_use_every_modality_and_all_the_data(n: int) -> None:
    model, data = told(1000)
    z, labels = posterior_draws(model, data, n, seed=2)
    assert z.shape == (n, D) and labels is not None
    chosen, rows = z[:, 0].round().long(), z[:, 1].round().long()
    assert torch.equal(labels, rows % CLASSES)
    times = torch.bincount(rows, minlength=1000)
    assert int(times.max()) == -(-n // 1000)  # none more often than needed
    assert int(rows.min()) == 0 and int(rows.max()) == 999
    if n < 1000:
        assert int(rows.diff().max()) == 2  # spread, not the first n
    share = torch.bincount(chosen, minlength=3) / n
    assert float((share - 1 / 3).abs().max()) < 5 * math.sqrt(2 / 9 / n)
    assert torch.equal(posterior_draws(model, data, n, seed=2)[0], z)
    assert not torch.equal(posterior_draws(model, data, n, seed=3)[0], z)


def test_posterior_draws_repeat_rows_and_never_noise() -> None:
    model, data = tiny_model("laplace"), dataset(16, "train")  # encoded in parts of which 16 is a divisor
    z, _ = posterior_draws(model, data, 9000, seed=0)
    assert len(z.unique(dim=0)) == 9000


@pytest.mark.parametrize("prior", list(PRIORS))
def test_samplers(prior: str) -> None:
    model, train = tiny_model(prior), dataset(60, "train")
    ways = samplers(model, train, components=2, latents=50, seed=0)
    assert list(ways) == ["prior", *(["p_0"] if prior == "energy" else []), "gmm2", "posterior"]
    for draw in ways.values():
        z = draw(7, 5)
        assert z.shape == (7, D) and z.dtype == torch.float32 and bool(torch.isfinite(z).all())
        assert torch.equal(draw(7, 5), z) and not torch.equal(draw(7, 6), z)
    assert torch.equal(ways["prior"](7, 5), model.prior.sample(7, seed=5))
    if isinstance(model.prior, EnergyPrior):
        assert torch.equal(ways["p_0"](7, 5), model.prior.sample_reference(7, seed=5))
        assert not torch.equal(ways["p_0"](7, 5), ways["prior"](7, 5))


# The mixture --------------------------------------------------------------------------------------------------------

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-10.0, 1.0, 0.0], [10.0, -2.0, 3.0]])  # told apart by the first coordinate without error
FACTORS = np.array([[[1.0, 0, 0], [0.8, 0.5, 0], [0.0, 0.3, 2.0]], [[0.5, 0, 0], [-0.4, 1.0, 0], [1.0, 0.5, 0.3]]])


def known_mixture(n: int) -> Tensor:
    random = np.random.default_rng(0)
    which = random.choice(2, n, p=WEIGHTS)
    noise = np.einsum("nij,nj->ni", FACTORS[which], random.standard_normal((n, 3)))
    return torch.from_numpy(MEANS[which] + noise).float()


def test_a_known_mixture_is_recovered() -> None:
    fitted_to, drawn = 4000, 20_000
    draw = fit_mixture(known_mixture(fitted_to), 2, seed=0)
    z = draw(drawn, 1).double().numpy()
    # Five standard errors of what 4,000 rows determine and 20,000 show.
    right = (z[:, 0] > 0).astype(int)
    share = 1 / fitted_to + 1 / drawn
    assert abs(right.mean() - WEIGHTS[1]) < 5 * math.sqrt(WEIGHTS[0] * WEIGHTS[1] * share)
    for k in range(2):
        rows, truth = z[right == k], FACTORS[k] @ FACTORS[k].T
        each = share / WEIGHTS[k]
        assert (np.abs(rows.mean(0) - MEANS[k]) < 5 * np.sqrt(np.diag(truth) * each)).all()
        spread = np.sqrt((np.outer(np.diag(truth), np.diag(truth)) + truth**2) * each)
        assert (np.abs(np.cov(rows.T) - truth) < 5 * spread).all()


def test_a_mixtures_seeds() -> None:
    z = known_mixture(300)
    draw = fit_mixture(z, 2, seed=4)
    assert torch.equal(draw(50, 1), draw(50, 1)) and torch.equal(fit_mixture(z, 2, seed=4)(50, 1), draw(50, 1))
    assert not torch.equal(draw(50, 1), draw(50, 2))
    assert draw(50, 1).dtype == torch.float32 and draw(0, 1).shape == (0, 3)


@pytest.mark.parametrize("z", [torch.zeros(3, 2), torch.zeros(8), torch.zeros(8, 2, 2)])
def test_too_few_rows_for_a_mixture(z: Tensor) -> None:
    with pytest.raises(ValueError, match=r"z: expected latents \[N, d\] with N >= components=4, got \["):
        fit_mixture(z, 4)
