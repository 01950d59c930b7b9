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

from .classifiers import Classifiers, is_picture
from .coherence import JointResult, joint_result
from .cross import CrossResult, cross_by_subset, subset_latents
from .fid import Features, cross_fid, joint_fid, real_features
from .frechet import frechet_distance
from .likelihood import joint_log_likelihood
from .mixture import fit_mixture
from .probe import ProbeResult, linear_probe

Sampler = Callable[[int, int], Tensor]  # (n, seed) -> z [n, d]


def posterior_draws(model: MultimodalVAE, data: MultimodalDataset, n: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """n draws of the aggregate posterior and their labels: rows spread over the data, an expert chosen for each."""
    index = torch.linspace(0, len(data) - 1, min(n, len(data))).long()
    index = index.repeat(-(-n // len(index)))[:n]
    parts = [
        model.encode(data.batch(part), masks=data.observed(part), seed=seed + i)
        for i, part in enumerate(index.split(4096))
    ]
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
    images = model.decode(sampler(n, seed), list(real), seed=seed)
    predictions = {m: classifiers.predict(m, x) for m, x in images.items()}
    distance = {m: frechet_distance(classifiers.features(m, x), real[m]) for m, x in images.items()}
    return joint_result(predictions, distance, classifiers.n_classes)


def evaluate(
    model: MultimodalVAE,
    train: MultimodalDataset,
    held_out: MultimodalDataset,
    classifiers: Classifiers | None,
    *,
    samples: int = 2000,
    cross_rows: int = 1000,
    components: int = 10,
    latents: int = 20_000,
    probe_rows: int = 2000,
    likelihood_samples: int = 0,
    likelihood_rows: int = 500,
    inception: Features | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything, as plain numbers. `held_out` is the test split, or the validation split while recipes are chosen.

    Every fraction of n rows comes with n and a bootstrap interval; classifier accuracies stand beside the coherences
    they bound. Coherence is of the modalities that `classifiers` judge; without them, and for cross coherence without
    labels, what needs them is None. `likelihood_samples` K > 0 adds the joint log-likelihood of `likelihood_rows` rows,
    `inception` (of `mmebm.evaluation.fid`) its Frechet distances of pictures, joint and from each to each.
    """
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

    # First, since it alone may be refused: an energy's normaliser may be infinite.
    likelihood = _likelihood(model, held_out, likelihood_samples, likelihood_rows, seed) if likelihood_samples else None
    rows = torch.arange(min(cross_rows, len(held_out)))
    cross = cross_by_subset(model, held_out, classifiers, rows=len(rows), seed=seed)
    with torch.no_grad():
        inputs, masks = held_out.batch(rows), held_out.observed(rows)
        value = model.objective(inputs, Stream(seed, device=held_out.device), masks=masks).value
    result = {
        "split": held_out.split,
        "settings": settings,
        "protocol": PROTOCOL,
        "classifier_accuracy": None if classifiers is None else classifiers.accuracy,
        "real_agreement": None if classifiers is None else classifiers.agreement,
        "joint": None,
        "cross": _cross_numbers(cross),
        "reconstruction": {"by_size": {str(k): v for k, v in cross.errors().items()}, "n": cross.n},
        "probe": None,
        "probe_by_size": None,
        "objective": {"value": float(value), "label": objective_label(model)},
    }
    judged = classifiers is not None and len(classifiers.networks) > 1
    ways: dict[str, Sampler] = {}
    if judged or inception is not None:
        ways = samplers(model, train, components=components, latents=latents, seed=seed)
    if classifiers is not None and judged:
        real = {m: classifiers.features(m, _seen(held_out, m)) for m in classifiers.networks}
        result["joint"] = {
            name: joint(model, sampler, classifiers, real, samples, seed).numbers() for name, sampler in ways.items()
        }
    if inception is not None:
        pictures = [m for m, shape in model.shapes.items() if is_picture(shape)]
        real = real_features(held_out, inception, pictures)
        result["fid"] = {
            "joint": {name: joint_fid(model, way(samples, seed), inception, real, seed) for name, way in ways.items()},
            "cross": cross_fid(model, held_out, inception, real, len(rows), seed),
            "samples": samples,
            "real": {m: len(x) for m, x in real.items()},
        }
    if train.labels is not None and held_out.labels is not None:
        fit_z, fit_y = posterior_draws(model, train, min(latents, len(train)), seed)
        test_z, test_y = posterior_draws(model, held_out, len(held_out), seed + 1)
        assert fit_y is not None and test_y is not None
        result["probe"] = asdict(linear_probe(fit_z, fit_y, test_z, test_y, seed=seed))
        result["probe_by_size"] = probe_by_size(model, train, held_out, probe_rows, seed)
    if likelihood is not None:
        result["likelihood"] = likelihood
    return result


def _seen(data: MultimodalDataset, name: str) -> Tensor:
    """A modality's values in the rows that have it, words as one-hot rows."""
    rows = torch.arange(len(data)) if data.masks is None else data.masks[name].nonzero().flatten()
    return data.batch(rows, [name])[name] if name in data.vocabularies else data.modalities[name][rows]


PROTOCOL = {
    "joint": "a joint sample is coherent where all classifiers agree; likelihood means, clamped to [0, 1]",
    "cross": "one draw of z a row and subset, private latents from p(w), targets outside the subset; micro: of rows, "
    "macro: of classes",
    "fid": "8-bit pictures against the split's own, Inception's pool3; its bias falls with the number of samples",
    "interval": "95%, bootstrap over rows, 1,000 resamplings",
    "probe": "logistic regression on one standardised posterior draw a row; by size: a probe for each subset",
}


def _cross_numbers(cross: CrossResult) -> dict[str, Any] | None:
    if not cross.by_size:
        return None
    single = [p.micro for p in cross.others() if len(p.given) == 1 and p.micro is not None]
    subsets: dict[tuple[str, ...], dict[str, dict[str, float | None]]] = {}
    for p in cross.others():
        subsets.setdefault(p.given, {})[p.target] = {"micro": p.micro, "macro": p.macro}
    return {
        "matrix": cross.matrix(),
        "mean": sum(single) / len(single),
        "n": cross.n,
        "by_size": {
            str(size): {"micro": r.micro, "macro": r.macro, "interval": list(r.interval), "pairs": r.pairs}
            for size, r in cross.by_size.items()
        },
        "subsets": [{"from": list(given), "to": to} for given, to in subsets.items()],
    }


def probe_by_size(
    model: MultimodalVAE, train: MultimodalDataset, held_out: MultimodalDataset, rows: int, seed: int
) -> dict[str, dict[str, float]]:
    """By number of observed modalities, a linear probe's accuracy on subsets' draws of z, one probe for each subset.

    Fitted to `rows` rows spread over `train` and measured on as many of `held_out`, those that have all of a subset.
    Source: the protocol of MoPoE (Sutter et al., ICLR 2021), which has 500 rows and posterior means.
    """
    assert train.labels is not None and held_out.labels is not None
    spread = [torch.linspace(0, len(d) - 1, min(rows, len(d))).long() for d in (train, held_out)]
    z_train, has_train = subset_latents(model, train, spread[0], seed)
    z_test, has_test = subset_latents(model, held_out, spread[1], seed + 1)
    y_train, y_test = train.labels[spread[0]], held_out.labels[spread[1]]
    found: dict[int, list[ProbeResult]] = {}
    for i in range(len(z_train)):
        a, b = has_train[i], has_test[i]
        if bool(b.any()) and len(y_train[a].unique()) > 1:
            result = linear_probe(z_train[i, a], y_train[a], z_test[i, b], y_test[b], seed=seed)
            found.setdefault((i + 1).bit_count(), []).append(result)
    return {
        str(size): {
            "test": sum(r.test for r in results) / len(results),
            "lowest": min(r.test for r in results),
            "highest": max(r.test for r in results),
            "subsets": len(results),
        }
        for size, results in sorted(found.items())
    }


def _likelihood(
    model: MultimodalVAE, data: MultimodalDataset, samples: int, rows: int, seed: int
) -> dict[str, dict[str, Any]]:
    log_z = model.prior.log_partition(seed=seed) if isinstance(model.prior, EnergyPrior) else None
    return {"joint": asdict(joint_log_likelihood(model, data, samples=samples, rows=rows, log_z=log_z, seed=seed))}


def objective_label(model: MultimodalVAE) -> str:
    """What the number is: with an energy prior it lacks -log Z(alpha) and bounds nothing."""
    return f"{model.estimator}, K={model.samples}, beta={model.beta:g}" + (
        "" if model.prior.normalised else ", without -log Z(alpha): comparable only between equal priors"
    )
