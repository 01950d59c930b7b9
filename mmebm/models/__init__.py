"""Published models, one file each: its objective, nothing else."""

from .base import MultimodalVAE, Objective
from .estimators import ESTIMATORS
from .mmvae import MMVAE
from .mmvaeplus import MMVAEPlus

MODELS: dict[str, type[MultimodalVAE]] = {"mmvae": MMVAE, "mmvaeplus": MMVAEPlus}

__all__ = ["ESTIMATORS", "MMVAE", "MODELS", "MMVAEPlus", "MultimodalVAE", "Objective"]
