"""Energies that are an MLP: `EnergyMLP`, and recognising an `nn.Sequential` as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from mmebm.kernels import ops
from mmebm.kernels.reference.activations import ACTIVATIONS


class Network(NamedTuple):
    """What the operators take of an energy: live weights [out, in] and biases [out], the activation and its slope."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    activation: str
    slope: float

    def detached(self) -> Network:
        return self._replace(weights=[w.detach() for w in self.weights], biases=[b.detach() for b in self.biases])

    def negated(self) -> Network:
        """The network of -E."""
        return self._replace(
            weights=[*self.weights[:-1], -self.weights[-1]], biases=[*self.biases[:-1], -self.biases[-1]]
        )

    def energy(self, z: Tensor, bound: float | None = None, **options: Any) -> Tensor:
        """E(z): [.., d] -> [..], c tanh(E / c) where `bound` c is given."""
        flat = z.reshape(-1, z.shape[-1])
        e = ops.energy(
            flat, self.weights, self.biases, activation=self.activation, slope=self.slope, bound=bound, **options
        )
        return e.view(z.shape[:-1])


class EnergyMLP(nn.Module):
    """E(z) of a multilayer perceptron, d -> hidden -> .. -> 1; low energy is probable (the paper's f is -E).

    `input_scale` (a number or [dim]) divides z first: training resolves modes only where they differ by a few units at
    the net's input. `spectral_norm` g divides every weight by its spectral norm and multiplies the last by g, so that E
    has a Lipschitz constant of about g / input_scale (times the activation's own to the depth). Pang et al. (NeurIPS
    2020) use hidden=(200, 200).
    """

    input_scale: Tensor

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (200, 200),
        activation: str = "silu",
        slope: float = 0.2,
        spectral_norm: float | None = None,
        input_scale: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if dim < 1 or any(h < 1 for h in hidden):
            raise ValueError(f"dim, hidden: expected widths >= 1, got {dim}, {tuple(hidden)}")
        if spectral_norm is not None and not spectral_norm > 0:
            raise ValueError(f"spectral_norm: expected a gain > 0 or None, got {spectral_norm}")
        widths = (dim, *hidden, 1)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.dim, self.activation, self.slope, self.gain = dim, activation, slope, spectral_norm
        scale = torch.as_tensor(input_scale, dtype=torch.float32)
        if scale.dim() > 1 or scale.numel() not in (1, dim) or not bool((scale > 0).all()):
            raise ValueError(f"input_scale: expected numbers > 0, one or [{dim}], got {scale.tolist()}")
        self.register_buffer("input_scale", scale.expand(dim).clone())
        if spectral_norm is not None:
            for layer in self.layers:
                parametrizations.spectral_norm(layer)

    def network(self) -> Network:
        """Weights as they are now; parametrizations are evaluated once per call of this."""
        linears = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        weights = [_weight(layer) for layer in linears]
        weights[0] = weights[0] / self.input_scale
        if self.gain is not None:
            weights[-1] = weights[-1] * self.gain
        return Network(weights, [layer.bias for layer in linears], self.activation, self.slope)

    def forward(self, z: Tensor) -> Tensor:
        """[.., d] -> [..]."""
        return self.network().energy(z)

    def extra_repr(self) -> str:
        norm = "" if self.gain is None else f", spectral_norm={self.gain}"
        return f"activation={self.activation}{norm}"


_RECOGNISED: dict[type[nn.Module], Callable[[Any], tuple[str, float] | None]] = {
    nn.SiLU: lambda m: ("silu", 0.0),
    nn.GELU: lambda m: ("gelu_tanh" if m.approximate == "tanh" else "gelu", 0.0),
    nn.LeakyReLU: lambda m: ("leaky_relu", m.negative_slope),
    nn.ReLU: lambda m: ("relu", 0.0),
    nn.Softplus: lambda m: ("softplus", 0.0) if (m.beta, m.threshold) == (1.0, 20.0) else None,
    nn.Tanh: lambda m: ("tanh", 0.0),
    nn.ELU: lambda m: ("elu", 0.0) if m.alpha == 1.0 else None,
}

_FIXED = (nn.SiLU, nn.ReLU, nn.Tanh)  # activations without a setting

# Norms of torch.nn.utils that work through a hook before forward; calling the hook brings `weight` up to date.
_NORM_HOOKS = (WeightNorm, SpectralNorm)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# A subclass of these is taken for one of them if its forward is theirs.
_BASES = (nn.Linear, nn.Sequential, EnergyMLP)


def _flatten(sequence: nn.Sequential) -> list[nn.Module]:
    """The modules that are called one after another, before them the sequences that they stand in."""
    flat: list[nn.Module] = [sequence]
    for module in sequence._modules.values():
        if isinstance(module, nn.Sequential):
            flat += _flatten(module)
        elif module is not None:
            flat.append(module)
    return flat


