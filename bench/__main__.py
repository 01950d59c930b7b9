"""`python -m bench list|run|report` for operators against contenders, `gpu` for everything that wants a GPU, `launches`
for what a step launches there, `experiments` for recorded trainings."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from bench import build

if __name__ == "__main__" and build.wanted(sys.argv[1:]):
    print(f"built in {build.build():.0f} s", flush=True)

from bench import cases, experiments, gpu, launches
from bench.case import Case
from bench.record import RESULTS, machine, read, replace
from bench.report import report
from bench.run import KEY, QUICK, Effort, rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list", help="the cases, which are recorded, and what is absent")
    command.add_argument("case", nargs="*", default=["*"], metavar="CASE", help="a name or a shell pattern")
    command = commands.add_parser("run", help="measure cases, without names those that are not recorded yet")
    command.add_argument("case", nargs="*", metavar="CASE", help="a name or a shell pattern")
    command.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    command.add_argument("--rounds", type=int, default=Effort.rounds)
    command.add_argument("--budget", type=float, default=Effort.budget_s, help="seconds of rounds per case")
    command.add_argument("--quick", action="store_true", help="few, short rounds: whether it works, not how fast")
    command.add_argument("--seed", type=int, default=0, help="of the order of contenders within a round")
    command = commands.add_parser("report", help="Markdown tables from a CSV")
    command.add_argument("--plot", type=Path, metavar="FILE.png")
    for name in ("list", "run"):
        commands.choices[name].add_argument("--results", default="cpu", help="bench/results/NAME.csv, or a path")
    command.add_argument("results", nargs="?", default="cpu", help="bench/results/NAME.csv, or a path")
    commands.add_parser("launches", help="kernels a GPU would launch for one Langevin step, by code")
    gpu.add_arguments(commands.add_parser("gpu", help="check, prove and time everything on a GPU, in one call"))
    command = commands.add_parser("experiments", help="recorded training experiments")
    command.add_argument("what", nargs="?", choices=("list", "run", "report"), default="run")
    command.add_argument("name", nargs="*", metavar="NAME", help=", ".join(experiments.EXPERIMENTS))
    command.add_argument("--folder", type=Path, default=Path("runs/bench"), help="where run folders are kept")
    return parser


def _csv(results: str) -> Path:
    return Path(results) if results.endswith(".csv") else RESULTS / f"{results}.csv"


def _recorded(path: Path, threads: int | None = None) -> set[str]:
    """The cases of the CSV whose subject has been timed."""
    known = cases.every()
    return {
        row["case"]
        for row in read(path)
        if row["rounds"]
        and (row["case"] not in known or row["contender"] == known[row["case"]].subject)
        and (threads is None or row["threads"] == str(threads))
    }


def _list(patterns: list[str], path: Path) -> None:
    recorded, absent = _recorded(path), dict[str, list[str]]()
    for name, case in cases.matching(patterns).items():
        here = []
        for contender, entry in case.contenders.items():
            if reason := entry.absent():
                absent.setdefault(f"{contender}: {reason}", []).append(name)
            else:
                here.append(contender)
        print(f"{'recorded' if name in recorded else 'missing':<9} {name:<38} {', '.join(here)}")
    for reason, names in absent.items():
        print(f"absent    {reason} ({len(names)} cases)")


def _run(chosen: dict[str, Case], threads: int, effort: Effort, path: Path, seed: int) -> list[str]:
    """Measures and writes case by case; the names of those that failed or whose subject was refused."""
    facts, bad = machine(), []
    for i, (name, case) in enumerate(chosen.items(), 1):
        start = time.perf_counter()
        print(f"[{i}/{len(chosen)}] {name} ..", end=" ", flush=True)
        try:
            measured = rows(case, threads, effort, facts, seed)
        except Exception as error:  # one broken case does not cost the others
            print(f"failed: {type(error).__name__}: {error}", flush=True)
            bad.append(name)
            continue
        replace(path, measured, KEY)
        notes = [f"{row['contender']} {row['note']}" for row in measured if row["note"]]
        bad += [name for row in measured if row["note"].startswith("refused")][:1]
        print(f"{time.perf_counter() - start:.0f} s" + "".join(f"\n    {note}" for note in notes), flush=True)
    return bad


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.command == "experiments":
        return _experiments(arguments)
    if arguments.command == "gpu":
        return gpu.main(arguments)
    if arguments.command == "launches":
        print(launches.table())
        return 0
    path = _csv(arguments.results)
    if arguments.command == "list":
        _list(arguments.case, path)
    elif arguments.command == "report":
        print(report(path))
        if arguments.plot:
            from bench.plot import plot

            plot(path, arguments.plot)
    else:
        done = _recorded(path, arguments.threads)
        chosen = cases.matching(arguments.case) or {n: c for n, c in cases.every().items() if n not in done}
        effort = QUICK if arguments.quick else Effort(arguments.rounds, budget_s=arguments.budget)
        if bad := _run(chosen, arguments.threads, effort, path, arguments.seed):
            print(f"not all is well with: {', '.join(bad)}", file=sys.stderr)
            return 1
    return 0


def _experiments(arguments: argparse.Namespace) -> int:
    if unknown := set(arguments.name) - set(experiments.EXPERIMENTS):
        raise SystemExit(f"NAME: expected among {', '.join(experiments.EXPERIMENTS)}, got {', '.join(sorted(unknown))}")
    if arguments.what == "list":
        print(experiments.listing())
    elif arguments.what == "report":
        for name in arguments.name or experiments.EXPERIMENTS:
            print(experiments.EXPERIMENTS[name].report())
    elif failed := experiments.work_off(arguments.name, arguments.folder):
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
