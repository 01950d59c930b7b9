"""`Langevin`: the settings of a chain with what it remembers from call to call, its noise and its persistent chains."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmebm.kernels import checks, ops
from mmebm.kernels.reference.noise import REFERENCE_DRAW

from .conventions import Size, StepSize, short_run, table
from .info import LangevinInfo
from .langevin import langevin, run_langevin
from .streams import Chains, Stream, fresh_seed
from .target import Energy, Target

_HELD = ("reference", "reference_scale", "bound", "grad_clip", "clamp", "negate", "precision", "backend", "check")


class Langevin:
    """Draws of exp(-E) p_0 by chains of `steps` steps; every call goes on with the noise of a seed of its own.

    `shape`: of one state, d or (d,) or (C, H, W); `energy`, `step_size`, `convention`, `coefficients` and `settings`
    (reference, reference_scale, bound, grad_clip, clamp, negate, precision, backend, check) as `mmebm.langevin` has
    them, checked here. Chains start at draws of the reference, of N(0, I) where there is none, or at `start(n)`
    [n, *shape]. `persistent`: they go on where the last call left them, a share `restart` of them started afresh at
    each call. Without `seed`, one is drawn from `generator`, else from torch's default generator.
    """

    def __init__(
        self,
        energy: Energy,
        shape: int | Sequence[int],
        *,
        steps: int,
        step_size: Size | None = None,
        convention: StepSize | None = None,
        coefficients: Tensor | None = None,
        start: Callable[[int], Tensor] | None = None,
        persistent: bool = False,
        restart: float = 0.0,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> None:
        if unknown := set(settings) - set(_HELD):
            raise TypeError(f"settings: expected {', '.join(_HELD)}, got {', '.join(sorted(unknown))}")
        if not 0.0 <= restart <= 1.0:
            raise ValueError(f"restart: expected a share in [0, 1], got {restart}")
        if seed is not None and generator is not None:
            raise ValueError("seed, generator: expected at most one of them, got both")
        self.energy, self.steps, self.start, self.settings = energy, steps, start, settings
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not self.shape or any(n < 1 for n in self.shape):
            raise ValueError(f"shape: expected the sizes of a state, all >= 1, got {self.shape}")
        self.convention = short_run(step_size) if step_size is not None and convention is None else convention
        self._given: dict[str, Any] = {"step_size": step_size, "convention": convention, "coefficients": coefficients}
        self.device, self.dtype = torch.device(device), dtype
        self._check()
        seed = int(fresh_seed(self.device, generator)) if seed is None else seed
        self._chains = Chains(Stream(seed, device=self.device), persistent, restart)

    def _check(self) -> None:
        """Errors of the settings, now rather than at the first draw."""
        defaults = {n: p.default for n, p in inspect.signature(langevin).parameters.items() if n in _HELD}
        held = defaults | self.settings
        checks.one_of("check", held.pop("check"), ("auto", "raise", "off"))
        table(self.steps, device=self.device, **self._given)
        z = torch.empty(0, *self.shape, device=self.device, dtype=self.dtype)
        target = Target(self.energy, z, event_dims=len(self.shape), **held)
        rng = torch.zeros(3, dtype=torch.int64, device=self.device)
        run_langevin(target, torch.zeros(0, 3, device=self.device), rng)

    @property
    def seed(self) -> int:
        return self._chains.stream.seed

    @property
    def offset(self) -> int:
        """Steps of the noise that are used up."""
        return self._chains.stream.offset

    @property
    def chains(self) -> Tensor | None:
        """Where the persistent chains stand, [n, *shape]; None before the first call, and where they are not kept."""
        return self._chains.states

    def reset(self) -> None:
        """Forget where the chains stand; the noise goes on."""
        self._chains.states = None

    def sample(
        self, n: int, *, steps: int | None = None, record_every: int | None = None, return_info: bool = False
    ) -> Tensor | tuple[Tensor, LangevinInfo]:
        """z [n, *shape] after `steps` steps (by default the object's), detached; with `return_info` the info too.

        Errors: ValueError where persistent chains are not n; `NonFiniteChains`, after which the chains stand where they
        stood before.
        """
        checks.at_least("n", n, 0)
        kept = self._chains.states
        if kept is not None and len(kept) != n:
            raise ValueError(
                f"n: expected {len(kept)}, as many as persistent chains go on, got {n}; reset() forgets them"
            )
        steps = self.steps if steps is None else steps
        info: list[LangevinInfo] = []

        def run(z: Tensor, rng: Tensor) -> Tensor:
            end = langevin(
                self.energy, z, steps=steps, seed=self.seed, offset=int(rng[1]), record_every=record_every,
                return_info=return_info, event_dims=len(self.shape), **self._given, **self.settings,
            )  # fmt: skip
            if isinstance(end, Tensor):
                return end
            info.append(end[1])
            return end[0]

        z = self._chains.advance(n, steps, lambda rng: self._fresh(n, rng), run)
        return (z, info[0]) if return_info else z

    def _fresh(self, n: int, rng: Tensor) -> Tensor:
        if self.start is not None:
            z = self.start(n)
            if not isinstance(z, Tensor) or z.shape != (n, *self.shape):
                raise ValueError(f"start: expected a tensor {[n, *self.shape]}, got {getattr(z, 'shape', type(z))}")
            return z.detach().to(self.device, self.dtype)
        size = torch.Size(self.shape).numel()
        law = self.settings.get("reference") or "normal"
        z = ops.draw(rng, 1, n, size, law=law, purpose=REFERENCE_DRAW)[0].view(n, *self.shape).to(self.dtype)
        scale = self.settings.get("reference_scale", 1.0) if self.settings.get("reference") else 1.0
        return z * (scale.detach().to(z) if isinstance(scale, Tensor) else scale)

    def state_dict(self) -> dict[str, Any]:
        """The seed, the offset and the chains: what `load_state_dict` needs to go on bit for bit."""
        chains = self._chains.states
        return {"seed": self.seed, "offset": self.offset, "chains": None if chains is None else chains.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Errors: ValueError for other keys, or chains of another shape; nothing is changed then."""
        if set(state) != {"seed", "offset", "chains"}:
            raise ValueError(f"state: expected seed, offset and chains, got {', '.join(map(str, state)) or 'nothing'}")
        chains = state["chains"]
        if chains is not None:
            if not isinstance(chains, Tensor) or chains.shape[1:] != self.shape:
                raise ValueError(f"chains: expected [n, {', '.join(map(str, self.shape))}], got {list(chains.shape)}")
            chains = chains.to(self.device, self.dtype, copy=True)
        stream = Stream(int(state["seed"]), int(state["offset"]), self.device)
        self._chains.stream, self._chains.states = stream, chains

    def __repr__(self) -> str:
        size = "coefficients" if self.convention is None else repr(self.convention)
        held = "".join(f", {name}={value!r}" for name, value in self.settings.items() if not isinstance(value, Tensor))
        kept = f", persistent, restart={self._chains.restart:g}" if self._chains.persistent else ""
        return f"Langevin({type(self.energy).__name__}, {list(self.shape)}, steps={self.steps}, {size}{held}{kept})"
