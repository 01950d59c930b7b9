"""What a report says of one run, gathered from its folder and its model. What cannot be had comes with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmebm.data import MultimodalDataset
from mmebm.models import MultimodalVAE
from mmebm.priors import EnergyPrior
from mmebm.sampling.info import NonFiniteChains
from mmebm.training.config import Config, load_config
from mmebm.training.run import Run, load

from ..classifiers import Classifiers
from ..coherence import class_entropy, joint_coherence
from ..evaluate import samplers
from ..runs import judges, splits
from .shown import NotFinite, Strip, View

# Samples a grid, test rows of the cross-generation matrix, chains shown of those the transition measures.
SAMPLES, ROWS, SHOWN, CHAINS = 8, 4, 8, 1000
# Steps of the transition's frames; every RECORDED-th state is kept.
RECORDED = 5
STEPS = (*range(0, 101, 5), *range(120, 301, 20), *range(350, 501, 50))
# Latents of the mixture that is shown beside the priors.
LATENTS = 5000


@dataclass(frozen=True)
class Transition:
    """Chains from p_0 at `steps`: strips with a frame a step, and what all chains measure there."""

    steps: list[int]
    strips: list[Strip]
    energy: list[float]
    coherence: list[float] | None
    entropy: list[float] | None
    marks: dict[str, int]


@dataclass(frozen=True)
class Cross:
    """Test rows and what is generated from each source: source -> target -> strip."""

    rows: list[int]
    inputs: dict[str, Strip]
    made: dict[str, dict[str, Strip]]


@dataclass
class Gathered:
    """One run. `why` says of each part that is not there ("samples", "cross", "transition", ..) why it is not."""

    name: str
    config: dict[str, Any]
    environment: dict[str, Any]
    rows: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    samples: dict[str, list[Strip]] = field(default_factory=dict)
    cross: Cross | None = None
    transition: Transition | None = None
    why: dict[str, str] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        path = self.config["data"]["options"].get("path")
        return self.config["data"]["name"] + (f" ({path})" if path else "")

    @property
    def shapes(self) -> dict[str, list[int]]:
        return self.environment.get("shapes", {})

    @property
    def prior(self) -> str:
        """The name of its prior in tables and captions."""
        name = self.config["prior"]["name"]
        return "energy prior" if name == "energy" else f"{name} prior"


def gather(path: Path | str, name: str) -> Gathered:
    """Reads the folder, then draws from the model.

    Errors: FileNotFoundError where there is no run; ValueError for files that are not what they should be.
    """
    run = Run.open(path)
    config = load_config(run.config)
    found = Gathered(
        name, config.model_dump(mode="json"), _json(run.path / "environment.json") or {}, run.rows(),
        _json(run.evaluation),
    )  # fmt: skip
    if not found.rows:
        found.why["curves"] = "the run has no metrics yet"
    if found.evaluation is None:
        found.why["evaluation"] = f"not measured yet: mmebm evaluate {run.path}"
    if not run.weights.is_file():
        found.why |= dict.fromkeys(("samples", "cross", "transition"), "the run has no weights yet")
        return found
    model = load(path)
    data = _data(config)
    views = _views(model, None if isinstance(data, str) else data[1])
    with _or_why(found, "samples"):
        _draw_samples(found, model, views, data, config)
    if isinstance(data, str):
        found.why["cross"] = data
    else:
        with _or_why(found, "cross"):
            _draw_cross(found, model, views, data[1], config.seed)
    if not isinstance(model.prior, EnergyPrior):
        found.why["transition"] = f"a {found.prior} is drawn without chains"
        return found
    judge = data if isinstance(data, str) else _classifiers(config)
    if isinstance(judge, str):
        found.why["coherence"] = judge
    with _or_why(found, "transition"):
        found.transition = _transition(model, views, None if isinstance(judge, str) else judge, config)
    return found


@contextmanager
def _or_why(found: Gathered, part: str) -> Iterator[None]:
    """A model whose values have left the finite ones has no such part."""
    try:
        yield
    except (NonFiniteChains, NotFinite) as error:
        found.why[part] = str(error)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


# Data and classifiers are shared by runs of the same configuration of data, and may not be there.


def _data(config: Config) -> tuple[MultimodalDataset, MultimodalDataset] | str:
    return _loaded(config.data.model_dump_json())


@cache
def _loaded(key: str) -> tuple[MultimodalDataset, MultimodalDataset] | str:
    config = Config.model_validate({"data": json.loads(key)})
    try:
        train, test = splits(config, "train", "test")
    except (OSError, ValueError) as error:
        return f"its data cannot be read here: {error}"
    return train, test


def _classifiers(config: Config) -> Classifiers | str:
    return _trained(config.data.model_dump_json())


@cache
def _trained(key: str) -> Classifiers | str:
    data = _loaded(key)
    if isinstance(data, str):
        return data
    try:
        return judges(*data) or "it needs labels, and two modalities or more that are pictures or strings of letters"
    except ValueError as error:
        return str(error)


def forget() -> None:
    """Data and classifiers that were shared."""
    _loaded.cache_clear()
    _trained.cache_clear()


def _views(model: MultimodalVAE, test: MultimodalDataset | None) -> dict[str, View]:
    if test is None:
        return {m: View(m, model.shapes[m]) for m in model.modalities}
    rows = test.batch(torch.arange(min(1000, len(test))))
    return {m: View(m, model.shapes[m], test.vocabularies.get(m), rows[m]) for m in model.modalities}


def _draw_samples(
    found: Gathered, model: MultimodalVAE, views: dict[str, View],
    data: tuple[MultimodalDataset, MultimodalDataset] | str, config: Config,
) -> None:  # fmt: skip
    """A grid for each way to draw z; without data the mixture on the posterior is left out."""
    seed, drawn = config.seed, {}
    if isinstance(model.prior, EnergyPrior):
        drawn["p_0"] = model.prior.sample_reference(SAMPLES, seed=seed)
    drawn["prior"] = model.prior.sample(SAMPLES, seed=seed)
    if not isinstance(data, str):
        components = min(config.evaluate.mixture_components, len(data[0]))
        latents = max(components, min(LATENTS, config.evaluate.mixture_latents))
        ways = samplers(model, data[0], components=components, latents=latents, seed=seed)
        drawn |= {way: draw(SAMPLES, seed) for way, draw in ways.items() if way.startswith("gmm")}
    for way, z in drawn.items():
        told = way_title(way, found.prior)
        found.samples[way] = [
            views[m].strip(x, f"{len(x)} samples of {m}, z from {told}") for m, x in model.decode(z, seed=seed).items()
        ]


def _draw_cross(
    found: Gathered, model: MultimodalVAE, views: dict[str, View], test: MultimodalDataset, seed: int
) -> None:
    rows = _shown_rows(test)
    if not len(rows):
        found.why["cross"] = "no test row has every modality"
        return
    inputs = test.batch(rows)
    made = {
        source: {
            m: views[m].strip(x, f"{m} generated from {source}")
            for m, x in model.cross_generate(inputs, source, seed=seed).items()
        }
        for source in model.modalities
    }
    given = {m: views[m].strip(inputs[m], f"{m} of test rows {', '.join(map(str, rows.tolist()))}") for m in made}
    found.cross = Cross(rows.tolist(), given, made)


def _shown_rows(test: MultimodalDataset) -> Tensor:
    """The first rows that have every modality, of different classes where there are labels."""
    observed = test.observed(torch.arange(len(test)))
    whole = torch.ones(len(test), dtype=torch.bool)
    for mask in (observed or {}).values():
        whole &= mask.cpu()
    rows = whole.nonzero().flatten()
    if test.labels is None:
        return rows[:ROWS]
    labels = test.labels.cpu()[rows]
    firsts = sorted(int((labels == k).nonzero()[0]) for k in labels.unique())
    return rows[firsts[:ROWS]]


def transition_steps(sampling: int) -> list[int]:
    """Of the frames: past `sampling`, the steps a sample takes, which has a frame where RECORDED divides it."""
    far = range(500, sampling + 1, max(RECORDED, (sampling - 500) // 10 // RECORDED * RECORDED))
    own = [sampling] if sampling % RECORDED == 0 else []
    return sorted({*STEPS, *far, *own})


@torch.no_grad()
def _transition(
    model: MultimodalVAE, views: dict[str, View], classifiers: Classifiers | None, config: Config
) -> Transition:
    """The numbers are those of `mmebm.evaluation.runs.transition`, on more steps, and without classifiers too."""
    prior, seed = model.prior, config.seed
    assert isinstance(prior, EnergyPrior)
    steps = transition_steps(prior.steps)
    z = prior.sample_reference(CHAINS, seed=seed)
    _, info = prior.chain(z, steps=steps[-1], seed=seed, record_every=RECORDED, return_info=True)
    frames: dict[str, list[Tensor]] = {m: [] for m in model.modalities}
    energy, coherence, entropy = [], [], []
    for step in steps:
        state = z if step == 0 else info.states[step // RECORDED - 1]
        energy.append(float(prior.energy_of(state).mean()))
        made = model.decode(state if classifiers else state[:SHOWN], seed=seed)
        for m, x in made.items():
            frames[m].append(x[:SHOWN])
        if classifiers:
            predictions = {m: classifiers.predict(m, made[m]) for m in classifiers.networks}
            coherence.append(joint_coherence(predictions))
            entropy.append(class_entropy(predictions, classifiers.n_classes))
    strips = [views[m].strip(torch.stack(x), f"{SHOWN} chains, decoded as {m}") for m, x in frames.items()]
    marks = {f"training: {(k := config.train.energy.steps)}": k, f"sampling: {prior.steps}": prior.steps}
    marks = {name: step for name, step in marks.items() if step <= steps[-1]}
    return Transition(
        steps, strips, energy, coherence if classifiers else None, entropy if classifiers else None, marks
    )


def way_title(way: str, prior: str) -> str:
    """A way to draw z in words."""
    if way.startswith("gmm"):
        return f"a mixture of {way.removeprefix('gmm')} Gaussians on the posterior"
    return {"prior": f"the {prior}", "p_0": "p₀, where its chains start", "posterior": "the posterior"}.get(way, way)
