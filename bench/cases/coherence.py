"""Cross coherence of all subsets of modalities: one pass, and MultiVae's evaluator around the same networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.case import SUBJECT, Call, Case, Contender, Family
from bench.cases.models import EXPERTS, SEED, SERVED, batch
from bench.contenders import multivae
from mmebm.data import MultimodalDataset
from mmebm.evaluation.classifiers import Classifiers, DigitClassifier
from mmebm.evaluation.cross import cross_by_subset
from mmebm.models import MultimodalVAE

CLASSES = 10


@dataclass(frozen=True)
class Judged:
    model: MultimodalVAE
    data: MultimodalDataset
    classifiers: Classifiers


def judged(model: str, shape: tuple[int, ...], d: int, h: int, rows: int) -> Judged:
    """Networks as they are initialised: what they answer does not change what it costs."""
    made = batch(model, shape, d, h, rows)
    labels = torch.arange(rows) % CLASSES
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        networks = {m: DigitClassifier(shape, CLASSES) for m in made.inputs}
    data = MultimodalDataset(made.inputs, labels, "random", "test")
    return Judged(made.model.eval(), data, Classifiers(networks, dict.fromkeys(networks, 1.0), 1.0, 0.0))


def _ours(x: Judged) -> Call:
    def call() -> Tensor:
        found = cross_by_subset(x.model, x.data, x.classifiers, seed=SEED, errors=False)
        return torch.tensor([p.macro for p in sorted(found.others(), key=lambda p: (p.given, p.target))])

    return call


def _theirs(x: Judged) -> Call:
    theirs = multivae.model(x.model, exact=False).eval()
    assert x.data.labels is not None
    evaluate = multivae.coherence(theirs, x.data.modalities, x.data.labels, x.classifiers.networks)

    def call() -> Tensor:
        found = evaluate()
        pairs = [(tuple(given.split("_")), target) for given, _, target in (n.partition("_to_") for n in found)]
        return torch.tensor([v for _, v in sorted(zip(pairs, found.values(), strict=True))])

    return call


def _expected(x: Judged) -> tuple[Tensor, ...]:
    """With other draws: what is compared are shares of rows, whose sampling error the tolerance holds."""
    found = cross_by_subset(x.model, x.data, x.classifiers, seed=SEED + 1, errors=False)
    pairs = sorted(found.others(), key=lambda p: (p.given, p.target))
    return (torch.tensor([p.macro for p in pairs], dtype=torch.float64),)


def coherence(model: str, shape: tuple[int, ...], d: int, h: int = 400, rows: int = 2000) -> Case:
    """75 pairs of five modalities, one draw a row and subset; coherence alone, without errors."""
    sizes: dict[str, int | str] = {
        "model": model, "M": EXPERTS, "x": "x".join(map(str, shape)), "d": d, "h": h, "rows": rows,
    }  # fmt: skip
    return Case(
        name=f"coherence/{model}/{sizes['x']}",
        operator=SERVED[model],
        sizes=sizes,
        inputs=lambda: judged(model, shape, d, h, rows),
        contenders={
            SUBJECT: Contender(_ours),
            "MultiVae": Contender(_theirs, absent=multivae.absent, version=multivae.version),
        },
        work=1.0,
        unit="evaluation",
        oracle=_expected,
        tolerance=(0.0, 5.0 / (rows / CLASSES) ** 0.5),
    )


FAMILIES = (
    Family(
        coherence,
        tuple({"model": m, "shape": (3, 16, 16), "d": 16} for m in SERVED),
        {"model": "mvtcae", "shape": (3, 8, 8), "d": 4, "h": 8, "rows": 40},
    ),
)
