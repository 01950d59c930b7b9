"""Figures: their size in pixels, what is drawn where, and that other data draws another picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmebm.evaluation import figures
from mmebm.evaluation.figures import (
    CELL,
    GAP,
    LABEL,
    MARGIN,
    PANEL,
    SEAM,
    TITLE,
    cross_grid,
    curves,
    sample_grids,
    transition,
)

STEP = CELL + GAP


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def grey(n: int, level: float, channels: int = 3, side: int = 16) -> Tensor:
    return torch.full((n, channels, side, side), level)


def test_sample_grids(tmp_path: Path) -> None:
    samples = {p: {m: torch.rand(3, 3, 16, 16) for m in ("m0", "m1")} for p in ("laplace", "energy")}
    samples["energy"]["m1"] = torch.stack([grey(1, level)[0] for level in (-2.0, 0.5, 7.0)])
    sample_grids(samples, tmp_path / "new" / "one.png")
    one = pixels(tmp_path / "new" / "one.png")
    block = 3 * STEP - GAP
    assert one.shape == (TITLE + 2 * STEP - GAP + MARGIN, LABEL + 2 * (block + MARGIN), 3)

    def cell(prior: int, modality: int, sample: int) -> np.ndarray:
        y, x = TITLE + modality * STEP, LABEL + prior * (block + MARGIN) + sample * STEP
        return one[y : y + CELL, x : x + CELL]

    # Clamped, not wrapped; every pixel of an image three by three, the right way up.
    assert (cell(1, 1, 0) == 0).all() and (cell(1, 1, 2) == 255).all() and (abs(cell(1, 1, 1) - 127.5) <= 1).all()
    image = samples["laplace"]["m0"][2].permute(1, 2, 0).numpy()
    assert np.abs(cell(0, 0, 2)[1::3, 1::3] / 255 - image).max() < 0.005
    assert np.abs(cell(0, 0, 2) / 255 - image.repeat(3, 0).repeat(3, 1)).max() < 0.005

    sample_grids(samples, tmp_path / "two.png", titles={"laplace": "another title"})
    assert pixels(tmp_path / "two.png").shape == one.shape
    assert (pixels(tmp_path / "two.png")[:TITLE] != one[:TITLE]).any()
    assert (pixels(tmp_path / "two.png")[TITLE:] == one[TITLE:]).all()
    sample_grids({"laplace": samples["laplace"]}, tmp_path / "three.png")
    assert pixels(tmp_path / "three.png").shape[1] == LABEL + block + MARGIN


def test_sizes_and_channels_may_differ_between_modalities(tmp_path: Path) -> None:
    sample_grids({"p": {"a": grey(2, 0.0, channels=1, side=28), "b": grey(2, 1.0, side=14)}}, tmp_path / "f.png")
    assert pixels(tmp_path / "f.png").shape[1] == LABEL + 2 * 56 + GAP + MARGIN  # 28 twice, 14 four times
    assert (pixels(tmp_path / "f.png")[TITLE : TITLE + 56, LABEL : LABEL + 56] == 0).all()


def test_long_names_have_room(tmp_path: Path) -> None:
    name = "infrared_camera"
    sample_grids({"p": {name: grey(2, 0.0)}}, tmp_path / "f.png")
    made = pixels(tmp_path / "f.png")
    left = made.shape[1] - (2 * STEP - GAP) - MARGIN
    assert left > LABEL and (made[TITLE : TITLE + CELL, left : left + CELL] == 0).all()
    assert (made[TITLE : TITLE + CELL, :4] == 255).all() and (made[TITLE : TITLE + CELL, 4:left] < 128).any()


def test_cross_grid(tmp_path: Path) -> None:
    inputs = {"m0": grey(2, 0.2), "m1": grey(2, 0.4)}
    outputs = {"m0": {"m0": grey(2, 0.6), "m1": grey(2, 0.8)}, "m1": {"m1": grey(2, 0.0)}}
    cross_grid(inputs, outputs, tmp_path / "f.png")
    made = pixels(tmp_path / "f.png")
    strip = 2 * STEP - GAP
    assert made.shape == (2 * TITLE + 2 * STEP - GAP + MARGIN, LABEL + 3 * (strip + MARGIN), 3)

    def level(source: int, column: int) -> int:
        y, x = 2 * TITLE + source * STEP, LABEL + column * (strip + MARGIN)
        values = np.unique(made[y : y + CELL, x + STEP : x + strip])
        assert len(values) == 1
        return int(values[0])

    assert [[level(s, c) for c in range(3)] for s in range(2)] == [[51, 153, 204], [102, 255, 0]]  # the absent is blank


def chains(value: float = 0.5) -> dict[str, Any]:
    steps = [*range(0, 55, 5), *range(100, 550, 50)]
    frames = {
        m: torch.linspace(0, 1, len(steps))[:, None, None, None, None].expand(-1, 2, 3, 16, 16) for m in ("a", "b")
    }
    falling = [-k / 500 for k in steps]
    return {"steps": steps, "frames": frames, "energy": falling, "coherence": [value] * len(steps), "entropy": falling}


def test_transition(tmp_path: Path) -> None:
    transition(**chains(), path=tmp_path / "one.png")
    one = pixels(tmp_path / "one.png")
    group = 2 * STEP - GAP
    assert one.shape == (2 * TITLE + 2 * (group + SEAM) + PANEL + MARGIN, LABEL + 20 * STEP - GAP + MARGIN, 3)
    # Left to right over the steps, in every chain and modality.
    for y in (2 * TITLE, 2 * TITLE + STEP, 2 * TITLE + group + SEAM, 2 * TITLE + group + SEAM + STEP):
        row = one[y + CELL // 2, LABEL + CELL // 2 :: STEP, 0][:20]
        assert np.abs(row / 255 - np.linspace(0, 1, 20)).max() < 0.005

    below = one.shape[0] - PANEL
    transition(**chains(0.9), path=tmp_path / "two.png")
    two = pixels(tmp_path / "two.png")
    assert (one[:below] == two[:below]).all() and (one[below:] != two[below:]).any()
    transition(**chains(), path=tmp_path / "three.png", trained_steps=50)
    assert (pixels(tmp_path / "three.png")[below:] != one[below:]).any()


def test_short_chains_make_a_figure_wide_enough_for_its_panels(tmp_path: Path) -> None:
    frames = {"a": torch.rand(2, 1, 1, 28, 28)}
    transition([0, 5], frames, torch.zeros(2), np.zeros(2), [0, 0], tmp_path / "f.png")
    assert pixels(tmp_path / "f.png").shape[1] == LABEL + 640 + MARGIN


METRICS = ("loss", "E_q", "E_p", "posterior_scale", "chain_scale", "grad_norm")


def test_curves_draw_the_keys_present(tmp_path: Path) -> None:
    rows = [{"update": k, **{m: math.sin(k + i) for i, m in enumerate(METRICS)}} for k in range(30)]
    curves(rows, tmp_path / "all.png")
    assert pixels(tmp_path / "all.png").shape == (2 * (PANEL + MARGIN) + MARGIN, 3 * 340 + MARGIN, 3)
    curves([{"update": r["update"], "loss": r["loss"], "other": "words"} for r in rows], tmp_path / "loss.png")
    one = pixels(tmp_path / "loss.png")
    assert one.shape == (PANEL + 2 * MARGIN, 340 + MARGIN, 3)
    curves([{"update": r["update"], "loss": -r["loss"]} for r in rows], tmp_path / "other.png")
    assert (pixels(tmp_path / "other.png") != one).any()


def test_curves_take_the_difference_where_both_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, list[float], list[float]]] = []
    plot = figures.Axes.plot

    def record(axes: figures.Axes, x: list[float], y: list[float], **options: Any) -> Any:
        drawn.append((options["label"], x, y))
        return plot(axes, x, y, **options)

    monkeypatch.setattr(figures.Axes, "plot", record)
    rows: list[dict[str, Any]] = [
        {"update": 0, "E_q": 1.0},
        {"update": 5, "E_q": 2.0, "E_p": 0.5},
        {"update": 9, "E_q": None, "loss": float("nan")},
    ]
    curves(rows, tmp_path / "f.png")
    assert ("E_q - E_p", [5.0], [1.5]) in drawn
    assert ("posterior E_q", [0.0, 5.0], [1.0, 2.0]) in drawn and ("chains E_p", [5.0], [0.5]) in drawn


@pytest.mark.parametrize("rows", [[], [{"loss": 1.0}], [{"update": 1, "accuracy": 1.0}]])
def test_curves_of_nothing_are_refused(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    with pytest.raises(ValueError, match="rows: expected 'update' and some of"):
        curves(rows, tmp_path / "f.png")
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "f.png"
    with pytest.raises(ValueError, match="samples: expected at least one prior"):
        sample_grids({}, path)
    with pytest.raises(ValueError, match=r"samples\['q'\]: expected the modalities \['a'\], got \['b'\]"):
        sample_grids({"p": {"a": grey(1, 0)}, "q": {"b": grey(1, 0)}}, path)
    with pytest.raises(ValueError, match=r"samples\['p'\]: expected equal numbers of images, got {'a': 1, 'b': 2}"):
        sample_grids({"p": {"a": grey(1, 0), "b": grey(2, 0)}}, path)
    with pytest.raises(
        ValueError, match=r"samples\['p'\]\['a'\]: expected images .* 1 or 3 channels, got \[1, 2, 16, 16\]"
    ):
        sample_grids({"p": {"a": grey(1, 0, channels=2)}}, path)
    with pytest.raises(ValueError, match=r"\['a'\]: expected finite values"):
        sample_grids({"p": {"a": grey(1, math.nan)}}, path)
    with pytest.raises(ValueError, match="inputs: expected the source 'b', got"):
        cross_grid({"a": grey(1, 0)}, {"b": {"a": grey(1, 0)}}, path)
    with pytest.raises(ValueError, match=r"outputs\['a'\]: expected equal numbers of images"):
        cross_grid({"a": grey(1, 0)}, {"a": {"b": grey(2, 0)}}, path)
    with pytest.raises(ValueError, match="steps: expected at least two increasing steps"):
        transition(**{**chains(), "steps": [0, 5, 5]}, path=path)
    with pytest.raises(ValueError, match=r"energy: expected \[20\], a value a step, got \[19\]"):
        transition(**{**chains(), "energy": [0.0] * 19}, path=path)
    with pytest.raises(ValueError, match=r"frames\['a'\]: expected \[20, n, C, H, W\]"):
        transition(**{**chains(), "frames": {"a": torch.rand(19, 1, 3, 4, 4)}}, path=path)
    assert not path.exists()
