"""Samplers: Langevin chains, step-size conventions, noise streams."""

from .conventions import StepSize, physics, short_run, welling_teh
from .langevin import LangevinInfo, NonFiniteChains, langevin
from .streams import Stream

__all__ = [
    "LangevinInfo",
    "NonFiniteChains",
    "StepSize",
    "Stream",
    "langevin",
    "physics",
    "short_run",
    "welling_teh",
]
