"""Energies that are an MLP: `EnergyMLP`, and recognising an `nn.Sequential` as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


# Norms of torch.nn.utils that work through a hook before forward; calling the hook brings `weight` up to date.
_NORM_HOOKS = (WeightNorm, SpectralNorm)


def _flatten(sequence: nn.Sequential) -> Iterator[nn.Module]:
    """The modules that are called one after another, before them the sequences that they stand in."""
    yield sequence
    for module in sequence._modules.values():
        if isinstance(module, nn.Sequential):
            yield from _flatten(module)
        elif module is not None:
            yield module


def _altered(module: nn.Module) -> bool:
    """Whether calling `module` does more than its weights tell: by hooks, or by a forward of its own."""
    if module._forward_hooks or module._backward_hooks or module._backward_pre_hooks or "forward" in vars(module):
        return True
    before = module._forward_pre_hooks
    if before and not (isinstance(module, nn.Linear) and all(isinstance(h, _NORM_HOOKS) for h in before.values())):
        return True
    kind = next((k for k in (nn.Linear, nn.Sequential, EnergyMLP) if isinstance(module, k)), None)
    return kind is not None and type(module).forward is not kind.forward


def _idle(module: nn.Module) -> bool:
    """Whether it hands on what it is given, as a sequence does between its members."""
    return isinstance(module, nn.Identity | nn.Sequential) or (isinstance(module, nn.Dropout) and not module.training)


def _weight(linear: nn.Linear) -> Tensor:
    """The weight as a forward of the layer would use it now."""
    for hook in linear._forward_pre_hooks.values():
        hook(linear, None)
    return linear.weight


def recognise(energy: Any) -> Network | str:
    """The network of an `EnergyMLP` or of an `nn.Sequential` of Linear and one activation; else the reason why not."""
    if not isinstance(energy, EnergyMLP | nn.Sequential):
        return f"{type(energy).__name__} is no EnergyMLP or nn.Sequential"
    called = [energy, *energy.layers] if isinstance(energy, EnergyMLP) else list(_flatten(energy))
    for module in called:
        if _altered(module):
            return f"{type(module).__name__} has hooks or a forward of its own"
    if isinstance(energy, EnergyMLP):
        return energy.network()
    modules = [module for module in called if not _idle(module)]
    linears, found = [], set()
    for place, module in enumerate(modules):
        if isinstance(module, nn.Linear):
            linears.append(module)
        elif known := _RECOGNISED.get(type(module), lambda _: None)(module):
            found.add(known)
        else:
            return f"{module} is neither a Linear nor a supported activation"
        if isinstance(module, nn.Linear) == bool(place % 2):
            return f"{module} stands where {'an activation' if place % 2 else 'a Linear'} is expected"
    if len(modules) % 2 == 0 or linears[-1].out_features != 1:
        return "its last layer is not a Linear with one output"
    if len(found) > 1:
        return f"it mixes activations: {', '.join(sorted(name for name, _ in found))}"
    weights = [_weight(m) for m in linears]
    biases = [w.new_zeros(len(w)) if m.bias is None else m.bias for m, w in zip(linears, weights, strict=True)]
    return Network(weights, biases, *(found.pop() if found else ("silu", 0.0)))
