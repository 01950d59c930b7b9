"""pytest -p tests.sanitized: the tests run on the compiled module at MMEBM_SANITIZED, or not at all.

The installed module is found by an import hook that precedes sys.path, so that no folder can stand in for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType

import pytest

NAME = "mmebm.kernels._cpu"


def _load() -> ModuleType:
    path = os.environ["MMEBM_SANITIZED"]
    package = importlib.import_module(NAME.rpartition(".")[0])
    spec = importlib.util.spec_from_file_location(NAME, path)
    if spec is None or spec.loader is None or NAME in sys.modules:
        raise pytest.UsageError(f"MMEBM_SANITIZED: expected an extension module that nothing precedes, got {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if "-fsanitize=" not in module.build_info()["flags"]:
        raise pytest.UsageError(f"MMEBM_SANITIZED: expected a build with -fsanitize, got {module.build_info()}")
    sys.modules[NAME] = module
    vars(package)["_cpu"] = module
    return module


_module = _load()


def pytest_report_header() -> str:
    return f"sanitized: {_module.__file__}, {_module.build_info()['flags']}"


@pytest.fixture(autouse=True)
def sanitized() -> None:
    from mmebm.kernels import native

    assert native._load()[0] is _module
