"""A training step: the energy's update on either backend, and the chains in it alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.case import SUBJECT, Call, Case, Contender, Family
from mmebm.sampling.streams import Stream
from mmebm.training.build import build_prior
from mmebm.training.energy import EnergyUpdate, settings_for

REFERENCE = {"MMEBM_BACKEND": "reference"}


def energy_update(positives: int, chains: int, h: int) -> Case:
    """As `fit_energy_prior` does it: latents of dimension 8, K = 20, persistent chains, spectral norm, Adam."""

    def latents() -> Tensor:
        return 0.5 * torch.randn(positives, 8, generator=torch.Generator().manual_seed(0))

    def update(z: Tensor) -> EnergyUpdate:
        prior, train = settings_for(z)
        torch.manual_seed(0)
        built = build_prior(prior.model_copy(update={"hidden": (h, h)}), z.shape[1])
        return EnergyUpdate(built, train.model_copy(update={"chains": chains}), Stream(0), 10**6)  # type: ignore[arg-type]

    def whole(z: Any) -> Call:
        made = update(z)
        return lambda: made.step(z)["E_gap"]

    def chains_alone(z: Any) -> Call:
        return update(z).negatives

    return Case(
        name=f"training/energy_update/h{h}",
        operator="langevin",
        sizes={"positives": positives, "chains": chains, "d": 8, "h": h, "L": 2, "K": 20},
        inputs=latents,
        contenders={
            SUBJECT: Contender(whole),
            f"{SUBJECT} on reference": Contender(whole, environment=REFERENCE),
            f"{SUBJECT}'s chains alone": Contender(chains_alone, gate="none"),
            f"{SUBJECT}'s chains alone on reference": Contender(chains_alone, gate="none", environment=REFERENCE),
        },
        work=1.0,
        unit="update",
        # The first update of the same state on the same noise.
        oracle=lambda z: (_first_gap(update(z), z),),
        select=lambda _, gap: (gap,),
        tolerance=(1e-3, 1e-4),
    )


def _first_gap(update: EnergyUpdate, z: Tensor) -> Tensor:
    """E_q - E_p of the first update in float64, its chains from the same starts and noise."""
    prior = update.prior.double()
    negatives = update.negatives()  # draws are float32, the chain runs in the starts' precision
    return (prior.energy_of(z.double()).mean() - prior.energy_of(negatives.double()).mean()).detach()


FAMILIES = (
    Family(
        energy_update,
        ({"positives": 512, "chains": 256, "h": 128}, {"positives": 512, "chains": 1024, "h": 256}),
        {"positives": 32, "chains": 16, "h": 8},
    ),
)
