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
    """Markdown: the cases on this device; a ratio is over the fastest of mmebm's backends in the same case.

    Then the cases of kernels alone, what the device can do, and what the checks came to.
    """
    rows = [row for row in read(path) if row["device"] == device]
    cases = [row for row in rows if row["part"] == "case"]
    lines = [
        "| chains or experts | by | precision | median, us | times mmebm's | of the limit |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in cases if not row["case"].startswith("kernels/")]
    if kernels := [row for row in cases if row["case"].startswith("kernels/")]:
        lines += [
            "",
            "| kernels | by | precision | median, us | times the fastest | of the limit |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in kernels]
    told = [f"{row['case']} {float(row['rate']):,.0f} {row['unit']}" for row in rows if row["part"] == "peak"]
    checks = [row["verdict"] for row in rows if row["part"] == "check" and row["verdict"] != "not served"]
    lines += ["", f"{device}: {', '.join(told) or 'no peaks'}; {checks.count('ok')} of {len(checks)} checks hold."]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    ratio = f"{float(row['ratio']):.2f}" if row["ratio"] else ""
    share = f"{100 * float(row['share']):.0f}%" if row["share"] else ""
    median = f"{1e6 * float(row['median_s']):,.0f}" if row["median_s"] else row["note"]
    by = f"**mmebm, {row['backend']}**" if row["contender"] == "mmebm" else row["contender"]
    return f"| {row['case'].partition('/')[2]} | {by} | {row['precision']} | {median} | {ratio} | {share} |"


_OTHERS = {
    "captured graph": "graph captured by hand", "jax scan": "JAX scan", "torch.compile step": "torch.compile",
    "eager, fp32": "eager loop",
}  # fmt: skip


def summary(path: Path, device: str) -> str:
    """Markdown for a first page: whole chains, the fastest backend's time and how many times that others take."""
    rows = [row for row in read(path) if (row["part"], row["device"], row["verdict"]) == ("case", device, "timed")]
    lines = [
        f"| 50 steps on {device} | mmebm | " + " | ".join(_OTHERS.values()) + " |",
        "|---" * (2 + len(_OTHERS)) + "|",
    ]
    for name in dict.fromkeys(row["case"] for row in rows if row["case"].startswith("langevin/")):
        case = [row for row in rows if row["case"] == name]
        ours = min((row for row in case if row["contender"] == "mmebm"), key=lambda row: float(row["median_s"]))
        times = {row["contender"]: f"{float(row['ratio']):.1f}x" for row in case if row["contender"] in _OTHERS}
        _, chains, net, precision = name.split("/")
        cells = [f"{1e3 * float(ours['median_s']):.2f} ms", *(times[other] for other in _OTHERS)]
        lines.append(f"| {int(chains[1:]):,} chains, {net}, {precision} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