def _altered(module: nn.Module) -> bool:
    """Whether calling `module` does more than its weights tell: by hooks, or by a forward of its own."""
    if module._forward_hooks or module._backward_hooks or module._backward_pre_hooks or "forward" in module.__dict__:
        return True
    before, kind = module._forward_pre_hooks, type(module)
    if before and not (isinstance(module, nn.Linear) and all(isinstance(h, _NORM_HOOKS) for h in before.values())):
        return True
    return kind not in _BASES and any(issubclass(kind, b) and kind.forward is not b.forward for b in _BASES)


def _idle(module: nn.Module) -> bool:
    """Whether it hands on what it is given, as a sequence does between its members."""
    return isinstance(module, nn.Identity | nn.Sequential) or (isinstance(module, nn.Dropout) and not module.training)


def _weight(linear: nn.Linear) -> Tensor:
    """The weight as a forward of the layer would use it now."""
    for hook in linear._forward_pre_hooks.values():
        hook(linear, None)
    return _held(linear, "weight")


def _held(linear: nn.Linear, name: str) -> Any:
    """The attribute: a parameter, where it is one, at a tenth of the time."""
    parameters = linear._parameters
    return parameters[name] if name in parameters else getattr(linear, name)


def recognise(energy: Any) -> Network | str:
    """The network of an `EnergyMLP` or of an `nn.Sequential` of Linear and one activation; else the reason why not.

    Modules change: every call of a sampler asks again, so that this is to take microseconds.
    """
    if not isinstance(energy, EnergyMLP | nn.Sequential):
        return f"{type(energy).__name__} is no EnergyMLP or nn.Sequential"
    called = [energy, *energy.layers] if isinstance(energy, EnergyMLP) else _flatten(energy)
    for module in called:
        if _altered(module):
            return f"{type(module).__name__} has hooks or a forward of its own"
    if isinstance(energy, EnergyMLP):
        return energy.network()
    linears: list[nn.Linear] = []
    found: list[tuple[str, float]] = []
    for module in called:
        if isinstance(module, nn.Linear):
            fits = len(linears) == len(found)
            linears.append(module)
        elif (read := _RECOGNISED.get(type(module))) and (known := read(module)):
            fits = len(linears) == len(found) + 1
            found.append(known)
        elif _idle(module):
            continue
        else:
            return f"{module} is neither a Linear nor a supported activation"
        if not fits:
            expected = "an activation" if isinstance(module, nn.Linear) else "a Linear"
            return f"{module} stands where {expected} is expected"
    if len(linears) != len(found) + 1 or linears[-1].out_features != 1:
        return "its last layer is not a Linear with one output"
    if any(known != found[0] for known in found):
        return f"it mixes activations: {', '.join(sorted({name for name, _ in found}))}"
    weights = [_weight(m) for m in linears]
    biases = [_held(m, "bias") for m in linears]
    biases = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
    return Network(weights, biases, *(found[0] if found else ("silu", 0.0)))


class Snapshot:
    """What `recognise` read of a flat `nn.Sequential`, to tell at a glance whether it would read the same again.

    It keeps the members alive, not the sequence. Modules with hooks or parametrizations are none of its business.
    """

    def __init__(self, members: Sequence[nn.Module], states: Sequence[dict[str, Any]], network: Network) -> None:
        self._members, self._states = tuple(members), tuple(states)
        self._hooks = tuple(state[name] for state in states for name in _HOOKS)
        self._linears = self._members[::2]
        self._settable = [(m, _RECOGNISED[type(m)]) for m in self._members[1::2] if type(m) not in _FIXED]
        self._activation = (network.activation, network.slope)
        self._parameters = [
            (linear._parameters, name, p, p.data_ptr(), p.shape, p.dtype)
            for linear, weight, bias in zip(self._linears, network.weights, network.biases, strict=True)
            for name, p in (("weight", weight), ("bias", bias))
        ]

    @classmethod
    def of(cls, energy: Any, network: Network) -> Snapshot | None:
        """Of an energy recognised as `network`; None where a glance cannot tell."""
        if type(energy) is not nn.Sequential:
            return None
        members = [module for module in energy._modules.values() if module is not None]
        plain = len(members) == len(energy._modules) and not any(m._forward_pre_hooks for m in members)
        linear = all(type(m) is nn.Linear and m.bias is not None for m in members[::2])
        if not (plain and linear and all(type(m) in _RECOGNISED for m in members[1::2])):
            return None
        if not all(p.is_contiguous() for p in (*network.weights, *network.biases)):
            return None
        return cls(members, [vars(module) for module in (energy, *members)], network)

    def holds(self, energy: nn.Sequential) -> bool:
        """Whether modules, settings and parameters are the same objects as then, and parameters where they were."""
        if tuple(energy._modules.values()) != self._members or any(self._hooks):
            return False
        for state in self._states:
            if "forward" in state:
                return False
        for linear in self._linears:
            if type(linear) is not nn.Linear:  # a parametrization changes the class
                return False
        for module, read in self._settable:
            if read(module) != self._activation:
                return False
        for parameters, name, p, address, shape, dtype in self._parameters:
            if (
                parameters.get(name) is not p
                or p.data_ptr() != address
                or p.shape != shape
                or p.dtype is not dtype
                or not p.is_contiguous()
            ):
                return False
        return True
