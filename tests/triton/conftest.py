"""How kernels run without a GPU: tests marked `interpreted` run in one child process under Triton's interpreter.

Triton decides as a kernel's module is imported whether to interpret it, and any test may have imported one before. So
here the marked tests of a session are handed to a child with TRITON_INTERPRET=1, which writes their outcomes to a file,
and each passes, fails or skips as it did there. In a process that has TRITON_INTERPRET=1 itself they simply run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OUTCOMES = "MMEBM_TRITON_OUTCOMES"  # where the child writes
HAS_TRITON = importlib.util.find_spec("triton") is not None

_outcomes = pytest.StashKey[dict[str, tuple[str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "interpreted: runs under Triton's interpreter, in a child process if need be")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if INTERPRETED or pyfuncitem.get_closest_marker("interpreted") is None:
        return None
    session = pyfuncitem.session
    if _outcomes not in session.stash:
        session.stash[_outcomes] = _run_interpreted(session)
    missing = ("failed", session.stash[_outcomes].get("", ("", "no outcome"))[1])
    outcome, text = session.stash[_outcomes].get(pyfuncitem.nodeid, missing)
    if outcome == "failed":
        pytest.fail(text, pytrace=False)
    if outcome == "skipped":
        pytest.skip(text)
    return True


def _run_interpreted(session: pytest.Session) -> dict[str, tuple[str, str]]:
    """nodeid -> (outcome, text) of every marked test of the session; under "" the end of what the child printed."""
    names = [item.nodeid for item in session.items if item.get_closest_marker("interpreted")]
    path = Path(session.config.getoption("basetemp") or os.environ.get("TMPDIR", "/tmp")) / f"triton-{os.getpid()}.json"
    environment = os.environ | {"TRITON_INTERPRET": "1", OUTCOMES: str(path), "OMP_NUM_THREADS": "1"}
    environment.pop("MMEBM_STRICT_SKIPS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", session.config.option.markexpr]
    child = subprocess.run(
        [*command, *names], cwd=session.config.rootpath, env=environment, capture_output=True, text=True, check=False
    )
    found = {
        "": ("", f"the interpreter's process ended with {child.returncode} before this test:\n{child.stdout[-4000:]}")
    }
    if path.exists():
        found |= {name: (outcome, text) for name, outcome, text in json.loads(path.read_text())}
        path.unlink()
    return found


def _text(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return report.longreprtext


class _Writer:
    """In the child: the worst phase of every test."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, {}  # type: ignore[var-annotated]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.rows[report.nodeid] = (report.nodeid, report.outcome, _text(report))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: Any) -> None:
        self.path.write_text(json.dumps(list(self.rows.values())))


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    if INTERPRETED and OUTCOMES in os.environ:
        session.config.pluginmanager.register(_Writer(Path(os.environ[OUTCOMES])))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not HAS_TRITON:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="backend triton cannot run here"))
