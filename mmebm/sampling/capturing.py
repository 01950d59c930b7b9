"""The capture of a CUDA graph, without what it does not survive, and put right where it failed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

__all__ = ["capturing"]


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, device: torch.device) -> Iterator[None]:
    """What runs inside becomes `graph`, as with `torch.cuda.graph`, on `device`.

    The garbage collector waits: where it freed another graph, that call would end this capture. After a failure, which
    is raised, torch (2.11) still has the capture's stream as the current one, its memory pool open, and its default
    generator under capture, which draws nothing any more: all three are given back.
    """
    outside = torch.cuda.current_stream(device)
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.device(device), torch.cuda.graph(graph):
            yield
    except BaseException:
        torch.cuda.set_stream(outside)
        with suppress(RuntimeError):  # it was closed
            torch._C._cuda_endAllocateToPool(outside.device_index, graph.pool())
        generator = torch.cuda.default_generators[outside.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        raise
    finally:
        if collects:
            gc.enable()
