"""`mmebm report`: the page against the folders and models it is made of, and the page in a browser."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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
from mmebm.evaluation.report.shown import View, sketch
from mmebm.training import load, load_config

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
AWKWARD = """<b>&"'{{ 1 }}</script>""".replace("/", "∕")
VOID = {"meta", "input", "img", "br", "link"}


class Page(HTMLParser):
    """Tags that are opened and closed in order, attributes by tag, ids, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.cells: list[list[str]] = []
        self.json: list[Any] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            if self.tags[-1] == ("script", {"type": "application/json"}):
                self.json.append(json.loads(text))
            return
        self.words.append(text)
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += text.strip()

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def folders(
    tiny_runs: dict[str, Path], _classifier_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """ "energy", measured and with an awkward name, and "laplace", not measured; few chains."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMEBM_CACHE_DIR", str(_classifier_cache))
        patch.setattr(gathering, "CHAINS", 40)
        patch.setattr(measured, "CHAINS", 40)
        energy = Path(shutil.copytree(tiny_runs["energy"], folder / AWKWARD))
        measured.evaluate_run(energy)
        yield {"energy": energy, "laplace": tiny_runs["laplace"]}


@pytest.fixture(scope="module")
def gathered(folders: dict[str, Path]) -> dict[str, Gathered]:
    """Look, do not touch."""
    return {name: gather(path, path.name) for name, path in folders.items()}


@pytest.fixture(scope="module")
def written(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([folders["energy"], folders["laplace"]], tmp_path_factory.mktemp("page") / "new" / "all.html")


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written.read_text())


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


def moved(gathered: dict[str, Gathered]) -> Transition:
    found = gathered["energy"].transition
    assert found is not None
    return found


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


def vectors(folder: Path, labels: bool) -> Path:
    """Data of one's own: a picture and a vector, in a run of theirs."""
    from mmebm.training import train

    random = np.random.default_rng(0)
    held = {"labels": np.arange(40) % 4} if labels else {}
    np.savez(
        folder / "rows.npz", picture=random.random((40, 1, 8, 8), np.float32),
        vector=random.standard_normal((40, 5)).astype(np.float32), **held,
    )  # fmt: skip
    config = load_config(
        "digits",
        ["data.name=arrays", f"data.options.path={folder / 'rows.npz'}", "model.hidden=[8]", "model.latent_dim=3",
         "prior.hidden=[8]", "prior.steps=10", "train.updates=3", "train.batch_size=16", "train.energy_start=0",
         "train.energy_enters=0", "train.energy.chains=8", "train.energy.steps=2", "train.log_every=1",
         "prior.spectral_norm=2.0", "train.largest_scale=1e9", "evaluate.mixture_components=2"],
    )  # fmt: skip
    train(config, data.load("arrays", "train", path=folder / "rows.npz"), folder / "vectors")
    return folder / "vectors"


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


# In a browser ---------------------------------------------------------------------------------------------------------


