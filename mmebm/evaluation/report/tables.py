"""Tables of a report: what evaluation.json, config.json and environment.json hold, a run beside the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .charts import Chart, Line, chart
from .gather import Gathered, way_title

ABSENT = "–"


@dataclass(frozen=True)
class Cell:
    """`bar` is a fraction drawn behind the text; `of` rows are headed by a `head`; `words` stand on the left."""

    text: str
    bar: float | None = None
    head: bool = False
    of: int = 1
    marked: bool = False
    words: bool = False


@dataclass(frozen=True)
class Table:
    caption: str
    head: list[str]
    rows: list[list[Cell]]
    note: str = ""
    words: bool = False  # cells are words, not numbers
    differing: list[str] = field(default_factory=list)


def fraction(value: Any) -> Cell:
    """A number in [0, 1], with its bar; None is a dash."""
    return Cell(ABSENT) if value is None else Cell(f"{float(value):.3f}", bar=min(max(float(value), 0.0), 1.0))


def number(value: Any, form: str = ".1f") -> Cell:
    return Cell(ABSENT if value is None else f"{float(value):{form}}".replace("-", "−"))


def uncertain(row: Mapping[str, Any], key: str) -> Cell:
    """A fraction with its interval, else with its standard error, where the row has them."""
    value = row.get(key)
    if value is None:
        return Cell(ABSENT)
    cell = fraction(value)
    if row.get("interval"):
        low, high = row["interval"]
        return Cell(f"{cell.text} [{low:.3f}, {high:.3f}]", cell.bar)
    if row.get("standard_error") is not None:
        return Cell(f"{cell.text} ± {row['standard_error']:.3f}", cell.bar)
    return cell


def _measured(runs: Sequence[Gathered], *keys: str) -> list[tuple[Gathered, Any]]:
    """Runs whose evaluation has something under these keys, with it."""
    found = []
    for run in runs:
        value: Any = run.evaluation
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value:
            found.append((run, value))
    return found


def joint_table(runs: Sequence[Gathered]) -> Table | None:
    """Joint coherence by way of drawing z."""
    rows = []
    for run, ways in _measured(runs, "joint"):
        for i, (way, row) in enumerate(ways.items()):
            cells = [Cell(run.name, head=True, of=len(ways))] if i == 0 else []
            title = way_title(way, run.prior)
            rows.append([
                *cells, Cell(title[0].upper() + title[1:] if way != "p_0" else title, head=True),
                uncertain(row, "coherence"), number(row.get("entropy"), ".3f"), number(_mean_frechet(row)),
                number(row.get("n"), ",.0f"),
            ])  # fmt: skip
    if not rows:
        return None
    head = ["run", "z from", "joint coherence", "class entropy", "Fréchet", "samples"]
    note = (
        "Joint coherence: samples of which every modality's classifier says the same class; ± one standard error, or a "
        "95% interval in brackets. Class entropy: 1 where all classes are drawn equally often. Fréchet: distance to "
        "real data in the classifiers' features, mean over modalities; less is better."
    )
    return Table("Joint generation", head, rows, note)


def _mean_frechet(row: Mapping[str, Any]) -> float | None:
    value = row.get("mean_frechet")
    return None if value is None or value != value else value


def summary_table(runs: Sequence[Gathered]) -> Table:
    """One line a run."""
    rows = []
    for run in runs:
        found = run.evaluation or {}
        joint, cross, probe = (found.get(key) or {} for key in ("joint", "cross", "probe"))
        prior = joint.get("prior") or {}
        rows.append([
            Cell(run.name, head=True), Cell(run.dataset, words=True), Cell(run.config["model"]["name"], words=True),
            Cell(run.prior, words=True),
            uncertain(prior, "coherence"), number(prior.get("entropy"), ".3f"), number(_mean_frechet(prior)),
            fraction(cross.get("mean")), fraction(probe.get("test")),
        ])  # fmt: skip
    head = [
        "run", "data", "model", "prior", "joint coherence", "class entropy", "Fréchet", "cross coherence", "probe"
    ]  # fmt: skip
    return Table("z from the prior", head, rows)


def measure_table(runs: Sequence[Gathered]) -> Table | None:
    """Probe, objective and what bounds a coherence."""
    rows = []
    for run, found in _measured(runs):
        objective, likelihood = found.get("objective") or {}, (found.get("likelihood") or {}).get("joint") or {}
        told = ABSENT
        if likelihood.get("mean") is not None:
            told = f"{likelihood['mean']:.2f}"
            if likelihood.get("standard_error") is not None:
                told += f" ± {likelihood['standard_error']:.2f}"
            told += f" (K={likelihood.get('samples', '?')})"
        log_z = likelihood.get("log_z")
        rows.append([
            Cell(run.name, head=True), fraction((found.get("probe") or {}).get("test")),
            fraction((found.get("cross") or {}).get("mean")), fraction(found.get("real_agreement")),
            number(objective.get("value"), ".2f"), Cell(objective.get("label", ABSENT), words=True),
            Cell(told.replace("-", "−")), number(log_z, ".2f"),
        ])  # fmt: skip
    if not rows:
        return None
    head = [
        "run", "linear probe", "cross coherence", "real rows agree", "objective", "which is", "log-likelihood", "log Z"
    ]  # fmt: skip
    note = (
        "Linear probe: test accuracy of a linear classifier on z. Cross coherence: mean over pairs of different "
        "modalities. Real rows agree: the joint coherence of the test rows themselves, as the classifiers see them."
    )
    table = Table("Representation, cross generation and objective", head, rows, note)
    for column in (7, 6):
        _drop_if_absent(table, column)
    return table


def _drop_if_absent(table: Table, column: int) -> None:
    """A column without any number says nothing."""
    if all(row[column].text == ABSENT for row in table.rows):
        table.head.pop(column)
        for row in table.rows:
            row.pop(column)


def classifier_table(runs: Sequence[Gathered]) -> Table | None:
    measured = _measured(runs, "classifier_accuracy")
    if not measured:
        return None
    names = list(dict.fromkeys(m for _, row in measured for m in row))
    rows = [[Cell(run.name, head=True), *(fraction(row.get(m)) for m in names)] for run, row in measured]
    note = "What no coherence can exceed by much: it is measured through them."
    return Table("Test accuracy of the classifiers", ["run", *names], rows, note)


def protocol_table(runs: Sequence[Gathered]) -> Table | None:
    """How it was measured: the evaluation's own words."""
    measured = _measured(runs, "protocol")
    keys = list(dict.fromkeys(k for _, row in measured for k in row))
    if not keys:
        return None
    rows = [[Cell(k, head=True), *(Cell(str(row.get(k, ABSENT))) for _, row in measured)] for k in keys]
    return Table("Protocol", ["", *(run.name for run, _ in measured)], rows, words=True)


