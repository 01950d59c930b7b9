"""Where noise comes from: (seed, offset, first chain) triples, the bookkeeping of offsets, chains that go on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmebm.kernels.reference.noise import advanced, choose

__all__ = ["Chains", "DeviceStream", "Stream", "advanced", "choose", "fresh_seed", "rng_state"]


def fresh_seed(device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> Tensor:
    """A seed int64 [] drawn on `device` from `generator`, by default torch's own, so that manual_seed reproduces."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (), dtype=torch.int64, device=device, generator=generator)


def rng_state(
    seed: int | Tensor | None,
    offset: int | Tensor = 0,
    first_chain: int = 0,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """int64 [3] = (seed, offset, first chain) on `device`; seeds are taken as 64-bit two's complement.

    An offset may be a tensor [] where the seed is one, so that neither is read by the host.
    """
    if isinstance(seed, Tensor):
        _one_source(seed, generator)
        if seed.numel() != 1 or seed.is_floating_point():
            raise TypeError(f"seed: expected one integer, got {seed.dtype} {list(seed.shape)}")
        seed = seed.to(torch.int64).reshape(())
    elif seed is None:
        seed = fresh_seed(device, generator)
    if isinstance(seed, Tensor):
        moved = offset if isinstance(offset, Tensor) else torch.full_like(seed, offset)
        return torch.stack((seed, moved, torch.full_like(seed, first_chain)))
    if isinstance(offset, Tensor):
        raise TypeError("offset: expected an integer, as the seed is one, got a tensor")
    return torch.tensor(integers(seed, offset, first_chain, generator=generator), dtype=torch.int64, device=device)


def integers(
    seed: int | None,
    offset: int,
    first_chain: int,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> tuple[int, int, int]:
    """The same as three numbers."""
    _one_source(seed, generator)
    if seed is None:
        seed = int(fresh_seed(device, generator))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an integer or None, got {seed!r}")
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63), offset, first_chain


def _one_source(seed: int | Tensor | None, generator: torch.Generator | None) -> None:
    if seed is not None and generator is not None:
        raise ValueError("seed, generator: expected at most one of them, got both")


class Stream:
    """A seed and an offset that only moves forward: two takes never share noise."""

    def __init__(self, seed: int, offset: int = 0, device: torch.device | str = "cpu", first_chain: int = 0) -> None:
        self.seed, self.offset, self.device, self.first_chain = seed, offset, device, first_chain

    def take(self, steps: int) -> Tensor:
        """The rng state for the next `steps` steps, which are then used up."""
        rng = rng_state(self.seed, self.offset, self.first_chain, device=self.device)
        self.offset += steps
        return rng


class DeviceStream(Stream):
    """One whose counters lie on the device and move there: in a captured graph every replay takes what comes next.

    Whoever replays moves `offset`, the host's knowledge of them, by what the captured code took.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream.seed, stream.offset, stream.device, stream.first_chain)
        self.state = rng_state(self.seed, self.offset, self.first_chain, device=self.device)

    def take(self, steps: int) -> Tensor:
        rng = self.state.clone()
        self.state[1] += steps
        self.offset += steps
        return rng


class Chains:
    """Chains that go on from call to call, a share of them restarted (Tieleman 2008), or that always start afresh."""

    def __init__(self, stream: Stream, persistent: bool = False, restart: float = 0.0) -> None:
        self.stream, self.persistent, self.restart = stream, persistent, restart
        self.states: Tensor | None = None  # [n, ..], where persistent chains stand

    def advance(
        self, n: int, steps: int, start: Callable[[Tensor], Tensor], run: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """`run(z, rng)` from where the chains stand, or from `start(rng)` [n, ..] for fresh and restarted ones.

        Takes 1 step of the stream for the starts, 1 for the choice of what restarts where chains go on, and `steps`.
        """
        z = start(self.stream.take(1))
        if self.persistent and self.states is not None:
            restarted = choose(self.stream.take(1), n, 1 << 31) < self.restart * 2.0**31
            z = torch.where(restarted.view(-1, *(1,) * (z.dim() - 1)), z, self.states)
        z = run(z, self.stream.take(steps))
        self.states = z if self.persistent else None
        return z
