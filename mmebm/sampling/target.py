"""What chains are drawn from: U = E - log p_0 for an MLP or for any callable, on states of any shape kept as rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmebm.energy import Network, recognise
from mmebm.kernels import checks, dispatch, ops
from mmebm.kernels.reference import MLP, Constraints

from .remembered import remembered

Energy = nn.Module | Callable[[Tensor], Tensor]
Clamp = tuple[float | None, float | None]

_told: set[str] = set()


class Target:
    """An energy with everything that holds it, and the states `rows` [N, d] of z0 [*batch, *event].

    A recognised network is called through the operators, anything else as it is, with z [N, *event].
    """

    def __init__(
        self,
        energy: Energy,
        z0: Tensor,
        *,
        reference: str | None,
        reference_scale: float | Tensor,
        bound: float | None,
        negate: bool,
        event_dims: int,
        precision: str | None,
        backend: str,
        grad_clip: float | None = None,
        clamp: Clamp | None = None,
    ) -> None:
        if not isinstance(z0, Tensor):
            raise TypeError(f"z0: expected a tensor [.., d], got {type(z0).__name__}")
        if z0.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"z0: expected float32 or float64, got {z0.dtype} {list(z0.shape)}")
        if event_dims < 1 or event_dims > z0.dim():
            raise ValueError(f"event_dims: expected 1 to {z0.dim()}, the dimensions of z0, got {event_dims}")
        refuse_transforms("z0", z0)
        split = z0.dim() - event_dims
        self.batch, self.event = z0.shape[:split], z0.shape[split:]
        self.rows = z0.detach() if z0.dim() == 2 and event_dims == 1 else z0.detach().reshape(-1, self.event.numel())
        self.bound, self.negate, self.precision, self.backend = bound, negate, precision, backend
        checks.positive("bound", bound)
        self.hold: dict[str, Any] = {
            "reference": reference or "none",
            "reference_scale": _scale(reference_scale, self.rows, self.event),
            "grad_clip": grad_clip,
            "clamp": clamp or (None, None),
        }
        net = recognise(energy)
        self.network: Network | None = None
        if isinstance(net, Network) and event_dims == 1:
            refuse_transforms("energy", net.weights[0])
            self.network = net.negated() if negate else net
        elif callable(energy):
            if isinstance(energy, nn.Sequential) and isinstance(net, str):
                _tell(net)
            self.function: Energy = energy
            self._ones = torch.ones(len(self.rows), dtype=z0.dtype, device=z0.device)
        else:
            raise TypeError(f"energy: expected a module or a callable z [B, d] -> [B], got {type(energy).__name__}")

    def served_by(self, operator: str) -> str:
        """The backend that runs `operator`, or the update of a loop."""
        name = operator if self.network is not None else "langevin_update"
        return dispatch.choose(self.backend, name, self.rows.device, self.rows.dtype, self.mlp())

    def mlp(self) -> MLP | None:
        """A recognised network as backends take it."""
        if (net := self.network) is None:
            return None
        precision = dispatch.precision(self.precision or "")
        return MLP(net.weights, net.biases, net.activation, net.slope, self.bound, precision)

    def constraints(self) -> Constraints:
        """`hold` as backends take it."""
        hold = self.hold
        return Constraints(hold["reference"], hold["reference_scale"], hold["grad_clip"], *hold["clamp"])

    def arguments(self) -> dict[str, Any]:
        """What the operators take of a recognised network beside its weights and biases."""
        if self.network is None:
            raise TypeError("energy: a callable has no operator")
        net = self.network
        return {
            "activation": net.activation, "slope": net.slope, "bound": self.bound, "precision": self.precision,
            "backend": self.backend,
        }  # fmt: skip

    def restored(self, rows: Tensor) -> Tensor:
        """[.., N, d] in the caller's shape: [.., *batch, *event]."""
        return rows if rows.shape[-2:] == (*self.batch, *self.event) else rows.view((*rows.shape[:-2], *self.shape))

    def restored_chains(self, values: Tensor) -> Tensor:
        """[.., N] -> [.., *batch]."""
        return values if len(self.batch) == 1 else values.view((*values.shape[:-1], *self.batch))

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.batch, *self.event)

    def energy(self, z: Tensor) -> Tensor:
        """E(z), bounded: [N, d] -> [N], without history."""
        with torch.no_grad():
            if self.network is not None:
                return ops.energy(z, self.network.weights, self.network.biases, **self.arguments())
            return self.value(z)

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """E(z) [N] and dE/dz [N, d] before any clip, without history."""
        if self.network is not None:
            with torch.no_grad():
                return ops.energy_and_grad(z, self.network.weights, self.network.biases, **self.arguments())
        with torch.enable_grad():
            return self.differentiate(z.detach().requires_grad_())

    def differentiate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The same of a callable, for z that requires grad, where grad is enabled."""
        e = self.value(z)
        if not e.requires_grad:
            raise ValueError("energy: expected a value that autograd can follow back to z, got one without a gradient")
        (grad,) = torch.autograd.grad(e, z, self._ones, allow_unused=True)
        if grad is None:
            raise ValueError("energy: expected a value that depends on z, got one that does not")
        return e.detach(), grad

    def value(self, z: Tensor) -> Tensor:
        """A callable's E(z), bounded: [N, d] -> [N], with history where grad is enabled."""
        e = self.function(z if len(self.event) == 1 else z.view(len(z), *self.event))
        if not isinstance(e, Tensor) or e.numel() != len(z):
            raise ValueError(f"energy: expected one value per row, [{len(z)}], got {getattr(e, 'shape', type(e))}")
        e = e.reshape(-1)
        if e.dtype != z.dtype:  # under autocast
            e = e.to(z.dtype)
        if self.negate:
            e = -e
        return e if self.bound is None else self.bound * torch.tanh(e / self.bound)

    def minus_log_reference(self, z: Tensor) -> Tensor:
        """-log p_0(z) up to a constant: [N, d] -> [N]."""
        if self.hold["reference"] == "none":
            return z.new_zeros(len(z))
        u = z / self.hold["reference_scale"]
        return (0.5 * u * u if self.hold["reference"] == "normal" else u.abs()).sum(1)


