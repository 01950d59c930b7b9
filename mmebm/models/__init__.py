"""Published models, one file each: its objective, nothing else."""

from .base import MultimodalVAE, Objective
from .estimators import ESTIMATORS
from .mmjsd import MMJSD
from .mmvae import MMVAE
from .mmvaeplus import MMVAEPlus
from .mopoe import MoPoE
from .mvae import MVAE
from .mvtcae import MVTCAE

MODELS: dict[str, type[MultimodalVAE]] = {
    "mvae": MVAE,
    "mmvae": MMVAE,
    "mmvaeplus": MMVAEPlus,
    "mopoe": MoPoE,
    "mvtcae": MVTCAE,
    "mmjsd": MMJSD,
}

__all__ = [
    "ESTIMATORS",
    "MMJSD",
    "MMVAE",
    "MODELS",
    "MVAE",
    "MVTCAE",
    "MMVAEPlus",
    "MoPoE",
    "MultimodalVAE",
    "Objective",
]
