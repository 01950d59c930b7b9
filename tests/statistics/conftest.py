"""One fixture for the four backends, and the limit on what a session compares: see laws.py."""

from __future__ import annotations

import pytest
import torch

from mmebm.kernels import dispatch

from . import laws
from .targets import Backend, serving

_UNSERVED = {
    "reference": "backend reference cannot run here",  # in no list: it can everywhere
    "cpu": "the native CPU module cannot be loaded",
    "triton": "backend triton cannot run here",
    "cuda": "backend cuda cannot run here",
}


@pytest.fixture(autouse=True)
def shifted(seeded: None) -> None:
    torch.manual_seed(laws.SHIFT)


@pytest.fixture(params=dispatch.BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every test of a sampler is collected for every backend; a module names its operator in OPERATOR."""
    device = serving(request.param, request.module.OPERATOR)
    if device is None:
        pytest.skip(_UNSERVED[request.param])
    return Backend(request.param, device)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if len(laws.made) > laws.MOST_COMPARISONS and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    count, most = len(laws.made), laws.MOST_COMPARISONS
    terminalreporter.line(f"{count} statistical comparisons of at most {most}", red=count > most)
