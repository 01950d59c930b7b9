"""Every case, by name."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from bench.case import Case, Family
from bench.cases import coherence, draws, energy, experts, langevin, models, peers, sampler, training

FAMILIES: tuple[Family, ...] = (
    *draws.FAMILIES,
    *langevin.FAMILIES,
    *energy.FAMILIES,
    *experts.FAMILIES,
    *peers.FAMILIES,
    *sampler.FAMILIES,
    *training.FAMILIES,
    *models.FAMILIES,
    *coherence.FAMILIES,
)


def every() -> dict[str, Case]:
    return {case.name: case for family in FAMILIES for case in family.cases()}


def matching(patterns: Iterable[str]) -> dict[str, Case]:
    """The cases whose name one of the shell patterns matches; a pattern that matches none is an error."""
    known, chosen = every(), {}
    for pattern in patterns:
        found = {name: case for name, case in known.items() if fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(f"case: expected a name or pattern of `python -m bench list`, got {pattern!r}")
        chosen |= found
    return chosen
