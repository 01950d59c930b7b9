"""Samplers: Langevin, MALA and HMC chains, step-size conventions and schedules, noise streams, diagnostics."""

from .conventions import StepSize, physics, short_run, welling_teh
from .hmc import hmc
from .info import LangevinInfo, MalaInfo, NonFiniteChains
from .langevin import langevin
from .mala import mala
from .partition import LogPartition, bracket, log_partition
from .sampler import Langevin
from .streams import Stream

__all__ = [
    "Langevin",
    "LangevinInfo",
    "LogPartition",
    "MalaInfo",
    "NonFiniteChains",
    "StepSize",
    "Stream",
    "bracket",
    "hmc",
    "langevin",
    "log_partition",
    "mala",
    "physics",
    "short_run",
    "welling_teh",
]
