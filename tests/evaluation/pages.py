"""A page as a parser sees it, and as a browser does."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmebm import data
from mmebm.evaluation.report.gather import Gathered, Transition
from mmebm.training import load_config, train

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
AWKWARD = """<b>&"'{{ 1 }}"""
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
            ready, _, _ = select.select([self.read], [], [], 60)
            read = os.read(self.read, 1 << 20) if ready else b""
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


def moved(gathered: dict[str, Gathered]) -> Transition:
    found = gathered["energy"].transition
    assert found is not None
    return found


def vectors(folder: Path, labels: bool) -> Path:
    """Data of one's own: a picture and a vector, in a run of theirs."""
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
