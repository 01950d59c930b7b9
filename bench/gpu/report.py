"""A line for each row as it comes, and the table of ratios at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.record import read


def _seconds(text: Any) -> str:
    return f"{1e6 * float(text):.1f} us" if text not in ("", None) else ""


def line(row: Mapping[str, Any]) -> str:
    """What a row says, on one line."""
    words = [row["part"], row["case"], row["backend"], row["contender"], row["precision"], _seconds(row["median_s"])]
    if row["ratio"] not in ("", None):
        words.append(f"{float(row['ratio']):.2f}x")
    if row["rate"] not in ("", None):
        words.append(f"{float(row['rate']):.4g} {row['unit']}")
    if row["share"] not in ("", None):
        words.append(f"{100 * float(row['share']):.1f}% of the limit")
    if row["error"] not in ("", None):
        words.append(f"error {float(row['error']):.2g} of {float(row['allowed']):.2g} allowed")
    return "  ".join(str(word) for word in (*words, row["verdict"], row["note"]) if word not in ("", None))


def table(path: Path, device: str) -> str:
    """Markdown: the cases on this device. A ratio is a contender's median over mmebm's of the same case."""
    rows = [row for row in read(path) if row["part"] == "case" and row["device"] == device]
    lines = [
        "| case | contender | precision | median | mmebm is faster by | of the limit |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = f"{float(row['ratio']):.2f}x" if row["ratio"] else ""
        share = f"{100 * float(row['share']):.0f}%" if row["share"] else ""
        median = _seconds(row["median_s"]) or row["note"]
        lines.append(f"| {row['case']} | {row['contender']} | {row['precision']} | {median} | {ratio} | {share} |")
    return "\n".join(lines)
