"""CUDA graphs of chains that are many launches: captured once, replayed with other states, noise and steps.

That is the loop for an energy that is no MLP, and an MLP too large for one kernel. A graph holds addresses. States,
coefficients, noise, reference scale and a network's weights, which may be made anew for every call, are copied into
tensors of its own before a replay and results out of them after. A module's parameters and buffers are read where they
lie, so that updates in place are seen, and a change of address (`load_state_dict(assign=True)`, `.to()`) captures anew.
What a function reaches beside a module cannot be watched: only an `nn.Module` or a method of one is captured.
"""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmebm.kernels import dispatch
from mmebm.kernels.reference import Chain

from .capturing import capturing
from .target import Target

Loop = Callable[[Target, Tensor, Tensor, int, bool], Chain]

# Graphs that are kept, the least recently used going first: each has memory of its own.
KEPT = 16
WARM_UPS = 3  # steps before the capture, which compile and load what may not be loaded within it

_graphs: OrderedDict[tuple[Any, ...], _Graph | None] = OrderedDict()


def obstacle(target: Target) -> str | None:
    """Why the loop of this target is not captured, or None."""
    if os.environ.get("MMEBM_CUDA_GRAPHS", "1") == "0":
        return "MMEBM_CUDA_GRAPHS is 0"
    if target.rows.device.type != "cuda":
        return f"the chains are on {target.rows.device}"
    if (net := target.mlp()) is not None:
        if dispatch.in_one_launch(target.served_by("langevin"), net, target.rows.device):
            return "all steps are one launch"
    elif _module(target) is None:
        return "the energy is no nn.Module, and what it reads cannot be watched"
    if torch.cuda.is_current_stream_capturing():
        return "a capture is under way, which takes the loop in"
    if torch.is_autocast_enabled("cuda"):
        return "autocast is on, whose cache of casts a graph would keep"
    return None if len(target.rows) else "there are no chains"


def _module(target: Target) -> nn.Module | None:
    owner = getattr(target.function, "__self__", target.function)
    return owner if isinstance(owner, nn.Module) else None


def key(target: Target, steps: int, record_every: int, statistics: bool) -> tuple[Any, ...]:
    """What captured chains depend on beside the values they are given."""
    rows, hold = target.rows, target.hold
    return (
        *_energy_key(target), tuple(rows.shape), target.event, rows.dtype, rows.device, steps, record_every, statistics,
        target.bound, target.negate, target.backend, hold["reference"], hold["grad_clip"], hold["clamp"],
    )  # fmt: skip


def _energy_key(target: Target) -> tuple[Any, ...]:
    if (net := target.network) is not None:
        shapes = tuple(tuple(w.shape) for w in net.weights)
        return shapes, net.activation, net.slope, dispatch.precision(target.precision or "")
    module = _module(target)
    if module is None:
        raise TypeError("energy: expected an nn.Module")
    return (
        id(module), getattr(target.function, "__name__", ""), tuple(m.training for m in module.modules()),
        tuple((t.data_ptr(), t.dtype, tuple(t.shape)) for t in (*module.parameters(), *module.buffers())),
    )  # fmt: skip


def _given(target: Target, coefficients: Tensor, rng: Tensor) -> list[Tensor]:
    """What a replay copies into the graph's own."""
    net = [] if target.network is None else [*target.network.weights, *target.network.biases]
    return [target.rows, target.hold["reference_scale"], coefficients, rng, *net]


def run(loop: Loop, target: Target, coefficients: Tensor, rng: Tensor, record_every: int, statistics: bool) -> Chain:
    """`loop`, which runs all steps, by a replay where it can be captured and as it is where it cannot."""
    if obstacle(target) is not None or len(coefficients) == 0:
        return loop(target, coefficients, rng, record_every, statistics)
    name = key(target, len(coefficients), record_every, statistics)
    if name not in _graphs:
        _graphs[name] = _captured(loop, target, coefficients, rng, record_every, statistics)
        while len(_graphs) > KEPT:
            _graphs.popitem(last=False)
    _graphs.move_to_end(name)
    graph = _graphs[name]
    if graph is None:
        return loop(target, coefficients, rng, record_every, statistics)
    return graph.replay(target, coefficients, rng)


def _captured(
    loop: Loop, target: Target, coefficients: Tensor, rng: Tensor, record_every: int, statistics: bool
) -> _Graph | None:
    try:
        return _Graph(loop, target, coefficients, rng, record_every, statistics)
    except RuntimeError as error:
        # The end of a capture that an error broke off has one of its own, which says nothing.
        why = error.__context__ or error
        warnings.warn(f"energy: its chains run step by step, a CUDA graph cannot be captured: {why}", stacklevel=6)
        return None


class _Graph:
    """Captured chains with the tensors that they read and write; `target` keeps the energy alive."""

    def __init__(
        self, loop: Loop, target: Target, coefficients: Tensor, rng: Tensor, record_every: int, statistics: bool
    ) -> None:
        self.target = target
        target.rows = target.rows.clone()
        target.hold["reference_scale"] = target.hold["reference_scale"].clone()
        if (net := target.network) is not None:
            weights, biases = ([t.detach().clone() for t in tensors] for tensors in (net.weights, net.biases))
            target.network = net._replace(weights=weights, biases=biases)
        self.coefficients, self.rng = coefficients.clone(), rng.clone()
        with torch.cuda.device(target.rows.device):
            # A capture may not be the first to use a library, and backward runs on the stream of its forward.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                loop(target, self.coefficients[:WARM_UPS], self.rng, record_every, statistics)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with capturing(self.graph, target.rows.device):
                self.chain = loop(target, self.coefficients, self.rng, record_every, statistics)

    def replay(self, target: Target, coefficients: Tensor, rng: Tensor) -> Chain:
        with torch.no_grad(), torch.inference_mode(False):
            own, given = _given(self.target, self.coefficients, self.rng), _given(target, coefficients, rng)
            for mine, theirs in zip(own, given, strict=True):
                if mine.data_ptr() != theirs.data_ptr():
                    mine.copy_(theirs)
            self.graph.replay()
            return Chain(*(t.clone() for t in self.chain))