def _tell(reason: str) -> None:
    if reason in _told or torch.compiler.is_compiling():
        return
    _told.add(reason)
    warnings.warn(
        f"energy: {reason}, so that its chains run step by step with autograd; nn.Sequential of nn.Linear and one "
        "activation (SiLU, GELU, LeakyReLU, ReLU, Softplus, Tanh, ELU) runs as one operator",
        stacklevel=4,  # whoever calls langevin, mala or hmc
    )


def refuse_transforms(name: str, tensor: Tensor) -> None:
    """In torch.func a chain would have a gradient of 0, and mapped chains would share their noise: not silently."""
    if torch.compiler.is_compiling():
        return
    inside = torch._C._functorch.peek_interpreter_stack() is not None
    if (inside and torch._C._functorch.is_functorch_wrapped_tensor(tensor)) or (
        torch.autograd.forward_ad._current_level >= 0
        and torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None
    ):
        raise RuntimeError(
            f"{name}: a chain's end is a sample, not a function to differentiate or to map (torch.func, forward mode): "
            "draw it outside of the transform, all chains as one batch [.., d], and differentiate the energy at it"
        )


def _scale(reference_scale: float | Tensor, rows: Tensor, event: torch.Size) -> Tensor:
    dim = rows.shape[1]
    if isinstance(reference_scale, int | float):
        if not (reference_scale > 0 and math.isfinite(reference_scale)):
            raise ValueError(_expected_scale(reference_scale, event))
        return remembered(_filled, dim, float(reference_scale), rows.dtype, rows.device)
    scale = torch.as_tensor(reference_scale).detach().to(rows)
    if scale.numel() != 1 and scale.shape != event:
        raise ValueError(_expected_scale(reference_scale, event))
    if not _asks_nothing(scale) and not bool((scale > 0).all()):
        raise ValueError(_expected_scale(reference_scale, event))
    return scale.reshape(-1).expand(dim).contiguous()


def _asks_nothing(t: Tensor) -> bool:
    """Whether nobody may look at values now: in tracing, and in a CUDA graph's capture."""
    return torch.compiler.is_compiling() or (t.is_cuda and torch.cuda.is_current_stream_capturing())


def _filled(dim: int, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((dim,), value, dtype=dtype, device=device)


def _expected_scale(got: float | Tensor, event: torch.Size) -> str:
    return f"reference_scale: expected numbers > 0, one or {list(event)}, got {got}"
