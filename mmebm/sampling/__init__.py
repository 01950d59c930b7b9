"""Samplers: Langevin, MALA and HMC chains, step sizes and schedules, noise streams, diagnostics, log Z."""

from . import schedules
from .conventions import StepSize, physics, short_run, welling_teh
from .diagnostics import autocorrelation, effective_sample_size, mcse, rhat
from .hmc import hmc
from .info import LangevinInfo, MalaInfo, NonFiniteChains
from .langevin import langevin
from .mala import mala
from .partition import LogPartition, bracket, log_partition
from .report import SamplerReport, plot_energy, summarise
from .sampler import Langevin
from .streams import Stream

__all__ = [
    "Langevin",
    "LangevinInfo",
    "LogPartition",
    "MalaInfo",
    "NonFiniteChains",
    "SamplerReport",
    "StepSize",
    "Stream",
    "autocorrelation",
    "bracket",
    "effective_sample_size",
    "hmc",
    "langevin",
    "log_partition",
    "mala",
    "mcse",
    "physics",
    "plot_energy",
    "rhat",
    "schedules",
    "short_run",
    "summarise",
    "welling_teh",
]
