"""`python -m bench` lists the cases, `run CASE [--folder DIR]` runs one, `report CASE` prints its table."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import ablation, digits

CASES = {"digits": digits, "ablation": ablation}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Recorded experiments.")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="the cases (default)")
    for name, text in (("run", "run a case, going on where it stopped"), ("report", "the table of a case's CSV")):
        command = commands.add_parser(name, help=text)
        command.add_argument("case", choices=CASES)
        if name == "run":
            command.add_argument("--folder", type=Path, default=Path("runs/bench"), help="where run folders are kept")
    arguments = parser.parse_args()
    if arguments.command == "run":
        CASES[arguments.case].run(arguments.folder / arguments.case)
    if arguments.command in ("run", "report"):
        print(CASES[arguments.case].report())
    else:
        for name, case in CASES.items():
            print(f"{name:<10} {(case.__doc__ or '').splitlines()[0]}")


if __name__ == "__main__":
    main()
