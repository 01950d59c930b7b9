"""Evaluation and figures of a run folder: which files, which settings, and the transition against separate chains."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmebm import data
from mmebm.energy import EnergyMLP
from mmebm.evaluation import figures, runs
from mmebm.evaluation.classifiers import Classifiers, DigitClassifier, load_or_train
from mmebm.evaluation.evaluate import evaluate
from mmebm.evaluation.runs import TRANSITION, draw_figures, evaluate_run, splits, transition
from mmebm.models import MMVAEPlus
from mmebm.priors import EnergyPrior, StandardLaplace
from mmebm.training import Run, load, load_config

SHAPES = {"a": (3, 8, 8), "b": (3, 8, 8)}


@pytest.fixture
def run(tiny_runs: dict[str, Path], tmp_path: Path) -> Path:
    """A run of one's own, with the energy prior."""
    return Path(shutil.copytree(tiny_runs["energy"], tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_evaluate_run_writes_one_file_a_split(run: Path, classifier_cache: Path) -> None:
    before = contents(run)
    found = {split: evaluate_run(run, split) for split in ("test", "validation")}
    after = contents(run)
    assert set(after) - set(before) == {"evaluation.json", "evaluation-validation.json"}
    assert all(after[name] == before[name] for name in before)
    assert json.loads(after["evaluation.json"]) == found["test"] == evaluate_run(run)
    assert json.loads(after["evaluation-validation.json"]) == found["validation"]
    for split, result in found.items():
        assert result["split"] == split and list(result["joint"]) == ["prior", "p_0", "gmm3", "posterior"]
        assert all(row["n"] == 60 for row in result["joint"].values()) and result["cross"]["n"] == 50
        assert result["settings"]["chain_steps"] == 3
    assert found["test"]["cross"] != found["validation"]["cross"]


def test_evaluate_run_is_evaluate_with_the_runs_settings(run: Path, classifier_cache: Path) -> None:
    values = json.loads((run / "config.json").read_text())
    values["seed"] = 5
    (run / "config.json").write_text(json.dumps(values))
    train, test = data.load("digits", "train", size=1200), data.load("digits", "test")
    sizes = {"samples": 60, "cross_rows": 50, "components": 3, "latents": 200}
    expected = evaluate(load(run), train, test, load_or_train(train, test), **sizes, seed=5)
    assert evaluate_run(run) == json.loads(json.dumps(expected | {"updates": Run.open(run).counters()["updates"]}))


def test_size_is_the_training_splits(tiny: list[str]) -> None:
    config = load_config("digits", [*tiny, "data.options.seed=7"])
    train, test = splits(config, "train", "test")
    assert (len(train), len(test)) == (1200, 2000)
    assert train.fingerprint() == data.load("digits", "train", size=1200, seed=7).fingerprint()
    assert test.fingerprint() == data.load("digits", "test", seed=7).fingerprint()


def test_folders_that_cannot_be_evaluated(run: Path, tmp_path: Path, classifier_cache: Path) -> None:
    for call in (evaluate_run, draw_figures):
        with pytest.raises(FileNotFoundError, match=r"nothing: not a run folder, it has no config\.json"):
            call(tmp_path / "nothing")
    with pytest.raises(ValueError, match="split: expected one of train, validation, test, got 'val'"):
        evaluate_run(run, "val")
    (run / "model.safetensors").unlink()
    for call in (evaluate_run, draw_figures):
        with pytest.raises(FileNotFoundError, match="run: has no weights yet"):
            call(run)
    assert not (run / "evaluation.json").exists() and not (run / "figures").exists()


# The Markov transition ----------------------------------------------------------------------------------------------


def model_and_classifiers(chains: EnergyPrior | StandardLaplace) -> tuple[MMVAEPlus, Classifiers]:
    model = MMVAEPlus(SHAPES, chains, private_dim=2, hidden=(16,)).eval()
    networks = {m: DigitClassifier(s, 4) for m, s in SHAPES.items()}
    classifiers = Classifiers(networks, {}, 1.0, 0.0)
    with torch.no_grad():
        for decoder in model.decoders.values():
            decoder.body[-2].weight.mul_(8.0)
        for m, images in model.generate(200, seed=0).items():  # so that every class is met
            networks[m].head.bias.sub_(classifiers.logits(m, images).mean(0))
    return model, classifiers


def test_the_transition_is_that_of_separate_shorter_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CHAINS", 40)
    # `steps` is for sampling: the transition goes its own way, past it.
    prior = EnergyPrior(EnergyMLP(3, (8,), spectral_norm=4.0), "normal", 1.5, steps=2, step_size=0.3, bound=20.0)
    model, classifiers = model_and_classifiers(prior)
    found = transition(model, classifiers, seed=9)
    assert TRANSITION[0] == 0 and TRANSITION[-1] == 500
    assert {len(x) for x in (found.energy, found.coherence, found.entropy)} == {len(TRANSITION)}
    assert {m: tuple(x.shape) for m, x in found.frames.items()} == {m: (len(TRANSITION), 3, *SHAPES[m]) for m in SHAPES}
    for t, step in enumerate(TRANSITION):
        z = prior.sample_reference(40, seed=9) if step == 0 else prior.sample(40, steps=step, seed=9)
        with torch.no_grad():
            assert found.energy[t] == pytest.approx(float(prior.energy_of(z).double().mean()), rel=1e-5)
        images = model.decode(z, seed=9)
        for m in SHAPES:
            torch.testing.assert_close(found.frames[m][t], images[m][:3])
        a, b = (classifiers.predict(m, images[m]).tolist() for m in SHAPES)
        assert found.coherence[t] == pytest.approx(sum(x == y for x, y in zip(a, b, strict=True)) / 40)
        shares = [(a + b).count(k) / 80 for k in range(4)]
        assert found.entropy[t] == pytest.approx(-sum(p * math.log(p) for p in shares if p) / math.log(4))
    assert len(set(found.energy)) == len(TRANSITION) and len(set(found.coherence)) > 3 and len(set(found.entropy)) > 3


def test_a_plain_prior_has_no_transition() -> None:
    model, classifiers = model_and_classifiers(StandardLaplace(3))
    with pytest.raises(ValueError, match=r"prior: the transition needs an energy prior's chains, .* StandardLaplace"):
        transition(model, classifiers)


# Figures ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CHAINS", 20)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """What each figure was drawn from: name -> positional arguments and options. Drawn all the same."""
    calls: dict[str, tuple[Any, ...]] = {}

    def recording(name: str, draw: Callable[..., None]) -> Callable[..., None]:
        def record(*args: Any, **options: Any) -> None:
            calls[name] = (*args, options)
            draw(*args, **options)

        return record

    for name in ("sample_grids", "cross_grid", "curves", "transition"):
        monkeypatch.setattr(figures, name, recording(name, getattr(figures, name)))
    return calls


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_an_energy_run_has_four_figures(
    run: Path, drawn: dict[str, tuple[Any, ...]], few_chains: None, classifier_cache: Path
) -> None:
    made = draw_figures(run)
    assert made == [run / "figures" / f"{name}.png" for name in ("joint", "cross", "curves", "transition")]
    assert all(len(np.unique(picture(path))) > 10 for path in made)
    model, test = load(run), data.load("digits", "test")

    joint = drawn["sample_grids"][0]
    assert list(joint) == ["p_0", "energy prior"]
    rows = len(joint["p_0"]["m0"])
    for m, x in model.generate(rows, seed=0).items():
        assert torch.equal(joint["energy prior"][m], x) and not torch.equal(joint["p_0"][m], x)
    inputs, outputs = drawn["cross_grid"][:2]
    shown = {m: x[: len(inputs["m0"])].float() / 255 for m, x in test.modalities.items()}
    assert all(torch.equal(inputs[m], x) for m, x in shown.items()) and list(outputs) == list(shown)
    for source in shown:
        for m, x in model.cross_generate(shown, source, seed=0).items():
            assert torch.equal(outputs[source][m], x)
    assert [row["update"] for row in drawn["curves"][0]] == [2, 4, 6]
    steps, frames, energy, *_, options = drawn["transition"]
    assert steps == TRANSITION and options["trained_steps"] == 2
    assert list(frames) == list(shown) and len(energy) == len(TRANSITION)


def test_a_plain_run_has_three(tiny_runs: dict[str, Path], tmp_path: Path, drawn: dict[str, tuple[Any, ...]]) -> None:
    run = Path(shutil.copytree(tiny_runs["laplace"], tmp_path / "run"))
    assert [path.name for path in draw_figures(run)] == ["joint.png", "cross.png", "curves.png"]
    assert list(drawn["sample_grids"][0]) == ["laplace prior"]
    assert sorted(p.name for p in (run / "figures").iterdir()) == ["cross.png", "curves.png", "joint.png"]


def test_compared_runs_stand_beside(
    run: Path, tiny_runs: dict[str, Path], drawn: dict[str, tuple[Any, ...]], few_chains: None, classifier_cache: Path
) -> None:
    before = contents(tiny_runs["laplace"])
    draw_figures(run, compare={"plain prior": tiny_runs["laplace"]})
    joint = drawn["sample_grids"][0]
    assert list(joint) == ["plain prior", "p_0", "energy prior"]
    for m, x in load(tiny_runs["laplace"]).generate(len(joint["p_0"]["m0"]), seed=0).items():
        assert torch.equal(joint["plain prior"][m], x)
    assert contents(tiny_runs["laplace"]) == before
