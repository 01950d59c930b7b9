"""The report's parts: how values are shown, charts, tables of every key an evaluation may have."""

from __future__ import annotations

import base64
import io
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mmebm.evaluation.report import tables
from mmebm.evaluation.report.charts import Line, chart
from mmebm.evaluation.report.gather import RECORDED, Gathered, transition_steps
from mmebm.evaluation.report.shown import LARGEST, NotFinite, Strip, View, sentence, sketch
from mmebm.training import load_config


def pixels(strip: Strip) -> np.ndarray:
    """[T H, W, 4] of an image strip."""
    head, _, body = strip.source.partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        return np.asarray(image.convert("RGBA"))


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_shown_pixel_for_pixel(channels: int) -> None:
    values = torch.rand(4, 3, channels, 6, 5) * 1.4 - 0.2
    strip = View("m", (channels, 6, 5)).strip(values, "some")
    assert (strip.kind, strip.count, strip.frames, strip.width, strip.height) == ("image", 3, 4, 17, 6)
    assert strip.wide >= strip.narrow >= 1
    shown = pixels(strip).reshape(4, 6, 17, 4)
    expected = (values.clamp(0, 1) * 255).round().byte().expand(-1, -1, 3, -1, -1).permute(0, 1, 3, 4, 2).numpy()
    for i in range(3):
        assert np.array_equal(shown[:, :, 6 * i : 6 * i + 5, :3], expected[:, i])
    assert (shown[..., 3].reshape(-1, 17) == ([255] * 5 + [0]) * 2 + [255] * 5).all()


