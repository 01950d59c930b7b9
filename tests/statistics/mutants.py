"""python -m tests.statistics.mutants: every planted bug against the tiers of proofs; `make mutants` builds and runs it.

Tier 9. The bugs are those of csrc/common/mutant.hpp, chosen one at a time in a build with MMEBM_MUTANTS. Prints the
matrix of bugs and tiers; fails where the kernels without a bug fail a tier, where no tier fails on a bug, and where
docs/proofs.md lists other bugs than the build. `--write` puts the matrix there.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "csrc" / "common" / "mutant.hpp"
PAGE = ROOT / "docs" / "proofs.md"
BUILD = ROOT / "build" / "mutants"
BEGIN, END = "<!-- begin: make mutants -->\n", "<!-- end: make mutants -->\n"


class Mutant(NamedTuple):
    """A planted bug, as csrc/common/mutant.hpp lists it."""

    number: int
    name: str
    sentence: str


NONE = Mutant(0, "none", "nothing is planted")

# By tier "T0".. : "failed", "passed" or "not-run".
Outcome = Mapping[str, str]


def named(header: str) -> list[Mutant]:
    """The bugs in the text of mutant.hpp."""
    entries = re.findall(r'X\((\d+), (\w+), "([^"]+)"\)', header)
    return [Mutant(int(number), name, sentence) for number, name, sentence in entries]


def planted(module: Path) -> list[Mutant]:
    """The bugs that a build has."""
    spec = importlib.util.spec_from_file_location("_cpu", module)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return [Mutant(*entry) for entry in loaded.mutants()]


def matrix(outcomes: Mapping[Mutant, Outcome]) -> str:
    """A table in Markdown: a row for each bug, an x where the tier fails on it."""
    tiers = sorted({tier for outcome in outcomes.values() for tier in outcome}, key=lambda tier: int(tier[1:]))
    lines = [f"| | mutant | bug | {' | '.join(tiers)} |", "|" + "---|" * (3 + len(tiers))]
    for mutant in sorted(outcomes.keys() - {NONE}):
        marks = ("x" if outcomes[mutant].get(tier) == "failed" else " " for tier in tiers)
        lines.append(f"| {mutant.number} | `{mutant.name}` | {mutant.sentence} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


def split(page: str) -> tuple[str, str, str]:
    """The text of a page: what is before the matrix, the matrix, and what is behind it.

    Raises:
        ValueError: the page lacks its markers.
    """
    before, begin, rest = page.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"page: expected the lines {BEGIN.strip()} and {END.strip()}, in this order")
    return before + begin, table, end + after


def listed(page: str) -> dict[Mutant, list[str]]:
    """What a page's matrix says: each bug with the tiers that fail on it."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in split(page)[1].splitlines()]
    return {
        Mutant(int(row[0]), row[1].strip("`"), row[2]): [
            tier for tier, mark in zip(rows[0][3:], row[3:], strict=True) if mark == "x"
        ]
        for row in rows[2:]
    }


def complaints(outcomes: Mapping[Mutant, Outcome]) -> list[str]:
    """What a run must not show."""
    said = [
        f"{tier} {outcome} where nothing is planted" for tier, outcome in outcomes[NONE].items() if outcome != "passed"
    ]
    if not outcomes[NONE]:
        said.append("no tier has run")
    for mutant, outcome in outcomes.items():
        if mutant != NONE and "failed" not in outcome.values():
            said.append(f"mutant {mutant.number} survives: {mutant.sentence}")
    return said


def outcome_of(text: str) -> Outcome:
    """By tier what a session of pytest with tests.mutated has printed.

    Raises:
        ValueError: it ended before it had a word for each tier.
    """
    lines = [line for line in text.splitlines() if line.startswith("tiers:")]
    if len(lines) != 1:
        raise ValueError(f"session: expected one line that starts with tiers:, got\n{text}")
    return dict(word.split("=", 1) for word in lines[0].split()[1:])


def judge(mutant: Mutant, module: Path, tests: Sequence[str]) -> tuple[Outcome, str]:
    """Runs the tiers in a process of their own; the outcome, and what pytest printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MMEBM_", "PYTEST_"))}
    environment |= {"OMP_NUM_THREADS": "1", "MMEBM_MUTATED": str(module), "MMEBM_MUTANT": str(mutant.number)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.mutated", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return outcome_of(done.stdout + done.stderr), done.stdout


def run(chosen: Iterable[Mutant], module: Path, tests: Sequence[str], jobs: int) -> dict[Mutant, Outcome]:
    """Every bug, and none, `jobs` at a time; says each outcome as it comes."""
    outcomes: dict[Mutant, Outcome] = {}
    every = [NONE, *chosen]
    with ThreadPoolExecutor(jobs) as pool:
        for mutant, (outcome, text) in zip(every, pool.map(lambda m: judge(m, module, tests), every), strict=True):
            outcomes[mutant] = outcome
            failed = [tier for tier, word in outcome.items() if word == "failed"]
            print(f"mutant {mutant.number:2} {mutant.name}: {' '.join(failed) or 'no tier fails'}", flush=True)
            if mutant == NONE and failed:
                print(text)
    return outcomes


def built(folder: Path) -> Path:
    """The module with planted bugs.

    Raises:
        FileNotFoundError: it has not been built.
    """
    found = sorted(folder.glob("_cpu.*.so"))
    if not found:
        raise FileNotFoundError(f"module: expected {folder}/_cpu.*.so, got nothing; `make mutants` builds it")
    return found[0]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Every planted bug against the tiers of proofs.")
    parser.add_argument("--write", action="store_true", help="put the matrix into docs/proofs.md")
    parser.add_argument("--only", type=int, nargs="+", default=[], metavar="N", help="these bugs; nothing is compared")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--build", type=Path, default=BUILD, help="folder of the module with planted bugs")
    parser.add_argument("tests", nargs="*", default=["tests/statistics"])
    options = parser.parse_args(arguments)

    module = built(options.build)
    mutants = planted(module)
    chosen = [mutant for mutant in mutants if not options.only or mutant.number in options.only]
    outcomes = run(chosen, module, options.tests, options.jobs)
    table, said, page = matrix(outcomes), complaints(outcomes), PAGE.read_text()
    before, recorded, after = split(page)
    print(f"\n{table}")
    if options.only or said:
        pass
    elif options.write:
        PAGE.write_text(before + table + after)
    elif list(listed(page)) != mutants:
        said.append("docs/proofs.md lists other mutants than the build; --write updates it")
    elif recorded != table:
        print("docs/proofs.md has other marks, which tiers or instruction sets may change; --write updates them")
    for complaint in said:
        print(complaint, file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
