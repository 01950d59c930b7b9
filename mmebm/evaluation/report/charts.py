"""Line charts as inline SVG: no library draws them in the page, and its colours are those of the page's theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 10, 36
# Classes of the style sheet; more runs take the first ones again.
COLOURS = 8
LINEAR_TO = 50  # a "symlog" axis is linear up to here
MOST_POINTS = 400


@dataclass(frozen=True)
class Line:
    """One curve; values that are None, NaN or infinite leave it out there. `shift` pixels keep intervals apart."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    dashed: bool = False
    intervals: Sequence[tuple[float, float] | None] = ()
    shift: float = 0.0

    def points(self) -> list[tuple[float, float]]:
        found = [
            (float(a), float(b)) for a, b in zip(self.x, self.y, strict=True) if b is not None and math.isfinite(b)
        ]
        every = -(-len(found) // MOST_POINTS)
        return found if every <= 1 else [*found[:-1:every], found[-1]]


@dataclass(frozen=True)
class Chart:
    title: str
    svg: Markup
    description: str
    marks: list[tuple[float, float]]  # where the first line's points are drawn


def chart(
    title: str, lines: Sequence[Line], *, x_label: str, y_range: tuple[float, float] | None = None, log_y: bool = False,
    symlog_x: bool = False, ticks: Sequence[float] | None = None, verticals: Mapping[str, float] | None = None,
    labels_on_top: bool = False, dots: bool = False, cursor: bool = False,
) -> Chart | None:  # fmt: skip
    """A chart of the lines that have points; None where none has.

    `verticals` are lines at an x, labelled at the bottom unless `labels_on_top`; `cursor` adds the slider's marker.
    """
    drawn = [(line, points) for line in lines if (points := line.points())]
    if not drawn:
        return None
    ys = [y for _, points in drawn for _, y in points]
    xs = [x for _, points in drawn for x, _ in points]
    log_y = log_y and min(ys) > 0
    ys += [bound for line, _ in drawn for interval in line.intervals for bound in interval or ()]
    low, high = y_range or _padded(min(ys), max(ys), log_y)
    x_of = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, _symlog if symlog_x else float)
    y_of = _scale(low, high, HEIGHT - BOTTOM, TOP, math.log10 if log_y else float)
    parts = []
    for value in _decades(low, high) if log_y else _ticks(low, high):
        y = y_of(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_number(value)}</text>')
    marks = _symlog_ticks(min(xs), max(xs)) if symlog_x else (ticks or _ticks(min(xs), max(xs), 5))
    for value in marks:
        at_x, at_y = f"{x_of(value):.1f}", HEIGHT - BOTTOM + 16
        parts.append(f'<text x="{at_x}" y="{at_y}" text-anchor="middle">{_number(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    if low < 0 < high and not log_y:
        parts.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(0):.1f}" y2="{y_of(0):.1f}"/>')
    labels = []
    for i, (label, value) in enumerate((verticals or {}).items()):
        x = x_of(value)
        right = x > middle
        parts.append(f'<line class="vertical" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        labels.append(
            f'<text class="halo" x="{x + (-4 if right else 4):.1f}" '
            f'y="{TOP + 10 + 14 * i if labels_on_top else HEIGHT - BOTTOM - 8 - 14 * i}" '
            f'text-anchor="{"end" if right else "start"}">{escape(label)}</text>'
        )
    for line, points in drawn:
        colour = f"s{line.colour % COLOURS}"
        name = f"line {colour}{' dashed' if line.dashed else ''}"
        at = [(x_of(x) + line.shift, y_of(min(max(y, low), high))) for x, y in points]
        parts.append(f'<polyline class="{name}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"/>')
        if dots or len(at) == 1:
            parts += [f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in at]
        for (x, _), interval in zip(at, line.intervals, strict=False):
            if interval is not None:
                a, b = (y_of(min(max(v, low), high)) for v in interval)
                parts.append(f'<line class="line {colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{a:.1f}" y2="{b:.1f}"/>')
    parts += labels
    first = drawn[0][1]
    at = [(round(x_of(x), 1), round(y_of(min(max(y, low), high)), 1)) for x, y in first]
    if cursor:
        parts.append(
            f'<line class="cursor" x1="{at[0][0]}" x2="{at[0][0]}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<circle class="cursor s{drawn[0][0].colour % COLOURS}" cx="{at[0][0]}" cy="{at[0][1]}" r="5"/>'
        )
    description = "; ".join(_told(line.label, points, x_label) for line, points in drawn)
    svg = Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )
    return Chart(title, svg, description, at)


def _told(label: str, points: Sequence[tuple[float, float]], x_label: str) -> str:
    (x0, y0), (x1, y1) = points[0], points[-1]
    if len(points) == 1:
        return f"{label}: {y0:.4g} at {x_label} {x0:g}"
    low, high = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])
    return (
        f"{label}: from {y0:.4g} at {x_label} {x0:g} to {y1:.4g} at {x1:g}; "
        f"least {low[1]:.4g} at {low[0]:g}, most {high[1]:.4g} at {high[0]:g}"
    )


def _scale(a: float, b: float, start: float, end: float, law: Callable[[float], float]) -> Callable[[float], float]:
    low, high = law(a), law(b)
    span = high - low or 1.0
    return lambda v: start + (law(v) - low) / span * (end - start)


def _symlog(x: float) -> float:
    return x / LINEAR_TO if x <= LINEAR_TO else 1.0 + 1.3 * math.log10(x / LINEAR_TO)


def _symlog_ticks(low: float, high: float) -> list[float]:
    return [x for x in (0, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10000) if low <= x <= high]


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        return low / 1.2, high * 1.2
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers in [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**k for k in powers for m in (1, 2, 5) if low <= m * 10.0**k <= high]
    whole = [10.0**k for k in powers if low <= 10.0**k <= high]
    return whole if len(found) > 6 else found or [low, high]


def _number(value: float) -> str:
    """Short: what would be longer than six characters has an exponent."""
    text = f"{value:.10g}" if abs(value) < 1e5 else f"{value:.3g}"
    return (text if len(text) <= 6 else f"{value:.3g}").replace("-", "−")