# By the number of observed modalities ---------------------------------------------------------------------------------


def _micro(row: Mapping[str, Any]) -> Cell:
    return uncertain(row, "micro")


def _macro(row: Mapping[str, Any]) -> Cell:
    return fraction(row.get("macro"))


def _probe(row: Mapping[str, Any]) -> Cell:
    return fraction(row.get("test"))


def size_tables(runs: Sequence[Gathered]) -> list[Table]:
    """What is measured by the number of observed modalities: cross coherence and the probe."""
    tables = []
    for caption, keys, of, note in (
        ("Cross coherence, over rows", ("cross", "by_size"), _micro, "Mean over generated rows; 95% interval."),
        ("Cross coherence, over classes", ("cross", "by_size"), _macro, "Mean of the classes' own coherences."),
        ("Linear probe", ("probe_by_size",), _probe, "Test accuracy on z drawn from what was observed."),
    ):
        measured = _measured(runs, *keys)
        if not measured or all(of(row).text == ABSENT for _, by in measured for row in by.values()):
            continue
        sizes = _sizes(by for _, by in measured)
        rows = [
            [Cell(run.name, head=True), *(of(by[s]) if s in by else Cell(ABSENT) for s in sizes)]
            for run, by in measured
        ]
        tables.append(Table(caption, ["run", *(_observed(s) for s in sizes)], rows, note))
    return tables