def test_large_images_are_shrunk() -> None:
    strip = View("m", (3, 100, 200)).strip(torch.full((2, 3, 100, 200), 0.5), "some")
    assert (strip.height, strip.width) == (LARGEST // 2, 2 * LARGEST + 1)
    assert (pixels(strip)[:, :LARGEST, :3] == 128).all()


def test_words() -> None:
    words = ["<pad>", "<eos>", "a", "red", "bird"]
    assert sentence([2, 0, 3, 4, 1, 2], words) == "a red bird" and sentence([1, 2], words) == ""
    assert sentence([2, 3, 2], ["<pad>", "<eos>", "x", "y"]) == "xyx"
    codes = torch.tensor([[[2, 4, 1]], [[3, 0, 4]]])  # [T, n, L]
    probabilities = torch.nn.functional.one_hot(codes, 5).float() * 0.7 + 0.1
    strip = View("caption", (3, 5), words).strip(probabilities, "some")
    assert strip.kind == "text" and strip.texts == [["a bird"], ["red bird"]]
    assert strip.moving() == {"texts": strip.texts}
    assert View("class", (5,), words).strip(torch.eye(5), "some").texts == [["", "", "a", "red", "bird"]]


def test_vectors_are_sketched_on_the_datas_scale() -> None:
    rows = torch.linspace(-1, 3, 2000).reshape(500, 4)
    strip = View("v", (4,), rows=rows).strip(torch.tensor([[[-9.0, 0.0, 1.0, 9.0]]]), "some")
    assert strip.kind == "vector" and strip.levels is not None and strip.levels.shape == (1, 1, 4)
    low, zero, one, high = (int(v) for v in strip.levels[0, 0])
    assert (low, high) == (0, 255) and abs(zero - 255 / 4) <= 1 and abs(one - 255 / 2) <= 1 and strip.base == zero
    assert strip.paths == [sketch([low, zero, one, high], zero)]
    assert sketch([0, 255], 51) == "M0 204V255h1V0h1V204z"
    moving = strip.moving()
    assert base64.b64decode(moving["levels"]) == bytes([low, zero, one, high]) and moving["points"] == 4
    assert View("v", (2, 300)).strip(torch.ones(1, 2, 300), "some").levels.shape[2] == 128  # type: ignore[union-attr]


def test_what_cannot_be_shown() -> None:
    view = View("m", (3, 4, 4))
    with pytest.raises(ValueError, match=r"m: expected \[T, n, 3, 4, 4\], got \[1, 2, 3, 4, 5\]"):
        view.strip(torch.zeros(2, 3, 4, 5), "some")
    with pytest.raises(NotFinite, match="m: expected finite values"):
        view.strip(torch.full((1, 3, 4, 4), math.nan), "some")


def test_transition_steps() -> None:
    for sampling in (1, 7, 60, 300, 480, 500, 510, 1000, 5003, 20000):
        steps = transition_steps(sampling)
        assert steps == sorted(set(steps)) and steps[0] == 0 and len(steps) < 60
        assert all(step % RECORDED == 0 for step in steps) and steps[-1] >= 500
        assert sampling in steps or sampling % RECORDED


# Charts ---------------------------------------------------------------------------------------------------------------


def test_a_chart() -> None:
    lines = [Line("a<b", [0, 50, 100], [1.0, 3.0, 2.0]), Line("c", [0, 50, 100], [None, math.nan, 2.0], 1, dashed=True)]
    drawn = chart("T & co", lines, x_label="update", cursor=True, verticals={"here": 50})
    assert drawn is not None
    assert "<title>T &amp; co</title>" in drawn.svg and "a&lt;b: from 1 at update 0 to 2 at 100" in drawn.svg
    assert "least 1 at 0, most 3 at 50; c: 2 at update 100" in drawn.description
    assert len(drawn.marks) == 3 and drawn.marks[0][0] < drawn.marks[1][0] < drawn.marks[2][0]
    assert drawn.marks[1][1] < drawn.marks[2][1] < drawn.marks[0][1]  # y points down
    (points,) = re.findall(r'class="line s0" points="([^"]*)"', drawn.svg)
    assert points == " ".join(f"{x},{y}" for x, y in drawn.marks)
    assert 'class="line s1 dashed"' in drawn.svg and "nan" not in drawn.svg.lower()


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0, 5.0], [-1e-9, 1e9], [1e-30, 2e-30], [-3.0], [1e6, 1e7]])
@pytest.mark.parametrize("log_y", [False, True])
def test_charts_of_awkward_numbers(values: list[float], log_y: bool) -> None:
    drawn = chart("t", [Line("a", list(range(len(values))), values)], x_label="x", log_y=log_y, symlog_x=True)
    assert drawn is not None and "nan" not in drawn.svg and "inf" not in drawn.svg
    assert all(0 <= x <= 360 and 0 <= y <= 220 for x, y in drawn.marks)


def test_many_points_are_thinned_and_none_draw_nothing() -> None:
    drawn = chart("t", [Line("a", list(range(5000)), [float(v) for v in range(5000)])], x_label="x")
    assert drawn is not None and len(drawn.marks) <= 402 and "4999" in drawn.description
    assert chart("t", [Line("a", [1, 2], [None, math.inf])], x_label="x") is None
    assert chart("t", [], x_label="x") is None


# Tables ---------------------------------------------------------------------------------------------------------------

FULL = {
    "split": "test",
    "joint": {"prior": {"coherence": 0.8125, "interval": [0.79, 0.83], "standard_error": 0.009, "entropy": 0.97,
                        "mean_frechet": 41.25, "n": 2000}},
    "classifier_accuracy": {"a": 0.99, "b": 0.97},
    "cross": {"matrix": {"a": {"b": 0.5}}, "mean": 0.5, "n": 1000,
              "by_size": {"1": {"micro": 0.61, "macro": 0.62, "interval": [0.59, 0.63], "pairs": 20},
                          "2": {"micro": 0.71, "macro": 0.72, "interval": [0.69, 0.73], "pairs": 30}},
              "subsets": [{"from": ["a", "c"], "to": {"b": {"micro": 0.55, "macro": 0.54}}, "n": 900}]},
    "reconstruction": {"by_size": {"1": {"a": {"rmse": 0.1234, "log_likelihood": -12.5}},
                                   "2": {"a": {"rmse": 0.1111, "log_likelihood": -11.5}}}},
    "probe": {"test": 0.91},
    "probe_by_size": {"1": {"test": 0.81}, "2": {"test": 0.86}, "10": {"test": 0.9}},
    "likelihood": {"joint": {"mean": -123.456, "standard_error": 0.5, "samples": 100, "log_z": -3.25}},
    "objective": {"value": -200.0, "label": "elbo"},
    "protocol": {"cross": "every subset"},
}  # fmt: skip


