"""NVTX ranges in the domain "mmebm": what Nsight Systems shows beside the kernels, and Nsight Compute selects them by.

Each is two calls that do nothing while no profiler is attached, and nothing where the package nvtx is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar

try:
    import nvtx
except ImportError:
    nvtx = None

Function = TypeVar("Function", bound=Callable[..., Any])

DOMAIN = "mmebm"
_domain = None if nvtx is None else nvtx.get_domain(DOMAIN)


class Range:
    """A context manager that can be entered again and again, also within itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._attributes = None if _domain is None else _domain.get_event_attributes(message=name)

    def __enter__(self) -> None:
        if _domain is not None:
            _domain.push_range(self._attributes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _domain is not None:
            _domain.pop_range()


def ranged(name: str) -> Callable[[Function], Function]:
    """Decorate a function with a range."""

    def decorate(function: Function) -> Function:
        if _domain is None:
            return function
        span = Range(name)

        @wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with span:
                return function(*args, **kwargs)

        return inside  # type: ignore[return-value]

    return decorate
