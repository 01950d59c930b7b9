"""Markdown tables and a plot, from the CSV alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench.case import SUBJECT
from bench.contenders.limits import COPY, FILL, FMA, GEMM
from bench.record import read

Row = dict[str, str]
_FASTER = f"Median of paired ratios [quartiles]: above 1, {SUBJECT} is faster. *: fewer steps, scaled."
_FLOPS = "The same rounds; a chain's activations, noise and updates are in its time, not in its flops."
_BOUND = f"""\
"over" is the paired ratio of rates to what the machine was seen to do in the same rounds. The bound of a computation is
its multiply-adds at the rate of {FMA}, plus its activations and normals at the prices of the cases `stage` (one thread,
the same instruction set): they share the ports, so that costs add. That of a pass over memory is its bytes."""
# Other functions than the subject's: they belong in the tables of limits.
LIMITS = (GEMM, FMA, FILL, COPY)


def by_case(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """(case, threads) -> contender -> row, in the order of the file."""
    cases: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row["case"], row["threads"]), {})[row["contender"]] = row
    return cases


def ratio(row: Row | None, shown: str = "{:.2f} [{:.2f}-{:.2f}]") -> str:
    """Median and quartiles, with a star where fewer steps were scaled; the reason where nothing was timed."""
    if row is None:
        return ""
    if not row["rounds"]:
        return row["note"].partition(":")[0] or "-"
    star = "*" if row["scaled_from"] else ""
    return shown.format(*(float(row[k]) for k in ("ratio_median", "ratio_q1", "ratio_q3"))) + star


def seconds(row: Row) -> str:
    """The median call, in a unit that suits it."""
    if not row["median_s"]:
        return row["note"].partition(":")[0] or "-"
    value = float(row["median_s"])
    star = "*" if row["scaled_from"] else ""
    scale, unit = next(((s, u) for s, u in ((1.0, "s"), (1e-3, "ms")) if value >= s), (1e-6, "µs"))
    return f"{value / scale:.3g} {unit}{star}"


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(line) + " |" for line in body),
    ]
    return "\n".join(lines)


def groups(rows: Iterable[Row]) -> dict[str, list[dict[str, Row]]]:
    """Cases that have one subject, by the first part of their name."""
    groups: dict[str, list[dict[str, Row]]] = {}
    for (case, _), found in by_case(rows).items():
        if SUBJECT in found:
            groups.setdefault(case.partition("/")[0], []).append(found)
    return groups


def contenders(rows: list[Row]) -> str:
    """Speed-ups: per case the subject's time and, per contender, how many times faster the subject is."""
    parts = []
    for group, cases in groups(rows).items():
        names = list(dict.fromkeys(n for case in cases for n in case if n != SUBJECT and n not in LIMITS))
        if not names:
            continue
        body = []
        for case in cases:
            subject = case[SUBJECT]
            served = " ".join(filter(None, (subject["backend"], subject["isa"])))
            body.append([subject["sizes"], served, seconds(subject), *(ratio(case.get(n)) for n in names)])
        parts.append(f"### {group}\n\n" + _table(["sizes", "backend", SUBJECT, *(f"vs {n}" for n in names)], body))
    return "\n\n".join(parts)


def matrix_product(rows: list[Row]) -> str:
    """Floating-point rates beside torch.mm's of the same width, measured in the same rounds."""
    body = []
    for cases in groups(rows).values():
        for case in cases:
            if GEMM in case and case[GEMM]["rounds"]:
                mine, gemm = case[SUBJECT], case[GEMM]
                rates = [f"{float(r['rate']):.0f} ({float(r['best_rate']):.0f})" for r in (mine, gemm)]
                body.append([mine["operator"], mine["sizes"], mine["isa"], *rates, ratio(gemm)])
    return _table(["operator", "sizes", "isa", "GFLOP/s, median (best)", f"{GEMM}", "ratio"], body) if body else ""


def prices(rows: list[Row]) -> dict[str, dict[str, float]]:
    """isa -> stage -> what one value costs in multiply-add flops, from the cases `stage`."""
    found: dict[str, dict[str, float]] = {}
    for (case, _), contenders in by_case(rows).items():
        group, _, isa = case.partition("/")
        if group == "stage":
            timed = {n: float(r["ratio_median"]) for n, r in contenders.items() if r["rounds"]}
            found[isa] = {"flop": 1.0} | timed
    return found


