"""Arguments as csrc takes them: tuples of addresses and numbers, in the order of its bindings."""

from __future__ import annotations

import math

from torch import Tensor

from .reference import MLP, Constraints
from .reference.activations import ACTIVATIONS

LAWS = {"normal": 0, "laplace": 1}
# The order of csrc/common/activation.hpp.
ACTIVATION_NUMBERS = {name: i for i, name in enumerate(ACTIVATIONS)}
_PRIORS = {"never": 0, "always": 1, "full": 2}
_REFERENCES = {"none": 0, "normal": 1, "laplace": 2}


def address(t: Tensor | None) -> int:
    """0 for no tensor, or one without elements: nothing is to be read or written."""
    return t.data_ptr() if t is not None and t.numel() else 0


class Net:
    """An MLP; holds contiguous parameters alive during the call."""

    def __init__(self, net: MLP) -> None:
        self.weights = [w.contiguous() for w in net.weights]
        self.biases = [b.contiguous() for b in net.biases]
        layers = [(w.data_ptr(), b.data_ptr(), *w.shape) for w, b in zip(self.weights, self.biases, strict=True)]
        self.args = (layers, ACTIVATION_NUMBERS[net.activation], net.slope, net.bound or 0.0)


def hold_args(hold: Constraints, scale: Tensor) -> tuple[int, int, float, float, float]:
    """reference, scale, clip, lower, upper; `scale` is the hold's, contiguous, kept alive by the caller."""
    low = -math.inf if hold.lower is None else hold.lower
    high = math.inf if hold.upper is None else hold.upper
    return _REFERENCES[hold.reference], scale.data_ptr(), hold.grad_clip or 0.0, low, high


def experts_args(mu: Tensor, logvar: Tensor, present: Tensor, prior: str) -> tuple[int, int, int, int, int, int, int]:
    """mu, logvar, present, M, B, d, prior."""
    return mu.data_ptr(), logvar.data_ptr(), present.data_ptr(), *mu.shape, _PRIORS[prior]


def mixture_args(
    z: Tensor, loc: Tensor, scale: Tensor, present: Tensor, law: str
) -> tuple[int, int, int, int, int, int, int, int, int]:
    """z, loc, scale, present, lead, B, d, M, law."""
    lead = math.prod(z.shape[:-2])
    tensors = (t.data_ptr() for t in (z, loc, scale, present))
    return *tensors, lead, *z.shape[-2:], len(loc), LAWS[law]
