"""Training: configuration, the two alternating updates, checkpoints and run folders."""

from .build import build_model
from .config import Config, load_config
from .energy import EnergyUpdate, TrainingDiverged, fit_energy_prior
from .loop import train
from .run import Run, load

__all__ = [
    "Config",
    "EnergyUpdate",
    "Run",
    "TrainingDiverged",
    "build_model",
    "fit_energy_prior",
    "load",
    "load_config",
    "train",
]