def reconstruction_tables(runs: Sequence[Gathered]) -> list[Table]:
    """How far each modality is from what it is when it is made from so many others."""
    tables = []
    for run, by in _measured(runs, "reconstruction", "by_size"):
        sizes = _sizes([by])
        named = {t for s in sizes for t in by[s]}
        targets = [*(m for m in run.shapes if m in named), *sorted(named - set(run.shapes))]
        for key, caption, form in (("rmse", "RMSE", ".4f"), ("log_likelihood", "log-likelihood", ".2f")):
            if any(key in by[s].get(t, {}) for s in sizes for t in targets):
                rows = [
                    [Cell(t, head=True), *(number(by[s].get(t, {}).get(key), form) for s in sizes)] for t in targets
                ]
                tables.append(
                    Table(f"Reconstruction, {caption}: {run.name}", ["modality", *map(_observed, sizes)], rows)
                )
    return tables


def size_chart(runs: Sequence[Gathered]) -> Chart | None:
    """Cross coherence against the number of observed modalities, where there is more than one number."""
    lines, sizes = [], []
    for i, run in enumerate(runs):
        for _, by in _measured([run], "cross", "by_size"):
            found = [s for s in _sizes([by]) if by[s].get("micro") is not None]
            sizes += [float(s) for s in found]
            bounds = [tuple(by[s]["interval"]) if by[s].get("interval") else None for s in found]
            values, shift = [by[s]["micro"] for s in found], 3.0 * (i - (len(runs) - 1) / 2)
            lines.append(Line(run.name, [float(s) for s in found], values, i, intervals=bounds, shift=shift))
    if len(set(sizes)) < 2:
        return None
    return chart(
        "Cross coherence by observed modalities", lines, x_label="observed modalities", ticks=sorted(set(sizes)),
        dots=True,
    )  # fmt: skip


def subset_tables(runs: Sequence[Gathered]) -> list[Table]:
    """Cross coherence of every observed subset."""
    tables = []
    for run, subsets in _measured(runs, "cross", "subsets"):
        targets = list(dict.fromkeys(t for subset in subsets for t in subset["to"]))
        rows = [
            [
                Cell(", ".join(subset["from"]), head=True),
                *(fraction((subset["to"].get(t) or {}).get("micro")) for t in targets), number(subset.get("n"), ",.0f"),
            ]
            for subset in subsets
        ]  # fmt: skip
        table = Table(f"Every observed subset: {run.name}", ["observed", *targets, "rows"], rows)
        _drop_if_absent(table, -1)
        tables.append(table)
    return tables


def _sizes(tables: Any) -> list[str]:
    return sorted({size for by in tables for size in by}, key=int)


def _observed(size: str) -> str:
    return f"{size} observed"


# Configuration and versions -------------------------------------------------------------------------------------------


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by dotted key, as text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = _word(value)
    return found


def _word(value: Any) -> str:
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, list):
        return ", ".join(map(_word, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def settings_table(caption: str, runs: Sequence[Gathered], of: Callable[[Gathered], Mapping[str, Any]]) -> Table:
    """Settings by key, a column a run; keys in which runs differ come first and are marked."""
    columns = [flat(of(run)) for run in runs]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    differing = [key for key in keys if len({column.get(key) for column in columns}) > 1]
    rows = [
        [Cell(key, head=True), *(Cell(column.get(key, ABSENT), marked=key in differing) for column in columns)]
        for key in [*differing, *(key for key in keys if key not in differing)]
    ]
    return Table(caption, ["", *(run.name for run in runs)], rows, words=True, differing=differing)


def modality_table(runs: Sequence[Gathered]) -> Table | None:
    """Shapes of the modalities of each dataset."""
    rows, seen = [], set()
    for run in runs:
        told = {m: " × ".join(map(str, shape)) or "1" for m, shape in run.shapes.items()}
        if told and (run.dataset, tuple(told.items())) not in seen:
            seen.add((run.dataset, tuple(told.items())))
            for i, (m, shape) in enumerate(told.items()):
                first = [Cell(run.dataset, head=True, of=len(told))] if i == 0 else []
                rows.append([*first, Cell(m, head=True), Cell(shape)])
    return Table("Modalities", ["data", "modality", "shape"], rows, words=True) if rows else None