class Browser:
    """Headless Chromium over a pipe: its DevTools protocol, one JSON object a NUL."""

    def __init__(self, program: str, profile: Path) -> None:
        (theirs, self.write), (self.read, ours) = os.pipe(), os.pipe()
        arguments = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            "--no-first-run", "--disable-extensions", "--disable-dev-shm-usage", "about:blank",
        ]  # fmt: skip
        # The pipe is file descriptors 3 and 4 over there.
        line = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "bash", program, *arguments]
        self.process = subprocess.Popen(line, pass_fds=(theirs, ours), stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(ours)
        self.buffer, self.number, self.events = b"", 0, []
        self.session: str | None = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        call = {"id": self.number, "method": method, "params": parameters}
        call |= {} if self.session is None else {"sessionId": self.session}
        os.write(self.write, json.dumps(call).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            read = os.read(self.read, 1 << 20)
            assert read, "the browser has gone"
            self.buffer += read
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def open(self, path: Path, width: int, height: int, **media: str) -> None:
        """The page at a size, under media features such as prefers_color_scheme="dark"."""
        mobile = width < 600
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        features = [{"name": k.replace("_", "-"), "value": v} for k, v in media.items()]
        self("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        self("Page.navigate", url=path.as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def js(self, expression: str) -> Any:
        result = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str) -> None:
        for _ in range(200):
            if self.js(expression):
                return
            time.sleep(0.05)
        pytest.fail(f"never true: {expression}")

    def press(self, key: str) -> None:
        code = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Tab": 9, "Enter": 13, " ": 32}[key]
        text = {"text": {"Enter": "\r"}.get(key, key)} if key in ("Enter", " ") else {}
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def complaints(self) -> list[dict[str, Any]]:
        """Errors of scripts and of the page, and requests for anything but the page itself and pictures in it."""
        self("Runtime.evaluate", expression="1")
        wrong = []
        for event in self.events:
            method, told = event.get("method", ""), event.get("params", {})
            url = told.get("request", {}).get("url", "")
            if (
                method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
                or (method == "Network.requestWillBeSent" and not url.startswith(("file:", "data:")))
            ):  # fmt: skip
                wrong.append(event)
        return wrong

    def close(self) -> None:
        self.session = None
        try:
            self("Browser.close")
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.read)
            os.close(self.write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no browser found")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


STATE = """(() => {
  const root = document.querySelector('.transition'), seen = {};
  for (const dd of root.querySelectorAll('dd')) seen[dd.dataset.value] = dd.textContent;
  seen.tops = [...root.querySelectorAll('.frame')].map(f => {
    const a = f.getBoundingClientRect(), b = f.querySelector('img').getBoundingClientRect();
    return (a.top - b.top) / a.height;
  });
  seen.dots = [...root.querySelectorAll('circle.cursor')].map(c => [+c.getAttribute('cx'), +c.getAttribute('cy')]);
  seen.said = root.querySelector('input').getAttribute('aria-valuetext');
  return seen;
})()"""


def agrees(state: dict[str, Any], frame: int, found: Transition) -> None:
    """Pictures, values and markers all stand at this frame."""
    assert state["step"] == str(found.steps[frame])
    assert state["tops"] == pytest.approx([frame] * 5, abs=1e-3)
    assert found.coherence is not None and found.entropy is not None
    told = {"energy": found.energy, "coherence": found.coherence, "entropy": found.entropy}
    for key, values in told.items():
        assert float(state[key]) == pytest.approx(values[frame], abs=6e-4)
        assert state[key] in state["said"]
    assert state["said"].startswith(f"step {found.steps[frame]}, ")
    assert len({x for x, _ in state["dots"]}) == 1


@pytest.mark.slow
def test_the_slider_moves_everything_by_keyboard(
    browser: Browser, written: Path, gathered: dict[str, Gathered], page: Page
) -> None:
    found, marks = moved(gathered), page.json[0]["marks"]
    browser.open(written, 1280, 800)
    last = len(found.steps) - 1
    agrees(browser.js(STATE), 0, found)
    for _ in range(40):  # from the top of the page
        browser.press("Tab")
        if browser.js("document.activeElement.type") == "range":
            break
    assert browser.js("document.activeElement.matches('input[type=range]:focus-visible')")
    assert browser.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, frame in (("ArrowRight", 1), ("ArrowRight", 2), ("End", last), ("ArrowLeft", last - 1), ("Home", 0)):
        browser.press(key)
        state = browser.js(STATE)
        agrees(state, frame, found)
        assert state["dots"] == [marks[key][frame] for key in ("energy", "coherence", "entropy")]
    # Playing goes to the end by itself and stops there; a second press pauses.
    browser.js("document.querySelector('.play').focus()")
    browser.press("Enter")
    browser.until(f"document.querySelector('[data-value=step]').textContent >= {found.steps[2]}")
    assert browser.js("document.querySelector('.play').textContent") == "Pause"
    browser.press(" ")
    halted = browser.js(STATE)
    time.sleep(0.6)
    assert browser.js(STATE) == halted and browser.js("document.querySelector('.play').textContent") == "Play"
    assert browser.complaints() == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits(browser: Browser, written: Path, width: int, scheme: str) -> None:
    browser.open(written, width, 740, prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    browser.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.js("innerWidth") == width
    assert browser.js("document.documentElement.scrollWidth") <= width
    # What is wider than the page stands in a box that scrolls.
    outside = """[...document.querySelectorAll('main *')].filter(e => {
      const r = e.getBoundingClientRect();
      return r.right > innerWidth + 1 && r.width && !e.closest('.scroll, svg, .skip');
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.js(outside) == []
    assert browser.js("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.js("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    contrast = """(() => {
      const luminance = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => { x /= 255;
        return x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4; }); 
        return .2126*v[0] + .7152*v[1] + .0722*v[2]; };
      const ground = luminance(getComputedStyle(document.body).backgroundColor);
      return ['body', '.note', '.missing', 'nav a', 'thead th', 'figcaption', '.chart text'].map(s => {
        const style = getComputedStyle(document.querySelector(s));
        const ink = luminance(s === '.chart text' ? style.fill : style.color);
        return (Math.max(ink, ground) + .05) / (Math.min(ink, ground) + .05); });
    })()"""
    assert min(browser.js(contrast)) >= 4.5
    assert browser.complaints() == []


@pytest.mark.slow
def test_vectors_and_words_move_too(browser: Browser, tmp_path: Path) -> None:
    run = gather(vectors(tmp_path, False), "run")
    found = run.transition
    assert found is not None
    words = View("caption", (2, 3), ["<eos>", "yes", "no"])
    codes = torch.arange(2 * 8 * len(found.steps)).reshape(len(found.steps), 8, 2) % 3
    caption = words.strip(torch.nn.functional.one_hot(codes, 3), "captions")
    run.transition = Transition(found.steps, [*found.strips, caption], found.energy, None, None, {})
    path = tmp_path / "page.html"
    path.write_text(render([run]))
    browser.open(path, 360, 740)
    slider = "document.querySelector('input')"
    for frame in (0, 7, len(found.steps) - 1):
        browser.js(f"{slider}.value = {frame}; {slider}.dispatchEvent(new Event('input'))")
        said = browser.js("[...document.querySelectorAll('.chains li')].map(e => e.textContent)")
        assert said == [text or "(nothing)" for text in caption.texts[frame]]
        drawn = browser.js("[...document.querySelectorAll('.chains path')].map(e => e.getAttribute('d'))")
        vector = found.strips[1]
        assert vector.levels is not None
        assert drawn == [sketch(row, vector.base) for row in vector.levels[frame]]
    assert browser.js("document.documentElement.scrollWidth") <= 360
    assert browser.complaints() == []
