"""Recorded trainings: modules with `RESULTS`, `run(folder)`, which goes on where it stopped, and `report()`."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from bench.experiments import ablation, digits, frozen, generation, joint, mfeat, models, presets

EXPERIMENTS: dict[str, ModuleType] = {
    "digits": digits,
    "ablation": ablation,
    "frozen": frozen,
    "joint": joint,
    "models": models,
    "mfeat": mfeat,
    "generation": generation,
    "presets": presets,
}


def listing(experiments: Mapping[str, ModuleType] = EXPERIMENTS) -> str:
    """One line for each: name, whether its CSV is there, what it is."""
    return "\n".join(
        f"{name:<10} {'recorded' if module.RESULTS.exists() else 'missing':<9} {(module.__doc__ or '').splitlines()[0]}"
        for name, module in experiments.items()
    )


def work_off(names: Sequence[str], folder: Path, experiments: Mapping[str, ModuleType] = EXPERIMENTS) -> list[str]:
    """Runs the named experiments, without names those that have no CSV; returns the names of those that failed.

    One that fails is told and the next begins; started again, each goes on from what `folder` holds.
    """
    failed = []
    for name in names or [name for name, module in experiments.items() if not module.RESULTS.exists()]:
        print(f"{name} ..", flush=True)
        try:
            experiments[name].run(folder / name)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        else:
            print(experiments[name].report(), flush=True)
    return failed
