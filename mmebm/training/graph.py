"""The energy's update as one CUDA graph: its chains, loss, backward and optimiser in a single launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmebm.sampling.capturing import capturing
from mmebm.sampling.streams import Chains, DeviceStream

Update = Callable[[Tensor, Tensor], dict[str, Tensor]]

# Real updates before the capture: they load what may not be loaded within it, and give persistent chains a start.
WARM_UPS = 3


class UpdateGraph:
    """Runs an update (positives [n, d], weights [n]) -> metrics, which draws its noise through `chains`.

    The noise's counters lie on the device and move in the graph; persistent chains lie where it reads and writes them.
    Another n captures anew, without a warm-up. Errors: RuntimeError, PyTorch's, where a capture fails.
    """

    def __init__(self, update: Update, chains: Chains) -> None:
        self.update, self.chains, self.host = update, chains, chains.stream
        self.stream: DeviceStream | None = None
        self.graphs: dict[int, _Captured] = {}
        self.runs = 0

    def run(self, positives: Tensor, weights: Tensor) -> dict[str, Tensor]:
        if self.stream is None:
            self.chains.stream = self.stream = DeviceStream(self.host)
            self.graphs.clear()
        self.runs += 1
        if self.runs <= WARM_UPS:
            metrics = self._aside(positives, weights)
        else:
            n = len(positives)
            if n not in self.graphs:
                self.graphs[n] = _Captured(self.update, self.chains, self.stream, positives, weights)
            graph = self.graphs[n]
            metrics = graph.replay(positives, weights)
            self.stream.offset += graph.taken
        self.host.offset = self.stream.offset
        return metrics

    def forget(self) -> None:
        """Of a checkpoint that is being restored: optimiser, chains and counters are others than the graphs'."""
        self.stream = None

    def _aside(self, positives: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """On a stream of its own, as captures want it."""
        side, current = torch.cuda.Stream(positives.device), torch.cuda.current_stream(positives.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            metrics = self.update(positives, weights)
        current.wait_stream(side)
        return metrics


class _Captured:
    def __init__(
        self, update: Update, chains: Chains, stream: DeviceStream, positives: Tensor, weights: Tensor
    ) -> None:
        self.positives, self.weights = positives.clone(), weights.clone()
        self.states = chains.states
        before = stream.offset
        self.graph = torch.cuda.CUDAGraph()
        with capturing(self.graph, positives.device):
            self.metrics = update(self.positives, self.weights)
            if self.states is not None and chains.states is not None:
                self.states.copy_(chains.states)
        chains.states = self.states
        self.taken, stream.offset = stream.offset - before, before  # a capture runs nothing

    def replay(self, positives: Tensor, weights: Tensor) -> dict[str, Tensor]:
        self.positives.copy_(positives)
        self.weights.copy_(weights)
        self.graph.replay()
        return {name: value.clone() for name, value in self.metrics.items()}
