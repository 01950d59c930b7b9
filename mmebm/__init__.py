"""mmebm: multimodal latent generative models with an energy-based prior, on an engine for short-run Langevin chains."""

from .energy import EnergyMLP
from .posteriors import Diagonal, MixtureOfExperts
from .priors import EnergyPrior, StandardLaplace, StandardNormal
from .sampling import (
    Langevin,
    LangevinInfo,
    LogPartition,
    MalaInfo,
    NonFiniteChains,
    SamplerReport,
    StepSize,
    hmc,
    langevin,
    log_partition,
    mala,
    physics,
    short_run,
    welling_teh,
)
from .version import VERSION as __version__

__all__ = [
    "Diagonal",
    "EnergyMLP",
    "EnergyPrior",
    "Langevin",
    "LangevinInfo",
    "LogPartition",
    "MalaInfo",
    "MixtureOfExperts",
    "NonFiniteChains",
    "SamplerReport",
    "StandardLaplace",
    "StandardNormal",
    "StepSize",
    "__version__",
    "fit_energy_prior",
    "hmc",
    "langevin",
    "load",
    "load_prior",
    "log_partition",
    "mala",
    "physics",
    "short_run",
    "train",
    "welling_teh",
]


def __getattr__(name: str) -> object:
    # Training brings data sets and figures along; a sampler's user does not wait for them.
    if name in ("fit_energy_prior", "load", "train"):
        from . import training

        return getattr(training, name)
    if name == "load_prior":
        from .fit import load_prior

        return load_prior
    raise AttributeError(f"module 'mmebm' has no attribute {name!r}")
