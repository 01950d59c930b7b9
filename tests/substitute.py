"""Puts another build of the compiled module in the installed one's place: what the plugins sanitized and mutated share.

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


def load(variable: str) -> ModuleType:
    """The extension module at the path that the environment variable holds, imported as mmebm.kernels._cpu.

    Raises pytest.UsageError where there is none, or where another has been imported already.
    """
    path = os.environ.get(variable, "")
    package = importlib.import_module(NAME.rpartition(".")[0])
    spec = importlib.util.spec_from_file_location(NAME, path)
    if spec is None or spec.loader is None or NAME in sys.modules or not os.path.isfile(path):
        raise pytest.UsageError(f"{variable}: expected an extension module that nothing precedes, got {path!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module
    vars(package)["_cpu"] = module
    return module


def in_use(module: ModuleType) -> bool:
    """Whether the kernels call this module."""
    from mmebm.kernels import native

    return native._load()[0] is module
