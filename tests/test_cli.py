"""The command line as people meet it: what it prints, what it leaves behind, how it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mmebm import cli
from mmebm.evaluation import figures, runs
from mmebm.priors import EnergyPrior, StandardLaplace
from mmebm.training import Run, load, load_config

HELP = {
    "train": ["--config", "--preset", "--set", "--output", "--resume", "--force", "train.updates=500"],
    "evaluate": ["RUN", "--split", "validation"],
    "figures": ["RUN"],
    "report": ["RUN...", "--output"],
    "fit-prior": ["[RUN]", "--latents", "[n, d]", "--output", "--updates", "--seed", "--set", "--force"],
    "demo": ["--output", "--set"],
    "profile": ["CALL", "--tool", "--from", "--output", "--repeat", "--device", "--backend"],
    "info": [],
    "generate": ["--rows", "--output", "--to", "--steps", "--shard", "--format", "--dtype", "--seed"],
    "cross-generate": ["--from", "--to", "--input", "--output", "--rows", "--refine", "--shard", "--format", "--seed"],
}


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Mmebm = Callable[..., Ended]


def plain(text: str) -> str:
    """Without colours and borders, on one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


@pytest.fixture
def mmebm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mmebm:
    """The entry point in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["mmebm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


def child(*arguments: object) -> Ended:
    """The same in a process of its own."""
    made = subprocess.run(
        [sys.executable, "-m", "mmebm.cli", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return Ended(made.returncode, made.stdout, made.stderr)


def sets(overrides: list[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(run: Path) -> list[dict[str, Any]]:
    """The metrics, without what the clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "updates_per_second"} for row in lines]


def same_tensors(a: Path, b: Path) -> bool:
    one, two = load_file(a), load_file(b)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture
def run(tiny_runs: dict[str, Path], tmp_path: Path) -> Path:
    """A run of one's own, with the energy prior."""
    return Path(shutil.copytree(tiny_runs["energy"], tmp_path / "run"))


# Help and usage -----------------------------------------------------------------------------------------------------


def test_every_command_is_helped() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"])
    assert shown.exit_code == 0 and {c.name or c.callback.__name__ for c in cli.app.registered_commands} == set(HELP)
    assert all(f" {name} " in plain(shown.output) for name in HELP)


@pytest.mark.parametrize("command", list(HELP))
def test_help_names_the_options(command: str) -> None:
    shown = CliRunner().invoke(cli.app, [command, "--help"])
    assert shown.exit_code == 0
    assert [word for word in HELP[command] if word not in plain(shown.output)] == []


def test_usage_errors(mmebm: Mmebm) -> None:
    assert "fit-prior" in mmebm().out
    assert mmebm("trian").code == 2 and "trian" in mmebm("trian").err
    assert mmebm("evaluate").code == 2 and "RUN" in mmebm("evaluate").err
    assert mmebm("fit-prior", "--updates", 0).code == 2


# Train --------------------------------------------------------------------------------------------------------------


