"""An energy prior for given latents or a run's posterior: what is fitted, kept, read back and refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mmebm
from mmebm import cli, fit
from mmebm.evaluation.classifiers import load_or_train
from mmebm.evaluation.evaluate import joint, posterior_draws
from mmebm.evaluation.runs import splits
from mmebm.fit import fit_prior_of, load_prior, read_latents, save_prior
from mmebm.priors import EnergyPrior
from mmebm.training import fit_energy_prior, load, load_config
from mmebm.training.config import Config, parse
from mmebm.training.energy import settings_for

SMALL = [
    "prior.hidden=[8]", "prior.spectral_norm=2.0", "prior.steps=5", "train.energy.chains=16", "train.energy.steps=2"
]  # fmt: skip
FILES = {"prior.json", "prior.safetensors"}


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Fit = Callable[..., Ended]


@pytest.fixture
def fit_prior(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fit:
    """`mmebm fit-prior` with few updates and a small net."""

    def run(*arguments: object, overrides: list[str] = SMALL) -> Ended:
        sets = [word for override in overrides for word in ("--set", override)]
        monkeypatch.setattr(sys, "argv", ["mmebm", "fit-prior", "--updates", "3", *map(str, arguments), *sets])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


def fitted_to(z: Tensor, seed: int) -> EnergyPrior:
    """What the library makes of z with SMALL."""
    prior, train = settings_for(z)
    return fit_energy_prior(
        z, prior=prior.model_copy(update={"hidden": (8,), "spectral_norm": 2.0, "steps": 5}),
        train=train.model_copy(update={"chains": 16, "steps": 2}), updates=3, seed=seed,
    )  # fmt: skip


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def latents(n: int = 200, d: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(1.0, 0.5, (n, d)).astype(np.float32)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    np.save(tmp_path / "z.npy", latents())
    return tmp_path / "z.npy"


# Files of latents ---------------------------------------------------------------------------------------------------


def test_a_file_of_latents(fit_prior: Fit, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "fitted"
    ended = fit_prior("--latents", saved, "--output", out)
    assert ended.code == 0 and ended.err == ""
    assert f"fitted prior: {out}\n" in ended.out and "posterior" not in ended.out  # nothing to compare with
    assert names(out) == FILES
    expected = fitted_to(torch.from_numpy(latents()), 0)
    prior = mmebm.load_prior(out)
    assert not prior.training and prior.dim == 3
    assert torch.equal(prior.sample(20, seed=5), expected.sample(20, seed=5))
    assert torch.equal(prior.sample(20, seed=5, steps=40), expected.sample(20, seed=5, steps=40))
    z = torch.randn(10, 3)
    assert torch.equal(prior.log_prob(z), expected.log_prob(z))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_latents_of_any_floating_type(dtype: type[np.floating], tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.asfortranarray(latents().astype(dtype)))
    z = read_latents(tmp_path / "z.npy")
    assert z.dtype == torch.float32 and torch.equal(z, torch.from_numpy(latents().astype(dtype).astype(np.float32)))


def holding(rows: int, columns: int, value: float, at: tuple[int, ...] = (4, 7)) -> np.ndarray:
    z = np.zeros((rows, columns))
    z[list(at), 1] = value
    return z


BAD: dict[str, tuple[object, str]] = {
    "nan": (holding(9, 2, np.nan), "expected finite float32 latents, got NaN or infinity in 2 of 9 rows, the first is"),
    "inf": (holding(9, 2, -np.inf, (5,)), "got NaN or infinity in 1 of 9 rows, the first is row 5"),
    "beyond float32": (holding(9, 2, 1e300), "expected finite float32 latents"),
    "1-D": (np.zeros(7), "expected floating latents [n, d], got float64 [7]"),
    "3-D": (np.zeros((7, 2, 2)), "expected floating latents [n, d], got float64 [7, 2, 2]"),
    "integers": (np.zeros((7, 2), dtype=np.int64), "expected floating latents [n, d], got int64 [7, 2]"),
    "no rows": (np.zeros((0, 2)), "z.npy: expected floating latents [n, d], got float64 [0, 2]"),
    "objects": (np.array([[1.0, None]], dtype=object), "z.npy: expected a .npy file of numbers"),
    "text": ("0.1 0.2\n", "z.npy: expected a .npy file of numbers"),
    "nothing": ("", "z.npy: expected a .npy file of numbers"),
    "archive": ({"a": np.zeros((3, 2))}, "z.npy: expected a .npy file of one array, got an archive"),
    "missing": (None, "z.npy: no such file"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("case", list(BAD))
def test_latents_that_are_none(case: str, fit_prior: Fit, tmp_path: Path) -> None:
    content, words = BAD[case]
    path = tmp_path / "z.npy"
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, dict):
        with path.open("wb") as file:
            np.savez(file, **content)
    elif content is not None:
        np.save(path, content)
    ended = fit_prior("--latents", path, "--output", tmp_path / "out")
    assert ended.code == 1 and ended.err.startswith("error: ") and words in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rows", [1, 5])
def test_latents_without_spread(rows: int, fit_prior: Fit, tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.full((rows, 3), 0.7, dtype=np.float32))
    ended = fit_prior("--latents", tmp_path / "z.npy", "--output", tmp_path / "out")
    assert ended.code == 1 and f"z: expected rows that differ, got {rows} equal" in ended.err
    assert not (tmp_path / "out").exists()


def test_two_rows_of_latents_are_enough(fit_prior: Fit, tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", latents(2))
    assert fit_prior("--latents", tmp_path / "z.npy", "--output", tmp_path / "out").code == 0
    assert bool(torch.isfinite(load_prior(tmp_path / "out").sample(5, seed=0)).all())


# Arguments ----------------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit(fit_prior: Fit, saved: Path, tmp_path: Path) -> None:
    before = names(tmp_path)
    out = ["--output", tmp_path / "out"]
    for arguments, overrides, words in (
        (out, SMALL, "run, latents: expected exactly one of them"),
        ([tmp_path / "run", "--latents", saved, *out], SMALL, "run, latents: expected exactly one of them"),
        (["--latents", saved], SMALL, "output: expected a folder for a prior fitted to a file of latents"),
        ([tmp_path / "nothing"], SMALL, "nothing: not a run folder, it has no config.json"),
        (["--latents", saved, *out], ["prior.name=laplace"], "prior.name: expected 'energy', the prior that is fitted"),
        (["--latents", saved, *out], ["prior.bond=1"], "prior.bond: unknown key; known here: name, reference,"),
        # Set, they would change nothing.
        (["--latents", saved, *out], ["train.updates=5"], "--set 'train.updates=5': fitting a prior takes keys under"),
        (["--latents", saved, *out], ["model.beta=2"], "--set 'model.beta=2': fitting a prior takes keys under prior."),
    ):
        ended = fit_prior(*arguments, overrides=overrides)
        assert ended.code == 1 and ended.err.startswith("error: ") and words in ended.err
    assert names(tmp_path) == before


def test_a_fitted_prior_is_replaced_by_force_only(fit_prior: Fit, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fit_prior("--latents", saved, "--output", out).code == 0
    first = {p.name: p.read_bytes() for p in out.iterdir()}
    ended = fit_prior("--latents", saved, "--output", out, "--seed", 1)
    assert ended.code == 1 and f"{out}: holds a fitted prior; choose another folder or force" in ended.err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == first
    with pytest.raises(FileExistsError, match=r"prior\.json: exists; choose another folder or force"):
        save_prior(load_prior(out), Config(), out)
    assert fit_prior("--latents", saved, "--output", out, "--seed", 1, "--force").code == 0
    assert (out / "prior.safetensors").read_bytes() != first["prior.safetensors"]


# Reading back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"spectral_norm": 3.0, "activation": "leaky_relu", "slope": 0.05},
        {"spectral_norm": None, "bound": 4.0, "reference": "normal", "reference_scale": 1.7},
        {"learn_scale": True, "grad_clip": 2.0, "clamp": [-6.0, 6.0], "step_size": 0.05},
        {"reference_scale": "matched", "activation": "tanh", "hidden": [7, 5]},
    ],
)
def test_every_setting_survives(settings: dict[str, object], tmp_path: Path) -> None:
    config = parse({"prior": {"hidden": [8], "steps": 5, "spectral_norm": 2.0} | settings})
    z = torch.from_numpy(latents()) * torch.tensor([1.0, 2.0, 0.1])
    prior = fit_energy_prior(z, prior=config.prior, train=config.train.energy, updates=3, seed=1)
    save_prior(prior, config, tmp_path / "out")
    again = load_prior(str(tmp_path / "out"))
    assert json.loads((tmp_path / "out/prior.json").read_text())["prior"] == config.prior.model_dump(mode="json")
    for steps in (None, 30):
        assert torch.equal(again.sample(16, seed=2, steps=steps), prior.sample(16, seed=2, steps=steps))
    assert torch.equal(again.log_prob(z), prior.log_prob(z))
    # And by what the settings mean, not by the object that was saved: another prior differs.
    other = fit_energy_prior(z, prior=config.prior, train=config.train.energy, updates=3, seed=2)
    assert not torch.equal(other.sample(16, seed=2), prior.sample(16, seed=2))


def test_folders_that_hold_no_prior(fit_prior: Fit, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing: has no prior\.json"):
        load_prior(tmp_path / "nothing")
    out = tmp_path / "out"
    assert fit_prior("--latents", saved, "--output", out).code == 0
    good, weights = json.loads((out / "prior.json").read_text()), load_file(out / "prior.safetensors")
    for text, words in (
        ("{", r"prior\.json: expected the dimension and the settings of a prior"),
        ("[]", r"prior\.json: expected the dimension and the settings of a prior"),
        (json.dumps({"prior": good["prior"]}), r"prior\.json: expected the dimension and the settings .* 'dim'"),
        (json.dumps(good | {"prior": good["prior"] | {"colour": 1}}), r"prior\.json: prior\.colour: unknown key"),
        (json.dumps(good | {"prior": good["prior"] | {"name": "normal"}}), "expected an energy prior, got 'normal'"),
        (json.dumps(good | {"dim": 4}), r"prior\.safetensors: expected the weights of the prior in prior\.json"),
    ):
        (out / "prior.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            load_prior(out)
    (out / "prior.json").write_text(json.dumps(good))
    save_file({k: v for k, v in weights.items() if not k.endswith("bias")}, out / "prior.safetensors")
    with pytest.raises(ValueError, match=r"prior\.safetensors: expected the weights"):
        load_prior(out)
    (out / "prior.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"prior\.safetensors: expected the weights"):
        load_prior(out)


# A run's posterior --------------------------------------------------------------------------------------------------


def test_a_runs_posterior(
    fit_prior: Fit, tiny_runs: dict[str, Path], tmp_path: Path, classifier_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "LATENTS", 300)
    run = Path(shutil.copytree(tiny_runs["laplace"], tmp_path / "run"))
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    ended = fit_prior(run, "--seed", 4)
    assert ended.code == 0 and ended.err == "" and f"fitted prior: {run}/fitted-prior\n" in ended.out
    assert names(run) == {*before, "fitted-prior"} and names(run / "fitted-prior") == FILES
    assert all((run / name).read_bytes() == content for name, content in before.items())  # the model is frozen
    printed = [line.strip("│ ").split("│")[0].strip() for line in ended.out.splitlines() if line.startswith("│")]
    assert printed == ["prior", "gmm3", "posterior", "fitted"]
    assert "frozen posterior, validation split (60 samples)" in ended.out

    model, settings = load(run), load_config(run / "config.json")
    z, _ = posterior_draws(model, splits(settings, "train")[0], 300, 4)
    expected = fitted_to(z, 4)
    fitted = load_prior(run / "fitted-prior")
    assert torch.equal(fitted.sample(10, seed=0), expected.sample(10, seed=0))
    # It stands in the model it was fitted for.
    model.prior = fitted
    assert all(x.shape[0] == 10 for x in model.generate(10, seed=0).values())


def test_the_comparison_is_of_the_fitted_prior(
    tiny_runs: dict[str, Path], tmp_path: Path, classifier_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "LATENTS", 300)
    seen: list[tuple[int, dict[str, float]]] = []
    folder, result = fit_prior_of(
        tiny_runs["energy"], None, tmp_path / "out", updates=3, overrides=SMALL, progress=lambda *now: seen.append(now)
    )
    assert folder == tmp_path / "out" and [update for update, _ in seen] == [3] and "E_gap" in seen[0][1]
    assert list(result) == ["prior", "p_0", "gmm3", "posterior", "fitted"]
    assert {row["n"] for row in result.values()} == {60}
    model, prior = load(tiny_runs["energy"]), load_prior(folder)
    train, validation, test = splits(load_config(tiny_runs["energy"] / "config.json"), "train", "validation", "test")
    classifiers = load_or_train(train, test)
    real = {m: classifiers.features(m, x) for m, x in validation.modalities.items()}
    for name, draw in {"fitted": prior.sample, "prior": model.prior.sample}.items():
        assert result[name] == joint(model, lambda n, s, draw=draw: draw(n, seed=s), classifiers, real, 60, 0).numbers()
    assert len({row["mean_frechet"] for row in result.values()}) == 5
