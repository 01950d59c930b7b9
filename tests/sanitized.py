"""pytest -p tests.sanitized: the tests run on the compiled module at MMEBM_SANITIZED, or not at all."""

from __future__ import annotations

import pytest

from . import substitute

_module = substitute.load("MMEBM_SANITIZED")
if "-fsanitize=" not in _module.build_info()["flags"]:
    raise pytest.UsageError(f"MMEBM_SANITIZED: expected a build with -fsanitize, got {_module.build_info()}")


def pytest_report_header() -> str:
    return f"sanitized: {_module.__file__}, {_module.build_info()['flags']}"


@pytest.fixture(autouse=True)
def sanitized() -> None:
    assert substitute.in_use(_module)