def gathered(name: str, evaluation: object, *overrides: str) -> Gathered:
    config = load_config("digits", overrides).model_dump(mode="json")
    return Gathered(name, config, {"shapes": {"a": [3, 8, 8]}}, [], evaluation)  # type: ignore[arg-type]


def texts(table: tables.Table | None) -> list[list[str]]:
    assert table is not None
    return [[cell.text for cell in row] for row in table.rows]


def test_tables_of_all_there_is() -> None:
    runs = [gathered("full", FULL), gathered("bare", {"split": "test", "joint": None, "cross": None})]
    assert texts(tables.joint_table(runs)) == [
        ["full", "The energy prior", "0.812 [0.790, 0.830]", "0.970", "41.2", "2,000"]
    ]
    (measured, bare) = texts(tables.measure_table(runs))
    assert measured == ["full", "0.910", "0.500", "–", "−200.00", "elbo", "−123.46 ± 0.50 (K=100)", "−3.25"]
    assert bare == ["bare", *["–"] * 7]
    assert texts(tables.classifier_table(runs)) == [["full", "0.990", "0.970"]]
    assert texts(tables.protocol_table(runs)) == [["cross", "every subset"]]
    found = {table.caption: (table.head, texts(table)) for table in tables.size_tables(runs)}
    assert found["Cross coherence, over rows"][1] == [["full", "0.610 [0.590, 0.630]", "0.710 [0.690, 0.730]"]]
    assert found["Cross coherence, over classes"][1] == [["full", "0.620", "0.720"]]
    assert found["Linear probe"] == (
        ["run", "1 observed", "2 observed", "10 observed"], [["full", "0.810", "0.860", "0.900"]]
    )  # fmt: skip
    found = {table.caption: (table.head, texts(table)) for table in tables.reconstruction_tables(runs)}
    assert found["Reconstruction, RMSE: full"][1] == [["a", "0.1234", "0.1111"]]
    assert found["Reconstruction, log-likelihood: full"][1] == [["a", "−12.50", "−11.50"]]
    assert [texts(table) for table in tables.subset_tables(runs)] == [[["a, c", "0.550", "900"]]]
    drawn = tables.size_chart(runs)
    assert drawn is not None and "from 0.61 at observed modalities 1 to 0.71 at 2" in drawn.description


def test_no_tables_of_what_is_not_there() -> None:
    runs = [gathered("none", None)]
    assert tables.joint_table(runs) is tables.measure_table(runs) is tables.protocol_table(runs) is None
    assert (
        tables.reconstruction_tables(runs) == tables.size_tables(runs) == tables.subset_tables(runs) == []
        and tables.size_chart(runs) is None
    )
    assert texts(tables.summary_table(runs)) == [["none", "digits", "mmvaeplus", "energy prior", *["–"] * 5]]


def test_settings_that_differ_come_first() -> None:
    runs = [gathered("a", None), gathered("b", None, "model.beta=2", "prior.clamp=[-1, 1]")]
    table = tables.settings_table("Configuration", runs, lambda run: run.config)
    assert table.differing == ["model.beta", "prior.clamp"]
    assert texts(table)[:2] == [["model.beta", "1.0", "2.0"], ["prior.clamp", "none", "-1.0, 1.0"]]
    assert all(cell.marked for row in table.rows[:2] for cell in row[1:])
    assert not any(cell.marked for row in table.rows[2:] for cell in row)
    assert {row[0] for row in texts(table)} == set(tables.flat(runs[0].config))
