"""Configurations: what is refused and how it is named, overrides, presets and the way through config.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mmebm.training import Config, Run, build_model, load_config
from mmebm.training.config import ConfigError, PriorConfig, TrainConfig, overridden, parse, presets

SHAPES = {"a": (1, 4, 4)}


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("colour", "seed, device, threads, data, model, prior, train, evaluate"),
        ("model.colour", "name, latent_dim, private_dim"),
        ("prior.colour", "reference, reference_scale"),
        ("train.colour", "updates, batch_size"),
        ("train.energy.colour", "chains, steps"),
        ("evaluate.colour", "samples, cross_rows"),
        ("data.colour", "name, options"),
    ],
)
def test_unknown_keys(key: str, known: str) -> None:
    with pytest.raises(ConfigError, match=rf"^here: {re.escape(key)}: unknown key; known here: .*{known}"):
        parse(nested(key, 1), "here")


@pytest.mark.parametrize(
    ("key", "value", "takes"),
    [
        ("seed", "one", "valid integer"),
        ("seed", 1.5, "valid integer"),
        ("threads", 0, "greater than 0"),
        ("model", 5, "valid dictionary"),
        ("model.name", "vae", "'mvae', 'mmvae', 'mmvaeplus', 'mopoe', 'mvtcae' or 'mmjsd'"),
        ("model.latent_dim", 0, "greater than 0"),
        ("model.latent_dim", True, "valid integer"),
        ("model.latent_dim", "16", "valid integer"),
        ("model.hidden", 400, "valid tuple"),
        ("model.hidden", "400", "valid tuple"),
        ("model.beta", -0.5, "greater than 0"),
        ("model.beta", "0.5", "valid number"),
        ("model.beta", float("nan"), "greater than 0"),
        ("model.beta", True, "valid number"),
        ("model.posterior", "cauchy", "'laplace' or 'normal'"),
        ("model.estimator", "vimco", "'elbo', 'iwae' or 'dreg'"),
        ("model.samples", 0, "greater than 0"),
        ("model.rescale.m0", 0.0, "greater than 0"),
        ("model.private_dim", None, "mmvaeplus takes an integer >= 1"),
        ("prior.name", "flow", "'laplace', 'normal' or 'energy'"),
        ("prior.reference_scale", "wide", "'matched'"),
        ("prior.reference_scale", -1.0, "greater than 0"),
        ("prior.bound", 0.0, "greater than 0"),
        ("prior.clamp", [1.0, 2.0, 3.0], "at most 2 items"),
        ("prior.clamp", [2.0, -2.0], r"expected lower < upper, got \[2.0, -2.0\]"),
        ("prior.activation", "sine", "'silu'"),
        ("train.updates", 10.0, "valid integer"),
        ("train.amsgrad", "yes", "valid boolean"),
        ("train.amsgrad", 1, "valid boolean"),
        ("train.energy_start", -1, "greater than or equal to 0"),
        ("train.energy", 3, "valid dictionary"),
        ("train.energy.decay", "linear", "'none' or 'cosine'"),
        ("train.energy.reinitialise", 1.5, "less than or equal to 1"),
        ("train.energy.regularisation", -0.1, "greater than or equal to 0"),
        ("train.energy.betas", [0.5, 1.0], r"expected two numbers in \[0, 1\), got \[0.5, 1.0\]"),
        ("train.energy.betas", [0.5], "Field required"),
        ("train.energy.chains", 12.5, "valid integer"),
    ],
)
def test_wrong_types_and_impossible_values(key: str, value: Any, takes: str) -> None:
    with pytest.raises(ConfigError, match=rf"^configuration: {re.escape(key)}: .*{takes}"):
        parse(nested(key, value))


def test_a_place_in_a_list_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.hidden\.1: Input should be greater than 0, got 0"):
        parse({"model": {"hidden": [8, 0]}})


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse({"model": {"beta": -1.0, "colour": 1}, "train": {"energy": {"steps": 0}}, "x": 1})
    for key in ("model.beta: ", "model.colour: unknown key", "train.energy.steps: ", "x: unknown key"):
        assert key in str(error.value)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("train.updates=500", 500),
        (" train.updates = 500 ", 500),
        ("train.learning_rate=3e-4", 3e-4),
        ("train.amsgrad=false", False),
        ("train.decay=cosine", "cosine"),
        ("train.decay=none", "none"),
        ("train.energy.decay=none", "none"),
        ("train.energy.learning_rate=1", 1.0),
        ("train.energy.betas=[0.0, 0.9]", (0.0, 0.9)),
        ("model.name=mmvae", "mmvae"),
        ('model.name="mmvae"', "mmvae"),
        ("model.hidden=[64, 32]", (64, 32)),
        ("model.hidden=[]", ()),
        ("model.rescale.m0=3.92", 3.92),
        ("prior.spectral_norm=none", None),
        ("prior.reference_scale=matched", "matched"),
        ("prior.clamp=[-4, 4]", (-4.0, 4.0)),
        ("data.options.size=64", 64),
        ("data.name=polymnist", "polymnist"),
        ("seed=-3", -3),
    ],
)
def test_assignments(assignment: str, value: Any) -> None:
    found: Any = overridden({}, [assignment])
    for part in assignment.partition("=")[0].strip().split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value and type(found) is type(value)


def test_assignments_change_what_they_name_alone() -> None:
    values = {"train": {"updates": 7, "energy": {"steps": 9}}, "model": {"rescale": {"a": 2.0}}}
    found = overridden(values, ["train.energy.chains=4", "model.rescale.b=3.0", "train.energy.chains=5"])
    assert (found.train.updates, found.train.energy.steps, found.train.energy.chains) == (7, 9, 5)
    assert found.model.rescale == {"a": 2.0, "b": 3.0}
    assert found.prior == PriorConfig() and found.train.batch_size == TrainConfig().batch_size


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.updates", "--set 'train.updates': expected key=value, as in train.updates=500"),
        ("=500", "--set '=500': expected key=value"),
        ("", "--set '': expected key=value"),
        ("train.updates=many", "train.updates: Input should be a valid integer, got 'many'"),
        ("train.updates=", "train.updates: Input should be a valid integer, got ''"),
        ("train.updates=none", "train.updates: Input should be a valid integer, got None"),
        ("train.updates.x=1", "'updates' is a value, not a section"),
        ("train.colour=1", "train.colour: unknown key; known here: updates"),
        ("train.energy.colour=1", "train.energy.colour: unknown key; known here: learning_rate"),
        ("colour.x=1", "colour: unknown key; known here: seed"),
        ("train=5", "train: Input should be a valid dictionary"),
        ("model.hidden=[8, many]", r"model.hidden: .*valid tuple, got '\[8, many\]'"),
    ],
)
def test_bad_assignments(tmp_path: Path, assignment: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nupdates = 7\n")
    with pytest.raises(ConfigError, match=message):
        load_config(file, [assignment])


def test_a_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('seed = 5\n[model]\nname = "mmvae"\nhidden = [32]\n[train.energy]\nbetas = [0, 0.9]\n')
    found = load_config(file, ["seed=6"])
    assert (found.seed, found.model.name, found.model.hidden, found.train.energy.betas) == (6, "mmvae", (32,), (0, 0.9))
    assert load_config(str(file)).seed == 5
    (tmp_path / "empty.toml").write_text("")
    assert load_config(tmp_path / "empty.toml") == Config()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("bad.toml", "[model]\nlatent_dim 3\n", r"bad\.toml: Expected '=' .*line 2"),
        ("twice.toml", "seed = 1\nseed = 2\n", r"twice\.toml: Cannot overwrite a value \(at line 2"),
        ("bad.json", '{"seed": 1,}', r"bad\.json: .*line 1"),
        ("list.json", "[1]", r"list\.json: configuration: Input should be a valid dictionary"),
        ("key.toml", "[model]\ncolour = 3\n", r"key\.toml: model\.colour: unknown key"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / name)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file, nor a preset \(presets: .*digits"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="diggits: no such file, nor a preset"):
        load_config("diggits")
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path)


def test_presets_parse_and_build() -> None:
    names = presets()
    assert "digits" in names
    for name in names:
        found = load_config(name)
        assert load_config(name, ["seed=123"]) == found.model_copy(update={"seed": 123})
        shapes = SHAPES | {m: (2,) for m in {*found.model.rescale, *found.model.likelihood_scales}}
        model = build_model(found, shapes)
        assert model.prior.dim == found.model.latent_dim and model.samples == found.model.samples
        with pytest.raises(ConfigError, match=f"preset {name}: colour: unknown key"):
            load_config(name, ["colour=1"])


CHANGED = (
    "seed=-4", "threads=2", "model.hidden=[64, 32]", "model.rescale.a=3.92", "model.estimator=dreg", "model.samples=3",
    "prior.clamp=[-4, 4]", "prior.bound=2.5", "prior.spectral_norm=none", "prior.reference_scale=matched",
    "train.energy.betas=[0.0, 0.9]", "train.energy.decay=none", "train.learning_rate=1e-05", "data.options.size=64",
)  # fmt: skip


@pytest.mark.parametrize("changes", [(), CHANGED])
def test_the_way_through_config_json(tmp_path: Path, changes: tuple[str, ...]) -> None:
    before = overridden({}, changes)
    run = Run.create(tmp_path / "run", before, SHAPES)
    assert load_config(run.config) == before
    assert parse(json.loads(run.config.read_text())) == before
    assert parse(before.model_dump()) == before
    assert (before == Config()) == (not changes)


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.updates = 3  # type: ignore[misc]


def test_models_that_differ_in_the_prior_alone_start_from_the_same_weights() -> None:
    changes = ("model.latent_dim=3", "model.hidden=[8]", "prior.hidden=[8]", "seed=9")
    state = torch.random.get_rng_state()
    models = [
        build_model(overridden({}, (*changes, f"prior.name={p}")), SHAPES) for p in ("laplace", "energy", "normal")
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    first = dict(models[0].named_parameters())
    assert all(torch.equal(dict(m.named_parameters())[n], p) for m in models[1:] for n, p in first.items())
    other = build_model(overridden({}, (*changes, "seed=10")), SHAPES)
    assert not torch.equal(
        dict(other.named_parameters())["encoders.a.body.1.weight"], first["encoders.a.body.1.weight"]
    )


def test_the_priors_settings_reach_it() -> None:
    changes = (
        "prior.reference=normal", "prior.reference_scale=1.5", "prior.learn_scale=true", "prior.hidden=[8, 4]",
        "prior.activation=leaky_relu", "prior.slope=0.1", "prior.bound=3", "prior.grad_clip=2", "prior.clamp=[-5, 5]",
        "prior.steps=7", "prior.step_size=0.4", "prior.spectral_norm=none",
    )  # fmt: skip
    prior = build_model(overridden({}, changes), SHAPES).prior
    assert (prior.reference, prior.bound, prior.grad_clip, prior.clamp) == ("normal", 3.0, 2.0, (-5.0, 5.0))
    assert (prior.steps, prior.step_size, prior.log_scale.requires_grad) == (7, 0.4, True)
    assert (prior.energy.activation, prior.energy.slope, prior.energy.gain) == ("leaky_relu", 0.1, None)
    assert [tuple(layer.weight.shape) for layer in prior.energy.layers] == [(8, 16), (4, 8), (1, 4)]
    torch.testing.assert_close(prior.reference_scale.detach(), torch.full((16,), 1.5))


@pytest.mark.parametrize("name", ["mmvae", "mmvaeplus"])
def test_the_models_settings_reach_it(name: str) -> None:
    changes = (
        f"model.name={name}", "model.latent_dim=5", "model.private_dim=2", "model.posterior=normal", "model.samples=4",
        "model.likelihood=bernoulli", "model.hidden=[8, 6]", "model.estimator=dreg", "model.beta=2.5",
    )  # fmt: skip
    model = build_model(overridden({}, changes), SHAPES)
    assert (type(model).__name__, model.prior.dim) == ({"mmvae": "MMVAE", "mmvaeplus": "MMVAEPlus"}[name], 5)
    assert (model.posterior_law, model.samples, model.estimator, model.beta) == ("normal", 4, "dreg", 2.5)
    assert type(model.likelihoods["a"]).__name__ == "Bernoulli"
    linear = [tuple(p.shape) for n, p in model.encoders["a"].named_parameters() if n.endswith("weight")]
    assert linear == [(8, 16), (6, 8), (10, 6)]
    first = next(p for n, p in model.decoders["a"].named_parameters() if n.endswith("weight"))
    assert tuple(first.shape) == (6, 5 if name == "mmvae" else 7)
