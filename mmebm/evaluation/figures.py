"""Figures from arrays: sample grids, the Markov transition, training curves. Images are clamped to [0, 1]."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["cross_grid", "curves", "sample_grids", "transition"]

PathLike = str | os.PathLike[str]
# Okabe and Ito's palette, told apart under every common colour blindness.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#555555"
DPI = 100
CELL = 48  # smallest side of a shown image, in pixels
GAP = 2
SEAM = 10  # between modalities' groups or chains
MARGIN = 14
TITLE = 26
LABEL = 72
PANEL = 210
# Panel -> metric keys and their labels; a key of two is their difference.
PANELS: dict[str, tuple[tuple[str | tuple[str, str], str], ...]] = {
    "loss": (("loss", "loss"),),
    "energy": (("E_q", "posterior E_q"), ("E_p", "chains E_p")),
    "E_q - E_p": ((("E_q", "E_p"), "E_q - E_p"),),
    "scale": (("posterior_scale", "posterior"), ("chain_scale", "chains")),
    "gradient norm": (("grad_norm", "autoencoder"), ("energy_grad_norm", "energy")),
}


def sample_grids(
    samples: Mapping[str, Mapping[str, Tensor]], path: PathLike, titles: Mapping[str, str] | None = None
) -> None:
    """Joint samples of several priors side by side: a block for each prior, a column a sample, a row a modality.

    Args:
        samples: prior -> modality -> images [N, C, H, W]; every prior has the same modalities.
        path: PNG to write; missing folders are made.
        titles: prior -> title of its block; by default its name.
    """
    if not samples:
        raise ValueError("samples: expected at least one prior, got none")
    names = list(next(iter(samples.values())))
    blocks = {}
    for prior, block in samples.items():
        if list(block) != names or not names:
            raise ValueError(f"samples[{prior!r}]: expected the modalities {names}, got {list(block)}")
        blocks[prior] = {m: _images(f"samples[{prior!r}][{m!r}]", x) for m, x in block.items()}
        _equal_rows(f"samples[{prior!r}]", blocks[prior])
    cell = _cell(image for block in blocks.values() for image in block.values())
    grids = [_stack_rows([_strip(x, cell) for x in block.values()]) for block in blocks.values()]
    label = _label_width(names)
    width = label + sum(g.shape[1] for g in grids) + MARGIN * len(grids)
    page = _Page(width, TITLE + grids[0].shape[0] + MARGIN)
    _row_labels(page, names, TITLE, cell, label)
    x = label
    for prior, grid in zip(blocks, grids, strict=True):
        page.text(x + grid.shape[1] / 2, TITLE / 2, (titles or {}).get(prior, prior), size=12)
        page.image(x, TITLE, grid)
        x += grid.shape[1] + MARGIN
    page.save(path)


def cross_grid(inputs: Mapping[str, Tensor], outputs: Mapping[str, Mapping[str, Tensor]], path: PathLike) -> None:
    """Cross generation: a row for each source with its inputs beside it, a column for each target.

    Args:
        inputs: modality -> images [n, C, H, W] that were conditioned on.
        outputs: source modality -> target modality -> generated images [n, C, H, W]; absent pairs stay blank.
        path: PNG to write.
    """
    if not outputs:
        raise ValueError("outputs: expected at least one source modality, got none")
    targets = list(dict.fromkeys(target for row in outputs.values() for target in row))
    given = {m: _images(f"inputs[{m!r}]", x) for m, x in inputs.items()}
    made: dict[tuple[str, str], np.ndarray] = {}
    for source, row in outputs.items():
        if source not in given:
            raise ValueError(f"inputs: expected the source {source!r}, got {list(given)}")
        for target, x in row.items():
            made[source, target] = _images(f"outputs[{source!r}][{target!r}]", x)
            _equal_rows(f"outputs[{source!r}]", {"the input": given[source], target: made[source, target]})
    cell = _cell([*(given[s] for s in outputs), *made.values()])
    n = max(len(given[s]) for s in outputs)
    strip, gap = n * cell + (n - 1) * GAP, MARGIN
    names = [f"from {s}" for s in outputs]
    label = _label_width(names)
    page = _Page(label + (1 + len(targets)) * (strip + gap), 2 * TITLE + len(outputs) * (cell + GAP) - GAP + MARGIN)
    page.text(label + strip / 2, 1.5 * TITLE, "input", size=12)
    page.text(label + strip + gap + (len(targets) * (strip + gap) - gap) / 2, 0.5 * TITLE, "generated", size=12)
    _row_labels(page, names, 2 * TITLE, cell, label)
    for j, target in enumerate(targets):
        page.text(label + (j + 1) * (strip + gap) + strip / 2, 1.5 * TITLE, target, size=11)
    for i, source in enumerate(outputs):
        y = 2 * TITLE + i * (cell + GAP)
        page.image(label, y, _strip(given[source], cell))
        for j, target in enumerate(targets):
            if (source, target) in made:
                page.image(label + (j + 1) * (strip + gap), y, _strip(made[source, target], cell))
    page.line(label + strip + gap / 2, TITLE, label + strip + gap / 2, page.height - MARGIN)
    page.save(path)


def transition(
    steps: Sequence[int],
    frames: Mapping[str, Tensor],
    energy: ArrayLike,
    coherence: ArrayLike,
    entropy: ArrayLike,
    path: PathLike,
    *,
    trained_steps: int | None = None,
) -> None:
    """The Markov transition: chains decoded along their way, and what they measure, against the Langevin step.

    Args:
        steps: T increasing step numbers, those of training and those far beyond.
        frames: modality -> decoded states [T, n, C, H, W] of a few chains.
        energy: [T] mean energy of all chains.
        coherence: [T] joint coherence.
        entropy: [T] class entropy in units of log(n_classes).
        path: PNG to write.
        trained_steps: marked in the panels: the steps that an update of training took.
    """
    count = len(steps)
    if count < 2 or any(b <= a for a, b in itertools.pairwise(steps)):
        raise ValueError(f"steps: expected at least two increasing steps, got {list(steps)}")
    if not frames:
        raise ValueError("frames: expected at least one modality, got none")
    shown = {}
    for m, x in frames.items():
        x = torch.as_tensor(x)
        if x.ndim != 5 or x.shape[0] != count or not x.shape[1]:
            raise ValueError(f"frames[{m!r}]: expected [{count}, n, C, H, W], a frame a step, got {list(x.shape)}")
        shown[m] = _images(f"frames[{m!r}]", x.flatten(0, 1)).reshape(count, x.shape[1], *x.shape[3:], 3)
    _equal_rows("frames", {m: x[0] for m, x in shown.items()})
    panels = (
        ("energy", energy, VERMILION),
        ("joint coherence", coherence, BLUE),
        ("class entropy (1: uniform)", entropy, GREEN),
    )
    series = {name: _series(name, values, count) for name, values, _ in panels}
    chains = next(iter(shown.values())).shape[1]
    cell = _cell(x[0] for x in shown.values())
    groups = [_stack_rows([_strip(x[:, i], cell) for x in shown.values()]) for i in range(chains)]
    height, strip = groups[0].shape[:2]
    label = _label_width(list(shown))
    width = label + max(strip, 640) + MARGIN
    top = 2 * TITLE
    below = top + chains * (height + SEAM)
    page = _Page(width, below + PANEL + MARGIN)
    page.text(label + strip / 2, 0.5 * TITLE, "Langevin step", size=12)
    for t, step in enumerate(steps):
        page.text(label + t * (cell + GAP) + cell / 2, 1.5 * TITLE, str(step), size=11)
    for i, group in enumerate(groups):
        _row_labels(page, list(shown), top + i * (height + SEAM), cell, label)
        page.image(label, top + i * (height + SEAM), group)
    each = (width - label - MARGIN) / 3
    for j, (name, _, colour) in enumerate(panels):
        axes = page.axes(label + j * each, below + 34, each - 46, PANEL - 74)
        axes.plot(steps, series[name], color=colour, marker="o", markersize=3, linewidth=1.4)
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("step", fontsize=10)
        if steps[-1] > 100:
            axes.set_xscale("symlog", linthresh=50, linscale=1.3)
            marks = [s for s in (0, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10000) if steps[0] <= s <= steps[-1]]
            axes.set_xticks(marks, [str(s) for s in marks])
            axes.minorticks_off()
        if name != "energy":
            axes.set_ylim(-0.03, 1.03)
        if trained_steps is not None:
            axes.axvline(trained_steps, color=GREY, linestyle="--", linewidth=1)
            low = name != "energy"  # energies fall
            axes.annotate("steps an update", (trained_steps, 0 if low else 1), xycoords=("data", "axes fraction"),
                          xytext=(3, 5 if low else -11), textcoords="offset points", fontsize=9, color=GREY,
                          bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5})  # fmt: skip
        _clean(axes)
    page.save(path)


def curves(rows: Sequence[Mapping[str, Any]], path: PathLike) -> None:
    """Training curves, a panel for each group of metrics present.

    Args:
        rows: metric rows as read from JSON lines: `update`, and any of `loss`, `E_q`, `E_p` (their difference is drawn
            too), `posterior_scale`, `chain_scale`, `grad_norm`, `energy_grad_norm`. Rows need not have all keys.
        path: PNG to write.

    Raises:
        ValueError: no row has an update and one of these metrics.
    """
    drawn: dict[str, list[tuple[str, list[float], list[float]]]] = {}
    for panel, metrics in PANELS.items():
        for key, label in metrics:
            points = [(row["update"], _value(row, key)) for row in rows if "update" in row]
            x, y = [float(s) for s, v in points if v is not None], [v for _, v in points if v is not None]
            if y:
                drawn.setdefault(panel, []).append((label, x, y))
    if not drawn:
        known = sorted({k for p in PANELS.values() for key, _ in p for k in ((key,) if isinstance(key, str) else key)})
        got = sorted({k for row in rows for k in row})
        raise ValueError(f"rows: expected 'update' and some of {known}, got keys {got}")
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    each = 340
    page = _Page(columns * each + MARGIN, lines * (PANEL + MARGIN) + MARGIN)
    for i, (panel, lines_drawn) in enumerate(drawn.items()):
        left, top = (i % columns) * each, (i // columns) * (PANEL + MARGIN)
        axes = page.axes(left + 70, top + 34, each - 84, PANEL - 74)
        for (label, x, y), colour, style in zip(lines_drawn, (BLUE, VERMILION), ("-", "--"), strict=False):
            marker = "o" if len(x) == 1 else None  # a point alone makes no line
            axes.plot(x, y, color=colour, linestyle=style, linewidth=1.3, label=label, marker=marker)
        if panel == "E_q - E_p":
            axes.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
        if panel == "gradient norm" and all(v > 0 for _, _, y in lines_drawn for v in y):
            axes.set_yscale("log")  # the two differ by orders of magnitude
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if len(lines_drawn) > 1:
            axes.legend(fontsize=9, frameon=False)
        axes.set_title(panel, fontsize=11)
        axes.set_xlabel("update", fontsize=10)
        _clean(axes)
    page.save(path)


class _Page:
    """A figure addressed in pixels from the top left, without pyplot's global state."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = int(np.ceil(width)), int(np.ceil(height))
        # A hair more than the pixels: matplotlib truncates width * dpi.
        inches = ((self.width + 0.01) / DPI, (self.height + 0.01) / DPI)
        self.figure = Figure(figsize=inches, dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def image(self, x: int, y: int, pixels: np.ndarray) -> None:
        # figimage draws pixel for pixel, from the bottom left.
        self.figure.figimage(pixels[::-1], xo=x, yo=self.height - y - pixels.shape[0], origin="lower", vmin=0, vmax=1)

    def text(self, x: float, y: float, words: str, size: float, **options: Any) -> None:
        options = {"ha": "center", "va": "center", **options}
        self.figure.text(x / self.width, 1 - y / self.height, words, fontsize=size, **options)

    def line(self, x0: float, y0: float, x1: float, y1: float) -> None:
        from matplotlib.lines import Line2D

        xs, ys = [x0 / self.width, x1 / self.width], [1 - y0 / self.height, 1 - y1 / self.height]
        self.figure.add_artist(Line2D(xs, ys, color=GREY, linewidth=0.8, transform=self.figure.transFigure))

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        bottom = 1 - (y + height) / self.height
        return self.figure.add_axes((x / self.width, bottom, width / self.width, height / self.height))

    def save(self, path: PathLike) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.figure.savefig(path, format="png", dpi=DPI)


def _images(name: str, value: Tensor) -> np.ndarray:
    """[N, H, W, 3] in [0, 1]; uint8 is scaled."""
    x = torch.as_tensor(value).detach().cpu()
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.numel():
        raise ValueError(f"{name}: expected images [N, C, H, W] with 1 or 3 channels, got {list(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    return x.clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def _equal_rows(name: str, images: Mapping[str, np.ndarray]) -> None:
    counts = {m: len(x) for m, x in images.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{name}: expected equal numbers of images, got {counts}")


def _cell(images: Any) -> int:
    """Side of a shown image in pixels: a multiple of the largest one's."""
    side = max(max(x.shape[1:3]) for x in images)
    return int(side * -(-CELL // side))


def _strip(images: np.ndarray, cell: int) -> np.ndarray:
    """[n, H, W, 3] -> [cell, n cell + gaps, 3], nearest neighbour, white gaps."""
    n, h, w = images.shape[:3]
    rows, columns = np.arange(cell) * h // cell, np.arange(cell) * w // cell
    out = np.ones((cell, n * (cell + GAP) - GAP, 3), dtype=np.float32)
    for i, image in enumerate(images):
        out[:, i * (cell + GAP) : i * (cell + GAP) + cell] = image[rows][:, columns]
    return out


def _stack_rows(strips: list[np.ndarray]) -> np.ndarray:
    gap = np.ones((GAP, strips[0].shape[1], 3), dtype=np.float32)
    parts = [part for strip in strips for part in (strip, gap)]
    return np.concatenate(parts[:-1])


def _label_width(names: list[str]) -> int:
    """Pixels left of the images: LABEL, more for long names."""
    return max(LABEL, 8 + 8 * max(map(len, names)))


def _row_labels(page: _Page, names: list[str], top: int, cell: int, width: int) -> None:
    for i, name in enumerate(names):
        page.text(width - 6, top + i * (cell + GAP) + cell / 2, name, size=10, ha="right")


def _series(name: str, values: ArrayLike, count: int) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.shape != (count,):
        raise ValueError(f"{name}: expected [{count}], a value a step, got {list(array.shape)}")
    return array


def _value(row: Mapping[str, Any], key: str | tuple[str, str]) -> float | None:
    if isinstance(key, str):
        return None if row.get(key) is None else float(row[key])
    a, b = (_value(row, k) for k in key)
    return None if a is None or b is None else a - b


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)