def fraction(case: dict[str, Row], priced: dict[str, dict[str, float]]) -> tuple[float, str] | str:
    """The reached fraction of the bound and the bound in words; or why there is none."""
    subject = case[SUBJECT]
    limit = case.get(subject["limit"])
    if limit is None or not limit["rounds"]:
        return f"{subject['limit']} not measured"
    paired = float(limit["ratio_median"])
    parts = {name: float(value) for value, name in (p.split(" ", 1) for p in subject["model"].split(" + "))}
    if subject["limit"] != FMA:
        return paired, f"all bytes at the rate of {subject['limit']}"
    price = priced.get(subject["isa"], {})
    if lacking := [name for name in parts if name not in ("flop", *price)]:
        return f"no stage rate of {', '.join(lacking)}" + (f" on {subject['isa']}" if subject["isa"] else "")
    cost = {name: value * (1.0 if name == "flop" else price[name]) for name, value in parts.items()}
    words = {"flop": "multiply-adds at L1 rate", "silu": "SiLU with its derivative", "normals": "Philox normals"}
    total = sum(cost.values())
    shares = " + ".join(f"{words.get(n, n)} {c / total:.0%}" for n, c in cost.items())
    return paired * total, shares


def limits(rows: list[Row]) -> str:
    """Measured rate over measured bound; the bound adds what its parts cost, as they share the same ports."""
    priced, body = prices(rows), []
    for cases in groups(rows).values():
        for case in cases:
            subject = case[SUBJECT]
            if not subject["limit"] or not subject["rounds"]:
                continue
            reached = fraction(case, priced)
            cells = ["", reached] if isinstance(reached, str) else [f"{reached[0]:.0%}", reached[1]]
            rate = f"{float(subject['rate']):.4g} {subject['unit']}"
            served = subject["isa"] or subject["backend"]
            beside = f"{ratio(case.get(subject['limit']))} {subject['limit']}"
            body.append([subject["case"], subject["threads"], served, rate, beside, *cells])
    return _table(["case", "threads", "isa", "measured", "over", "of the bound", "the bound"], body) if body else ""


def summary(path: Path) -> str:
    """How many times faster a chain is than PyTorch's eager autograd loop, and how near its limits."""
    rows = read(path)
    found: dict[str, dict[str, dict[str, Row]]] = {}
    for case in groups(rows).get("langevin", []):
        named = dict(part.split("=") for part in case[SUBJECT]["sizes"].split())
        found.setdefault(f"{named['d']}, {named['h']}", {})[named["B"]] = case
    batches = list(dict.fromkeys(b for by_batch in found.values() for b in by_batch))
    priced, body = prices(rows), []
    for net, by_batch in found.items():
        speedups = [ratio(by_batch[b].get("eager autograd"), "{:.3g}") if b in by_batch else "" for b in batches]
        middle = by_batch.get("4096", {})
        reached = fraction(middle, priced) if middle else ""
        bound = reached if isinstance(reached, str) else f"{reached[0]:.0%}"
        body.append([net, *speedups, ratio(middle.get(GEMM), "{:.2f}"), bound])
    return _table(["d, h", *(f"{b} chains" for b in batches), f"rate over {GEMM}", "of the bound"], body)


def absences(rows: list[Row]) -> str:
    """What was not timed, and why."""
    notes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["note"]:
            notes.setdefault((row["contender"], row["note"]), []).append(row["case"])
    return "\n".join(
        f"- {name}, {note} ({len(cases)} cases, such as {cases[0]})" for (name, note), cases in notes.items()
    )


def conditions(rows: list[Row]) -> str:
    """On what, with what: one line for each distinct set of facts."""
    keys = ("processor", "torch", "python", "compiler", "mmebm", "revision")
    seen: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        seen.setdefault(tuple(row[k] for k in keys), set()).add(row["threads"])
    versions = sorted({row["version"] for row in rows if row["version"]})
    lines = [
        f"{processor}; threads: {', '.join(sorted(threads))}; "
        f"torch {torch}, Python {python}, {compiler}, mmebm {mmebm}, revision {revision}."
        for (processor, torch, python, compiler, mmebm, revision), threads in seen.items()
    ]
    return "\n".join(lines + ([f"Peers: {', '.join(versions)}."] if versions else []))


def report(path: Path) -> str:
    """All tables of one CSV."""
    rows = read(path)
    if not rows:
        return f"{path} holds no measurement; `python -m bench run` makes some."
    sections = (
        ("Against contenders", contenders(rows), _FASTER),
        (f"Against {GEMM}", matrix_product(rows), _FLOPS),
        ("Fraction of the limit", limits(rows), _BOUND),
        ("Not timed", absences(rows), ""),
        ("Conditions", conditions(rows), ""),
    )
    shown = [(title, body, note) for title, body, note in sections if body]
    return "\n\n".join("\n\n".join(filter(None, (f"## {title}", note, body))) for title, body, note in shown)
