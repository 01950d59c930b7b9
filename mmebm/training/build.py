"""From a configuration to modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from mmebm.energy import EnergyMLP
from mmebm.likelihoods import LIKELIHOODS
from mmebm.models import MODELS, MultimodalVAE
from mmebm.priors import EnergyPrior, Prior, StandardLaplace, StandardNormal

from .config import NORMAL_MODELS, Config, ModelConfig, PriorConfig

T = TypeVar("T")


def build_prior(config: PriorConfig, dim: int) -> Prior | EnergyPrior:
    """The prior on z [dim]; a scale "matched" to data is 1 until its trainer sets it."""
    if config.name != "energy":
        return {"laplace": StandardLaplace, "normal": StandardNormal}[config.name](dim)
    energy = EnergyMLP(dim, config.hidden, config.activation, config.slope, config.spectral_norm, config.input_scale)
    scale = 1.0 if config.reference_scale == "matched" else config.reference_scale
    return EnergyPrior(
        energy,
        config.reference,
        scale,
        learn_scale=config.learn_scale,
        bound=config.bound,
        grad_clip=config.grad_clip,
        clamp=config.clamp,
        steps=config.steps,
        step_size=config.step_size,
    )


def _per_modality(name: str, values: Mapping[str, T], default: T, shapes: Mapping[str, object]) -> dict[str, T]:
    unknown = sorted(set(values) - set(shapes))
    if unknown:
        raise ValueError(f"{name}: unknown modality {', '.join(unknown)}; the data has {', '.join(shapes)}")
    return {m: values.get(m, default) for m in shapes}


def build_model(config: Config, shapes: Mapping[str, Sequence[int]]) -> MultimodalVAE:
    """The model for modalities of these shapes, initialised from the configuration's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        # The prior comes last: models that differ in nothing else start from the same encoders and decoders.
        model = _model(config.model, shapes)
        model.prior = build_prior(config.prior, config.model.latent_dim)
    return model


def _model(config: ModelConfig, shapes: Mapping[str, Sequence[int]]) -> MultimodalVAE:
    scales = _per_modality("model.likelihood_scales", config.likelihood_scales, config.likelihood_scale, shapes)
    named = _per_modality("model.likelihoods", config.likelihoods, config.likelihood, shapes)
    options: dict[str, object] = {
        "posterior": config.posterior,
        "likelihoods": {m: LIKELIHOODS[named[m]](len(shapes[m]), scales[m]) for m in shapes},
        "rescale": _per_modality("model.rescale", config.rescale, 1.0, shapes),
        "networks": _per_modality("model.networks", config.networks, config.network, shapes),
        "hidden": config.hidden,
        "samples": config.samples,
        "estimator": config.estimator,
        "beta": config.beta,
    }
    start = (StandardNormal if config.name in NORMAL_MODELS else StandardLaplace)(config.latent_dim)
    if config.name == "mmvaeplus":
        options["private_dim"] = config.private_dim
    return MODELS[config.name](shapes, start, **options, **config.options)  # type: ignore[arg-type]
