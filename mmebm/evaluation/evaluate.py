"""What `mmebm evaluate` measures on a trained model: joint and cross coherence by sampler, the probe, the objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mmebm.data import MultimodalDataset
from mmebm.models import MultimodalVAE
from mmebm.priors import EnergyPrior
from mmebm.sampling.streams import Stream

from .classifiers import Classifiers
from .coherence import JointResult, cross_coherence, joint_result
from .frechet import frechet_distance
from .mixture import fit_mixture
from .probe import linear_probe

Sampler = Callable[[int, int], Tensor]  # (n, seed) -> z [n, d]


def posterior_draws(model: MultimodalVAE, data: MultimodalDataset, n: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """n draws of the aggregate posterior and their labels: rows spread over the data, an expert chosen for each."""
    index = torch.linspace(0, len(data) - 1, min(n, len(data))).long()
    index = index.repeat(-(-n // len(index)))[:n]
    parts = [model.encode(data.batch(part), seed=seed + i) for i, part in enumerate(index.split(4096))]
    return torch.cat(parts), None if data.labels is None else data.labels[index]


def samplers(
    model: MultimodalVAE, train: MultimodalDataset, *, components: int, latents: int, seed: int
) -> dict[str, Sampler]:
    """Ways to draw z: the prior, p_0 under an energy prior, a Gaussian mixture on the posterior, the posterior."""
    prior = model.prior
    z, _ = posterior_draws(model, train, latents, seed)
    mixture = fit_mixture(z, components, seed)
    named: dict[str, Sampler] = {"prior": lambda n, s: prior.sample(n, seed=s)}
    if isinstance(prior, EnergyPrior):
        named["p_0"] = lambda n, s: prior.sample_reference(n, seed=s)
    named[f"gmm{components}"] = mixture
    named["posterior"] = lambda n, s: posterior_draws(model, train, n, s)[0]
    return named


def joint(
    model: MultimodalVAE, sampler: Sampler, classifiers: Classifiers, real: dict[str, Tensor], n: int, seed: int
) -> JointResult:
    """Joint coherence, class entropy and Frechet distance to `real` features of n samples."""
    images = model.decode(sampler(n, seed), seed=seed)
    predictions = {m: classifiers.predict(m, x) for m, x in images.items()}
    distance = {m: frechet_distance(classifiers.features(m, x), real[m]) for m, x in images.items()}
    return joint_result(predictions, distance, classifiers.n_classes)


def evaluate(
    model: MultimodalVAE,
    train: MultimodalDataset,
    held_out: MultimodalDataset,
    classifiers: Classifiers,
    *,
    samples: int = 2000,
    cross_rows: int = 1000,
    components: int = 10,
    latents: int = 20_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything, as plain numbers. `held_out` is the test split, or the validation split while recipes are chosen.

    Every fraction of n rows comes with n; classifier accuracies stand beside the coherences they bound.
    """
    if held_out.labels is None or train.labels is None:
        raise ValueError(f"labels: coherence needs a labelled dataset, {held_out.name!r} has none")
    model = model.eval()
    settings = {
        "model": type(model).__name__,
        "prior": type(model.prior).__name__,
        "samples_K": model.samples,
        "estimator": model.estimator,
        "beta": model.beta,
        "likelihoods": {m: repr(v) for m, v in model.likelihoods.items()},
        "rescale": model.rescale,
    }
    if isinstance(model.prior, EnergyPrior):
        settings |= {"chain_steps": model.prior.steps, "step_size": model.prior.step_size, "convention": "short_run"}

    real = {m: classifiers.features(m, held_out.modalities[m]) for m in model.modalities}
    results: dict[str, JointResult] = {
        name: joint(model, sampler, classifiers, real, samples, seed)
        for name, sampler in samplers(model, train, components=components, latents=latents, seed=seed).items()
    }

    rows = torch.arange(min(cross_rows, len(held_out)))
    inputs, labels = held_out.batch(rows), held_out.labels[rows]
    cross: dict[str, dict[str, float]] = {}
    for source in model.modalities:
        generated = model.cross_generate(inputs, source, seed=seed)
        cross[source] = cross_coherence({m: classifiers.predict(m, x) for m, x in generated.items()}, labels)
    off_diagonal = [v for source, row in cross.items() for target, v in row.items() if source != target]

    fit_z, fit_y = posterior_draws(model, train, min(latents, len(train)), seed)
    test_z, test_y = posterior_draws(model, held_out, len(held_out), seed + 1)
    if fit_y is None or test_y is None:
        raise ValueError("labels: the probe needs labels")
    with torch.no_grad():
        value = model.objective(inputs, Stream(seed)).value
    return {
        "split": held_out.split,
        "settings": settings,
        "classifier_accuracy": classifiers.accuracy,
        "real_agreement": classifiers.agreement,
        "joint": {name: result.numbers() for name, result in results.items()},
        "cross": {"matrix": cross, "mean": sum(off_diagonal) / max(1, len(off_diagonal)), "n": len(rows)},
        "probe": asdict(linear_probe(fit_z, fit_y, test_z, test_y, seed=seed)),
        "objective": {"value": float(value), "label": objective_label(model)},
    }


def objective_label(model: MultimodalVAE) -> str:
    """What the number is: with an energy prior it lacks -log Z(alpha) and bounds nothing."""
    return f"{model.estimator}, K={model.samples}, beta={model.beta:g}" + (
        "" if model.prior.normalised else ", without -log Z(alpha): comparable only between equal priors"
    )
