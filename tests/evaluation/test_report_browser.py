"""The report in a browser: everything moves with the slider, by keyboard, and the page fits a phone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmebm.evaluation.report.gather import Gathered, Transition, gather
from mmebm.evaluation.report.page import render
from mmebm.evaluation.report.shown import View, sketch

from .pages import BROWSERS, Browser, Page, moved, vectors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_report_chains")]


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
