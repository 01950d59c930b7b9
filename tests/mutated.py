"""pytest -p tests.mutated tests/statistics: the tiers of proofs on a build with planted bugs, one of them chosen.

MMEBM_MUTATED is the path of that build, MMEBM_MUTANT the bug's number in csrc/common/mutant.hpp, 0 for none. Only tests
on backend cpu run, and of a tier none after its first failure. The line "tiers:" has a word for each; mutants.py reads
it.
"""

from __future__ import annotations

import os
import re

import pytest

from . import substitute

NUMBER = int(os.environ.get("MMEBM_MUTANT", "0"))
FAILED, PASSED, NOT_RUN = "failed", "passed", "not-run"
SUMMARY = "tiers:"

_module = substitute.load("MMEBM_MUTATED")
if not hasattr(_module, "choose_mutant"):
    raise pytest.UsageError(f"MMEBM_MUTATED: expected a build with MMEBM_MUTANTS, got {_module.__file__}")
_module.choose_mutant(NUMBER)
_tiers: dict[str, str] = {}


def tier(nodeid: str) -> str | None:
    """T0 for a test of test_t0_*.py, and so on."""
    found = re.search(r"/test_t(\d+)_\w+\.py", "/" + nodeid)
    return f"T{found[1]}" if found else None


def pytest_report_header() -> str:
    names = {0: "none", **{number: f"{name} ({sentence})" for number, name, sentence in _module.mutants()}}
    return f"mutant {NUMBER}: {names[NUMBER]}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    on_cpu = [i for i in items if hasattr(i, "callspec") and i.callspec.params.get("backend") == "cpu"]
    config.hook.pytest_deselected(items=[i for i in items if i not in on_cpu])
    items[:] = on_cpu
    _tiers.update({name: NOT_RUN for item in on_cpu if (name := tier(item.nodeid))})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if _tiers.get(tier(item.nodeid) or "") == FAILED:
        pytest.skip("this tier has failed already")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = tier(report.nodeid)
    if name is None or _tiers[name] == FAILED:
        return
    if report.failed:
        _tiers[name] = FAILED
    elif report.passed and report.when == "call":
        _tiers[name] = PASSED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    words = (f"{name}={_tiers[name]}" for name in sorted(_tiers, key=lambda name: int(name[1:])))
    terminalreporter.line(" ".join((SUMMARY, *words)))


@pytest.fixture(autouse=True)
def mutated() -> None:
    assert substitute.in_use(_module)
