"""One PNG: speed-ups over every contender, and how much of the limit is reached."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from bench.case import SUBJECT
from bench.record import read
from bench.report import LIMITS, fraction, groups, prices

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot(csv: Path, png: Path) -> None:
    """Left, a dot per contender and case on a logarithmic axis; right, a bar per case that has a measured bound."""
    rows = read(csv)
    cases = [case for group in groups(rows).values() for case in group if case[SUBJECT]["rounds"]]
    if not cases:
        raise ValueError(f"{csv}: expected timed cases, got none")
    names = list(dict.fromkeys(n for case in cases for n in case if n != SUBJECT and n not in LIMITS))
    labels = [f"{case[SUBJECT]['case']}, {case[SUBJECT]['threads']} threads" for case in cases]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 1.2 + 0.22 * len(cases)), width_ratios=(3, 2), sharey=True, layout="constrained"
    )
    for i, name in enumerate(names):
        timed = [(y, case[name]) for y, case in enumerate(cases) if name in case and case[name]["rounds"]]
        if timed:
            middle = [float(row["ratio_median"]) for _, row in timed]
            spread = [
                [m - float(row["ratio_q1"]) for m, (_, row) in zip(middle, timed, strict=True)],
                [float(row["ratio_q3"]) - m for m, (_, row) in zip(middle, timed, strict=True)],
            ]
            marker = "osD^v<>Xp*"[i % 10]
            left.errorbar(
                middle, [y for y, _ in timed], xerr=spread, fmt=marker, markersize=4, label=name, linewidth=0.8
            )
    left.axvline(1.0, color="0.6", linewidth=0.8)
    left.set(
        xscale="log", xlabel=f"{SUBJECT} is so many times faster (paired median, quartiles)", yticks=range(len(cases))
    )
    left.set_yticklabels(labels, fontsize=7)
    left.invert_yaxis()
    if names:
        left.legend(fontsize=7, loc="best")
    priced = prices(rows)
    reached = [fraction(case, priced) if case[SUBJECT]["limit"] else "" for case in cases]
    bars = [(y, r[0]) for y, r in enumerate(reached) if not isinstance(r, str)]
    right.barh([y for y, _ in bars], [r for _, r in bars], color="0.55")
    right.axvline(1.0, color="0.2", linewidth=0.8)
    right.set(xlabel="fraction of the measured bound", xlim=(0, max([1.05, *(r for _, r in bars)])))
    figure.savefig(png, dpi=130)
    plt.close(figure)