def test_train_leaves_a_run(mmebm: Mmebm, tiny: list[str], tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / ("a name that is longer than a line of eighty characters would be, and " + "[has] brackets")
    ended = mmebm("train", "--preset", "digits", "--output", folder, *sets(tiny))
    assert ended.code == 0 and ended.err == ""
    assert f"trained: {folder}\n" in ended.out
    assert set(contents(folder)) == {
        "checkpoint.safetensors", "config.json", "environment.json", "metrics.jsonl", "model.safetensors"
    }  # fmt: skip
    assert load_config(folder / "config.json") == load_config("digits", tiny)
    assert [row["update"] for row in rows(folder)] == [2, 4, 6]
    assert isinstance(load(folder).prior, EnergyPrior)
    assert same_tensors(folder / "model.safetensors", tiny_runs["energy"] / "model.safetensors")


def test_train_by_a_file(
    mmebm: Mmebm, tiny: list[str], tiny_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preset = resources.files("mmebm").joinpath("presets/digits.toml").read_text()
    Path("mine.toml").write_text(preset.replace('name = "energy"', 'name = "laplace"'))
    ended = mmebm("train", "--config", "mine.toml", *sets(tiny))
    assert ended.code == 0 and "trained: runs/mine\n" in ended.out
    assert isinstance(load("runs/mine").prior, StandardLaplace)
    assert same_tensors(Path("runs/mine/model.safetensors"), tiny_runs["laplace"] / "model.safetensors")


def digits(*overrides: str) -> list[str]:
    return ["--preset", "digits", *sets(list(overrides))]


REFUSED: dict[str, tuple[list[str], str]] = {
    "neither": ([], "expected one of --config FILE and --preset NAME"),
    "both": ([*digits(), "--config", "broken.toml"], "expected one of --config FILE and --preset NAME"),
    "unknown preset": (["--preset", "digit"], "digit: no such file, nor a preset (presets: digits, digits-base, "),
    "no file": (["--config", "nothing.toml"], "nothing.toml: no such file, nor a preset"),
    "no toml": (["--config", "broken.toml"], "broken.toml: "),
    "key of a file": (["--config", "unknown.toml"], "unknown.toml: train.update: unknown key; known here: updates, "),
    "key": (digits("train.update=5"), "train.update: unknown key; known here: updates, batch_size, "),
    "section": (digits("training.updates=5"), "training: unknown key; known here: seed, "),
    "type": (digits("train.updates=many"), "train.updates: "),
    "value": (digits("model.beta=0"), "model.beta: "),
    "assignment": (digits("train.updates"), "--set 'train.updates': expected key=value"),
    "data": (
        digits("data.name=mnist"),
        "name: expected one of arrays, ",
    ),
    "option": (digits("data.options.colour=1"), "colour"),
    "option's type": (digits("data.options.size=1.5"), "size: expected a number of rows or None, got float"),
    "empty dataset": (digits("data.options.size=0"), "size: expected at least 1 row, got 0"),
    "missing files": (digits("data.name=polymnist"), "polymnist: expected its files under data_dir or the environment"),
    "missing modality": (
        digits("data.name=polymnist", "data.options.data_dir=some", "data.options.n_validation=0"),
        "polymnist: expected one background picture (jpg or png) for each modality in some/polymnist_backgrounds",
    ),
    "modality": (digits("model.rescale.m9=0.5"), "model.rescale: unknown modality m9; the data has m0, m1, m2, m3, m4"),
    "a file as folder": ([*digits(), "--output", "broken.toml"], "broken.toml"),
    "resume without a run": (["--resume"], "--resume: expected --output RUN and nothing else"),
    "resume something else": (["--resume", "--output", "some", "--set", "seed=1"], "--resume: expected --output RUN"),
    "resume by force": (["--resume", "--output", "some", "--force"], "--resume: expected --output RUN"),
    "resume no run": (["--resume", "--output", "some"], "some: not a run folder, it has no config.json"),
}


def write_mnist(folder: Path, images: int) -> None:
    folder.mkdir(parents=True)
    for kind, shape in (("images-idx3", (images, 28, 28)), ("labels-idx1", (images,))):
        head = bytes((0, 0, 8, len(shape))) + b"".join(n.to_bytes(4, "big") for n in shape)
        (folder / f"train-{kind}-ubyte").write_bytes(head + bytes(math.prod(shape)))


@pytest.mark.parametrize("case", list(REFUSED))
def test_train_refuses(case: str, mmebm: Mmebm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMEBM_DATA_DIR", raising=False)
    monkeypatch.setattr("mmebm.training.loop.Trainer.update", lambda *_: pytest.fail("trained"))
    Path("broken.toml").write_text("train = [")
    Path("unknown.toml").write_text("[train]\nupdate = 5\n")
    write_mnist(Path("some/mnist"), 3)
    before = contents(tmp_path)
    arguments, words = REFUSED[case]
    ended = mmebm("train", *arguments)
    assert ended.code == 1 and ended.err.startswith("error: ") and words in ended.err
    assert ended.err.rstrip("\n").count("\n") <= 1  # no traceback
    assert contents(tmp_path) == before


def test_a_run_is_replaced_by_force_only(mmebm: Mmebm, run: Path, tiny: list[str], tmp_path: Path) -> None:
    (run / "evaluation.json").write_text("{}")
    before = contents(run)
    command = ["train", *digits(*tiny, "train.updates=2", "prior.name=normal"), "--output", run]
    ended = mmebm(*command)
    assert ended.code == 1 and f"{run}: exists and is not empty; resume it, choose another, or force" in ended.err
    assert contents(run) == before
    assert mmebm(*command, "--force").code == 0
    assert [row["update"] for row in rows(run)] == [2] and type(load(run).prior).__name__ == "StandardNormal"
    assert not (run / "evaluation.json").exists()  # it was another model's
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").write_text("words")
    ended = mmebm(*command[:-1], other, "--force")
    assert ended.code == 1 and "thesis: is not a run folder; nothing in it was touched" in ended.err
    assert contents(other) == {"chapter.tex": b"words"}


def test_an_interrupted_run_is_resumed(
    mmebm: Mmebm, tiny: list[str], tiny_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupted(*_: object) -> Any:
        def show(update: int, metrics: dict[str, float]) -> None:
            if update == 4:  # the last checkpoint is of update 3
                raise KeyboardInterrupt

        yield show

    with monkeypatch.context() as patch:
        patch.setattr(cli, "progress_bar", interrupted)
        assert mmebm("train", *digits(*tiny), "--output", tmp_path / "run").code != 0
    assert Run(tmp_path / "run").counters()["updates"] == 3
    assert mmebm("train", "--resume", "--output", tmp_path / "run").code == 0
    assert rows(tmp_path / "run") == rows(tiny_runs["energy"])
    for name in ("model", "checkpoint"):
        assert same_tensors(tmp_path / f"run/{name}.safetensors", tiny_runs["energy"] / f"{name}.safetensors")


def test_a_finished_run_is_resumed_in_vain_or_for_longer(mmebm: Mmebm, run: Path) -> None:
    before = contents(run)
    ended = mmebm("train", "--resume", "--output", run)
    assert ended.code == 0 and f"trained: {run}\n" in ended.out
    assert contents(run) == before
    values = json.loads((run / "config.json").read_text())
    values["train"]["updates"] = 8
    (run / "config.json").write_text(json.dumps(values))
    assert mmebm("train", "--resume", "--output", run).code == 0
    assert [row["update"] for row in rows(run)] == [2, 4, 6, 8]
    assert Run(run).counters()["updates"] == 8
    assert contents(run)["model.safetensors"] != before["model.safetensors"]


@pytest.mark.parametrize("name", ["mmvae", "mmvaeplus"])
def test_one_row_is_enough(name: str, mmebm: Mmebm, tiny: list[str], tmp_path: Path) -> None:
    one = ["data.options.size=1", "train.batch_size=1", "train.updates=2", f"model.name={name}"]
    assert mmebm("train", *digits(*tiny, *one), "--output", tmp_path / "run").code == 0
    (row,) = rows(tmp_path / "run")
    assert row["update"] == 2 and all(math.isfinite(value) for value in row.values())


def test_divergence_says_what_to_do_and_keeps_the_state(mmebm: Mmebm, tiny: list[str], tmp_path: Path) -> None:
    ended = mmebm("train", *digits(*tiny, "train.energy.largest_gap=1e-9"), "--output", tmp_path / "run")
    assert ended.code == 1
    assert re.search(r"^error: update 2: E_gap is .*, over 1e-09.*prior\.spectral_norm", ended.err, re.M)
    assert Run(tmp_path / "run").counters()["updates"] == 0 and load(tmp_path / "run") is not None


# Evaluate and figures -----------------------------------------------------------------------------------------------


def cells(out: str) -> list[list[str]]:
    """The rows of the printed tables."""
    return [[cell.strip() for cell in line.strip("│ ").split("│")] for line in out.splitlines() if line.startswith("│")]


def shown(row: dict[str, Any]) -> list[str]:
    coherence = f"{row['coherence']:.3f} ± {row['standard_error']:.3f}"
    return [coherence, f"{row['entropy']:.3f}", f"{row['mean_frechet']:.1f}"]


def sizes_row(result: dict[str, Any], size: str) -> list[str]:
    probe = f"{result['probe_by_size'][size]['test']:.3f}"
    if size == "5":  # of all modalities none is left to be generated
        return ["5", "-", "-", probe, "-"]
    cross, errors = result["cross"]["by_size"][size], result["reconstruction"]["by_size"][size]
    low, high = cross["interval"]
    rmse = sum(errors[m]["rmse"] for m in errors) / 5
    return [size, f"{cross['micro']:.3f} ({low:.3f} to {high:.3f})", f"{cross['macro']:.3f}", probe, f"{rmse:.4f}"]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_evaluate_prints_what_it_wrote(split: str, mmebm: Mmebm, run: Path, classifier_cache: Path) -> None:
    ended = mmebm("evaluate", run, *([] if split == "test" else ["--split", split]))
    assert ended.code == 0 and ended.err == ""
    result = json.loads((run / f"evaluation{'' if split == 'test' else '-validation'}.json").read_text())
    assert f"run, {split} split (60 samples)" in ended.out
    table = cells(ended.out)
    assert table[:4] == [[name, *shown(row)] for name, row in result["joint"].items()]
    assert table[4:] == [sizes_row(result, str(size)) for size in range(1, 6)]
    assert f"cross coherence: {result['cross']['mean']:.3f} (n = 50 rows a pair)\n" in ended.out
    assert f"linear probe on z: {result['probe']['test']:.3f}\n" in ended.out
    assert f"objective: {result['objective']['value']:.2f} (elbo, K=1, beta=1, without -log Z(alpha)" in ended.out
    for m, accuracy in result["classifier_accuracy"].items():
        assert f"{m} {accuracy:.3f}" in ended.out
    assert f"real tuples agree: {result['real_agreement']:.3f}\n" in ended.out
    for fact in ("samples_K=1", "estimator=elbo", "beta=1.0", "Laplace(scale=0.3)", "chain_steps=3", "step_size=0.2"):
        assert fact in ended.out


def test_a_run_is_named_whatever_the_folder_is_called(
    mmebm: Mmebm, run: Path, classifier_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run.rename(run.with_name("[b]old"))
    monkeypatch.chdir(run)
    assert "[b]old, test split" in mmebm("evaluate", ".").out


def test_evaluate_refuses(mmebm: Mmebm, run: Path, tmp_path: Path, classifier_cache: Path) -> None:
    ended = mmebm("evaluate", run, "--split", "val")
    assert ended.code == 1 and "split: expected one of train, validation, test, got 'val'" in ended.err
    (run / "model.safetensors").rename(run / "elsewhere")
    for command in ("evaluate", "figures"):
        assert mmebm(command, run) == (1, "", f"error: {run}: has no weights yet\n")
    assert not (run / "evaluation.json").exists() and not (run / "figures").exists()


def test_energies_that_are_not_finite_are_no_result(mmebm: Mmebm, run: Path, classifier_cache: Path) -> None:
    weights = load_file(run / "model.safetensors")
    name = next(k for k in weights if k.startswith("prior.energy") and k.endswith("bias"))
    save_file(weights | {name: torch.full_like(weights[name], math.nan)}, run / "model.safetensors")
    for command in ("evaluate", "figures"):
        ended = mmebm(command, run)
        assert ended.code == 1 and re.match(r"error: \d+ of \d+ chains are not finite after 3 steps", ended.err)
    assert not (run / "evaluation.json").exists()


def test_figures_prints_where_they_are(
    mmebm: Mmebm, run: Path, classifier_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "CHAINS", 20)
    deep = run.rename(run.with_name("a folder whose name makes the line longer than eighty characters [and brackets]"))
    ended = mmebm("figures", deep)
    assert ended.code == 0 and ended.err == ""
    paths = ended.out.splitlines()
    assert [Path(path).name for path in paths] == ["joint.png", "cross.png", "curves.png", "transition.png"]
    assert all(Path(path).is_file() for path in paths)


# In a process of its own: exit codes, and what goes where -----------------------------------------------------------


def test_expected_failures_end_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "[nothing]"  # a message is no markup
    assert child("evaluate", folder) == (1, "", f"error: {folder}: not a run folder, it has no config.json\n")


def test_success_in_a_process_of_its_own(run: Path) -> None:
    ended = child("train", "--resume", "--output", run)
    assert ended.code == 0 and ended.err == "" and f"trained: {run}\n" in ended.out


# Demo ---------------------------------------------------------------------------------------------------------------


def test_demo(
    mmebm: Mmebm, tiny: list[str], tmp_path: Path, classifier_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "CHAINS", 20)
    ended = mmebm("demo", "--output", tmp_path / "demo", *sets(tiny))
    assert ended.code == 0 and ended.err == ""
    results = {k: json.loads((tmp_path / "demo" / k / "evaluation.json").read_text()) for k in ("plain", "energy")}
    assert [results[k]["settings"]["prior"] for k in results] == ["StandardLaplace", "EnergyPrior"]
    assert [row for row in cells(ended.out) if row[0] in results] == [
        [k, way, *shown(row), f"{result['cross']['mean']:.3f}"]
        for k, result in results.items()
        for way, row in result["joint"].items()
    ]
    base, energy = (results[k]["joint"]["prior"] for k in ("plain", "energy"))
    (verdict,) = re.findall(r"^energy prior against plain prior: (.*)$", ended.out, re.M)
    assert verdict.startswith(f"{energy['coherence']:.3f} against {base['coherence']:.3f}")
    collapsed = energy["entropy"] < 0.9 or energy["mean_frechet"] > base["mean_frechet"]
    if energy["entropy"] < 0.9:
        assert f"class entropy {energy['entropy']:.3f} is below" in verdict
    assert ("collapsed: " in verdict) == collapsed != verdict.endswith(", without collapse")
    paths = re.findall(r"^  (/.*\.png)$", ended.out, re.M)
    assert [Path(path).name for path in paths] == ["joint.png", "cross.png", "curves.png", "transition.png"]
    assert all(Path(path).is_file() for path in paths)
    block = runs.JOINT * (figures.CELL + figures.GAP) - figures.GAP + figures.MARGIN
    with Image.open(paths[0]) as joint:  # the plain prior, p_0 and the energy prior
        assert joint.width == figures.LABEL + 3 * block


def test_demo_keeps_its_two_priors(mmebm: Mmebm, tmp_path: Path) -> None:
    ended = mmebm("demo", "--output", tmp_path / "demo", "--set", "prior.name=normal")
    assert ended.code == 1 and "prior.name: the demo trains one model with a plain and one with an" in ended.err
    assert not (tmp_path / "demo").exists()
