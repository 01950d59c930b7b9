"""The interpreter takes a second or so for a small case: `make test` runs some of a matrix, `make check` all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow(values: Iterable[Any]) -> list[Any]:
    """Values of a parametrization, tuples for several names, that `make check` runs."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]
