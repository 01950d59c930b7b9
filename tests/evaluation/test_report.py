"""`mmebm report`: the page against the folders and models it is made of."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mmebm import cli, data
from mmebm.evaluation import runs as measured
from mmebm.evaluation.classifiers import load_or_train
from mmebm.evaluation.report import gather as gathering
from mmebm.evaluation.report import write_report
from mmebm.evaluation.report.gather import Gathered, Transition, gather
from mmebm.evaluation.report.page import names, render
from mmebm.evaluation.report.shown import View
from mmebm.training import load

from .pages import AWKWARD, Page, moved, vectors

pytestmark = pytest.mark.usefixtures("few_report_chains")


def sheet(source: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        pixels = np.asarray(image.convert("RGBA"))
    return np.where(pixels[..., 3:] > 0, pixels[..., :3], 0)


def shown(images: torch.Tensor) -> np.ndarray:
    """Images [n, 3, H, W] as a strip is, a black column between two."""
    levels = torch.nn.functional.pad((images.clamp(0, 1) * 255).round().byte(), (0, 1))
    return levels.permute(2, 0, 3, 1).flatten(1, 2)[:, :-1].numpy()


# The page's form ------------------------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_elsewhere(written: Path, page: Page) -> None:
    loads = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "srcset", "data", "action")]
    assert loads and all(v.startswith(("data:image/webp;base64,", "#")) for v in loads)
    text = written.read_text()
    assert not re.search(r"https?://|@import|url\(", text)
    assert not page.attributes("link") and not page.attributes("iframe") and written.stat().st_size < 5_000_000
    assert list(written.parent.iterdir()) == [written]


def test_the_page_is_read_without_seeing_it(page: Page) -> None:
    assert page.attributes("html") == [{"lang": "en"}] and len(page.attributes("h1")) == 1
    assert all(image["alt"] for image in page.attributes("img"))
    assert len(page.attributes("caption")) == len(page.attributes("table")) > 4
    assert all(svg.get("role") == "img" or svg.get("aria-hidden") for svg in page.attributes("svg"))
    assert len(page.attributes("title")) == 1 + sum("role" in svg for svg in page.attributes("svg"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    pointed = [label["for"] for label in page.attributes("label")] + [a["href"][1:] for a in page.attributes("a")]
    pointed += [attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs]
    assert set(pointed) <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.attributes("meta")


def test_names_are_words(written: Path, page: Page) -> None:
    assert AWKWARD in page.text and "b" not in {tag for tag, _ in page.tags}
    assert "<b>&" not in written.read_text()


# What it says ---------------------------------------------------------------------------------------------------------


def test_numbers_are_the_evaluations(folders: dict[str, Path], page: Page) -> None:
    found = json.loads((folders["energy"] / "evaluation.json").read_text())
    rows = {row[-5]: row for row in page.cells if len(row) in (5, 6)}
    titles = {
        "prior": "The energy prior",
        "p_0": "p₀, where its chains start",
        "gmm3": "A mixture of 3 Gaussians on the posterior",
        "posterior": "The posterior",
    }
    for way, title in titles.items():
        told = found["joint"][way]
        coherence, entropy, frechet, n = rows[title][-4:]
        assert coherence.startswith(f"{told['coherence']:.3f} ") and entropy == f"{told['entropy']:.3f}"
        assert (frechet, n) == (f"{told['mean_frechet']:.1f}", "60")
    matrix = [row for row in page.cells if len(row) == 7 and row[0] in found["cross"]["matrix"]]
    assert len(matrix) == 2 * 5  # of both runs; that of the other has no numbers
    for source, row in found["cross"]["matrix"].items():
        assert [source, "", *(f"{v:.3f}" for v in row.values())] in matrix and [source, *[""] * 6] in matrix
    accuracy = [f"{v:.3f}" for v in found["classifier_accuracy"].values()]
    assert [AWKWARD, *accuracy] in page.cells
    (measures,) = (row for row in page.cells if f"{found['objective']['value']:.2f}".replace("-", "−") in row)
    assert measures[:4] == [
        AWKWARD, *(f"{v:.3f}" for v in (found["probe"]["test"], found["cross"]["mean"], found["real_agreement"]))
    ]  # fmt: skip
    assert f"laplace: not measured yet: mmebm evaluate {folders['laplace']}." in page.text


def test_settings_that_differ_are_marked(page: Page) -> None:
    assert ["prior.name", "energy", "laplace"] in page.cells
    assert len(page.attributes("mark")) == 2
    assert ["model.latent_dim", "4", "4"] in page.cells and ["torch", torch.__version__] == [
        word for row in page.cells for word in row[:2] if row[0] == "torch"
    ]


def test_grids_are_the_models_own(gathered: dict[str, Gathered], folders: dict[str, Path]) -> None:
    for name, ways in (("energy", ["p_0", "prior", "gmm3"]), ("laplace", ["prior", "gmm3"])):
        assert list(gathered[name].samples) == ways
        made = load(folders[name]).generate(gathering.SAMPLES, seed=0)
        for strip in gathered[name].samples["prior"]:
            assert np.array_equal(sheet(strip.source), shown(made[strip.name]))
    model, test = load(folders["energy"]), data.load("digits", "test")
    cross = gathered["energy"].cross
    assert cross is not None and test.labels is not None
    assert len({int(test.labels[i]) for i in cross.rows}) == gathering.ROWS == len(cross.rows)
    inputs = test.batch(torch.tensor(cross.rows))
    for source in model.modalities:
        assert np.array_equal(sheet(cross.inputs[source].source), shown(inputs[source]))
        for m, x in model.cross_generate(inputs, source, seed=0).items():
            assert np.array_equal(sheet(cross.made[source][m].source), shown(x))


def test_every_frame_is_there(gathered: dict[str, Gathered], folders: dict[str, Path], page: Page) -> None:
    found, model = moved(gathered), load(folders["energy"])
    assert (
        found.steps[0] == 0
        and found.steps[-1] == 500
        and {strip.frames for strip in found.strips} == {len(found.steps)}
    )
    frames = {strip.name: np.split(sheet(strip.source), len(found.steps)) for strip in found.strips}
    for t, step in enumerate(found.steps):
        z = model.prior.sample_reference(gathering.SHOWN, seed=0)  # type: ignore[operator]
        if step:
            z = model.prior.sample(gathering.SHOWN, steps=step, seed=0)  # type: ignore[call-arg]
        for m, x in model.decode(z, seed=0).items():
            close = np.abs(frames[m][t].astype(int) - shown(x).astype(int))
            assert close.max() <= 1  # a sum of other order may round elsewhere
    sources = {image["src"] for image in page.attributes("img")}
    assert {strip.source for strip in found.strips} <= sources
    (slider,) = (attrs for attrs in page.attributes("input"))
    assert (slider["type"], slider["min"], slider["max"]) == ("range", "0", str(len(found.steps) - 1))
    (told,) = page.json
    assert told["steps"] == found.steps
    assert {key: len(values) for key, values in told["marks"].items()} == dict.fromkeys(
        ("energy", "coherence", "entropy"), len(found.steps)
    )


def test_the_transitions_numbers_are_the_figures(gathered: dict[str, Gathered], folders: dict[str, Path]) -> None:
    found = moved(gathered)
    train, test = data.load("digits", "train", size=1200), data.load("digits", "test")
    expected = measured.transition(load(folders["energy"]), load_or_train(train, test), seed=0)
    for name in ("energy", "coherence", "entropy"):
        ours = dict(zip(found.steps, getattr(found, name), strict=True))
        theirs = dict(zip(measured.TRANSITION, getattr(expected, name), strict=True))
        common = [step for step in theirs if step in ours]
        assert len(common) > 15
        assert [ours[s] for s in common] == pytest.approx([theirs[s] for s in common], rel=1e-5)


# What is not there ----------------------------------------------------------------------------------------------------


def test_a_plain_run_has_no_transition(folders: dict[str, Path], tmp_path: Path) -> None:
    page = Page(write_report([folders["laplace"]], tmp_path / "plain.html").read_text())
    assert not page.attributes("input") and "Markov" not in page.text and page.json == []
    assert "z from the laplace prior" in page.text and "not measured yet" in page.text


def test_a_run_without_weights(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_runs["energy"], tmp_path / "run"))
    for name in ("model.safetensors", "metrics.jsonl"):
        (run / name).unlink()
    page = Page(write_report([run], tmp_path / "page.html").read_text())
    assert page.text.count("the run has no weights yet.") == 3 and "the run has no metrics yet." in page.text
    assert not page.attributes("img")


@pytest.mark.parametrize("labels", [False, True])
def test_data_without_classifiers(labels: bool, tmp_path: Path) -> None:
    run = vectors(tmp_path, labels)
    page = Page(write_report([run], tmp_path / "page.html").read_text())
    assert "No coherence along the chains: " in page.text
    sketches = [attrs for attrs in page.attributes("div") if attrs.get("class") == "sketches"]
    # Frames, three ways to draw z, two targets of two sources, and one of them given.
    assert len(sketches) == 1 + 3 + 2 + 1 and all(attrs["aria-label"] for attrs in sketches)
    (told,) = page.json
    assert list(told["values"]) == ["energy"] and [bool(m) for m in told["moving"]] == [False, True]
    assert len(base64.b64decode(told["moving"][1]["levels"])) == len(told["steps"]) * gathering.SHOWN * 5
    # The data are gone: what needs none of them is still there.
    (tmp_path / "rows.npz").unlink()
    page = Page(write_report([run], tmp_path / "page.html").read_text())
    assert "its data cannot be read here: " in page.text and "z from the energy prior" in page.text
    assert page.attributes("input") and "Gaussians" not in page.text


def test_words_are_shown_as_text(gathered: dict[str, Gathered]) -> None:
    run = copy.copy(gathered["energy"])
    view = View("caption", (3, 4), ["<pad>", "<eos>", "a <red>", "bird"])
    found = moved(gathered)
    codes = torch.randint(2, 4, (len(found.steps), 8, 3))
    codes[0, 0] = torch.tensor([2, 3, 1])
    strip = view.strip(torch.nn.functional.one_hot(codes, 4), "8 chains, decoded as caption")
    run.transition = Transition(found.steps, [strip], found.energy, None, None, {})
    page = Page(render([run]))
    assert "a <red> bird" in page.text and "red" not in {tag for tag, _ in page.tags}
    assert page.json[0]["moving"] == [{"texts": strip.texts}] and len(strip.texts) == len(found.steps)


def test_runs_that_have_diverged(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, gathered: dict[str, Gathered]
) -> None:
    monkeypatch.setattr("mmebm.models.MultimodalVAE.decode", lambda self, z, *_, **__: {
        m: torch.full((len(z), *shape), float("nan")) for m, shape in self.shapes.items()
    })  # fmt: skip
    found = gather(folders["laplace"], "run")
    assert {part: found.why[part] for part in ("samples", "cross")} == dict.fromkeys(
        ("samples", "cross"), "m0: expected finite values, got NaN or infinity"
    )
    broken = copy.copy(gathered["energy"])
    whole = moved(gathered)
    energy = [float("inf"), *whole.energy[1:-1], float("nan")]
    broken.transition = Transition(whole.steps, whole.strips, energy, whole.coherence, whole.entropy, {})
    (told,) = Page(render([broken])).json
    assert told["marks"]["energy"][0] is None and told["values"]["energy"][-1] is None
    assert None not in told["marks"]["energy"][1:-1] and len(told["marks"]["energy"]) == len(whole.steps)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_refusals(folders: dict[str, Path], tmp_path: Path) -> None:
    run = folders["laplace"]
    target = tmp_path / "page.html"
    with pytest.raises(ValueError, match="runs: expected at least one run folder, got none"):
        write_report([], target)
    with pytest.raises(ValueError, match="runs: expected different folders, got "):
        write_report([run, run / ".." / run.name], target)
    with pytest.raises(FileNotFoundError, match=r"nothing: not a run folder, it has no config\.json"):
        write_report([run, tmp_path / "nothing"], target)
    assert not target.exists()
    with pytest.raises(FileExistsError, match=r"output: .* is there and is no report; choose another"):
        write_report([run], tmp_path)
    target.write_text("<p>mine</p>")
    with pytest.raises(FileExistsError, match=r"output: .*page\.html is there and is no report; choose another"):
        write_report([run], target)
    assert target.read_text() == "<p>mine</p>"
    copied = Path(shutil.copytree(run, tmp_path / "copy"))
    for text in ("{", "[1]"):
        (copied / "evaluation.json").write_text(text)
        with pytest.raises(ValueError, match=r"evaluation\.json: expected (a )?JSON"):
            write_report([copied], tmp_path / "other.html")


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    assert names([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]
    assert names([tmp_path / "x", tmp_path / "y"]) == ["x", "y"]


def test_the_command(folders: dict[str, Path], written: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    runs = [str(folders["energy"]), str(folders["laplace"])]
    for _ in range(2):  # an earlier report is replaced
        ended = CliRunner().invoke(cli.app, ["report", *runs, "--output", str(target)])
        assert ended.exit_code == 0, ended.output
        assert f"report: {target}" in ended.output and target.read_text() == written.read_text()
