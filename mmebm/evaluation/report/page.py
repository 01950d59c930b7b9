"""One HTML page for one or several runs. Nothing in it is loaded from elsewhere: it opens from a disk or a mail."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mmebm.version import VERSION

from ..figures import PANELS
from . import gather as gathering
from . import tables
from .charts import Chart, Line, chart
from .gather import Gathered, gather

__all__ = ["write_report"]

# A file that has this line is a report, which a new one may replace.
GENERATOR = '<meta name="generator" content="mmebm report">'


def write_report(runs: Sequence[Path | str], output: Path | str = "report.html") -> Path:
    """Writes the report of run folders, and returns its path; an earlier report is replaced.

    Errors: FileNotFoundError for a folder that is no run, FileExistsError where `output` is something else than a
    report, ValueError for no runs, the same run twice, or files that are not what they should be.
    """
    paths = [Path(run) for run in runs]
    if not paths:
        raise ValueError("runs: expected at least one run folder, got none")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"runs: expected different folders, got {', '.join(map(str, paths))}")
    target = Path(output)
    if target.is_dir() or (target.exists() and GENERATOR not in target.read_text(errors="replace")[:2000]):
        raise FileExistsError(f"output: {target} is there and is no report; choose another")
    try:
        text = render([gather(path, name) for path, name in zip(paths, names(paths), strict=True)])
    finally:
        gathering.forget()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, target)
    return target


def names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many folders above them as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def render(runs: Sequence[Gathered]) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("mmebm.evaluation.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    plain = {name: Markup(environment.loader.get_source(environment, name)[0]) for name in ("page.css", "page.js")}  # type: ignore[union-attr]
    return environment.get_template("page.html").render(
        version=VERSION,
        generator=Markup(GENERATOR),
        style=plain["page.css"],
        script=plain["page.js"],
        runs=runs,
        way_title=gathering.way_title,
        chains=gathering.CHAINS,
        has_chains=any(run.config["prior"]["name"] == "energy" for run in runs),
        summary=tables.summary_table(runs),
        joint=tables.joint_table(runs),
        measures=[t for t in (tables.measure_table(runs), tables.classifier_table(runs)) if t],
        protocol=tables.protocol_table(runs),
        by_size=tables.size_tables(runs),
        reconstruction=tables.reconstruction_tables(runs),
        size_chart=tables.size_chart(runs),
        sized=[i for i, run in enumerate(runs) if tables.size_chart([run])],
        subsets=tables.subset_tables(runs),
        curves=training_curves(runs),
        transitions={i: moving(run) for i, run in enumerate(runs) if run.transition},
        matrix=matrix_cell,
        settings=tables.settings_table("Configuration", runs, lambda run: run.config),
        versions=tables.settings_table("Versions and machine", runs, lambda run: _versions(run.environment)),
        modalities=tables.modality_table(runs),
    )


def _versions(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in environment.items() if key != "shapes"}


def matrix_cell(run: Gathered, source: str, target: str) -> tables.Cell:
    """Coherence of one pair."""
    found = ((run.evaluation or {}).get("cross") or {}).get("matrix") or {}
    return tables.fraction((found.get(source) or {}).get(target))


# Curves ---------------------------------------------------------------------------------------------------------------


def training_curves(runs: Sequence[Gathered]) -> list[tuple[str, list[int], list[tuple[Chart, list[str]]]]]:
    """For each dataset its runs and charts; a chart comes with the names of its solid and dashed lines."""
    order = sorted(range(len(runs)), key=lambda i: [run.dataset for run in runs].index(runs[i].dataset))
    made = []
    for dataset, members in groupby(order, key=lambda i: runs[i].dataset):
        indices, charts = list(members), []
        for panel, metrics in PANELS.items():
            lines: list[Line] = []
            kinds: list[str] = []
            for j, (key, label) in enumerate(metrics):
                before = len(lines)
                for i in indices:
                    points = [(row["update"], _value(row, key)) for row in runs[i].rows if "update" in row]
                    if any(value is not None for _, value in points):
                        told = f"{runs[i].name}, {label}" if len(indices) > 1 else label
                        lines.append(Line(told, [u for u, _ in points], [v for _, v in points], i, dashed=j > 0))
                kinds += [label] if len(lines) > before else []
            if drawn := chart(panel, lines, x_label="update", log_y=panel == "gradient norm"):
                charts.append((drawn, kinds if len(kinds) > 1 else []))
        if charts:
            made.append((dataset, indices, charts))
    return made


def _value(row: Mapping[str, Any], key: str | tuple[str, str]) -> float | None:
    if isinstance(key, str):
        return None if row.get(key) is None else float(row[key])
    a, b = (_value(row, k) for k in key)
    return None if a is None or b is None else a - b


# The transition -------------------------------------------------------------------------------------------------------


def moving(run: Gathered) -> dict[str, Any]:
    """A transition for the page: its charts, and what its script moves."""
    found = run.transition
    assert found is not None
    series: dict[str, tuple[str, list[float], tuple[float, float] | None, int]] = {
        "energy": ("mean energy E(z)", found.energy, None, 1)
    }
    if found.coherence is not None and found.entropy is not None:
        series["coherence"] = ("joint coherence", found.coherence, (0.0, 1.0), 0)
        series["entropy"] = ("class entropy", found.entropy, (0.0, 1.0), 2)
    charts = {
        key: chart(
            title, [Line(title, found.steps, values, colour)], x_label="Langevin step", y_range=y_range, symlog_x=True,
            verticals=found.marks, labels_on_top=key == "energy", cursor=True,
        )
        for key, (title, values, y_range, colour) in series.items()
    }  # fmt: skip
    drawn = {key: made for key, made in charts.items() if made}
    return {
        "charts": drawn,
        "titles": {key: title for key, (title, *_) in series.items()},
        "data": {
            "steps": found.steps,
            "values": {key: [round(v, 5) if math.isfinite(v) else None for v in series[key][1]] for key in drawn},
            "titles": {key: series[key][0] for key in drawn},
            "marks": {key: _marks(series[key][1], made.marks) for key, made in drawn.items()},
            "moving": [strip.moving() for strip in found.strips],
        },
    }


def _marks(values: Sequence[float], drawn: Sequence[tuple[float, float]]) -> list[tuple[float, float] | None]:
    """Where each value stands in its chart; None for what is not finite, which is not drawn."""
    places = iter(drawn)
    return [next(places) if math.isfinite(value) else None for value in values]
