"""Small constant tensors that every call needs, kept: making one anew costs as much as the rest of a small call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache

import torch
from torch import Tensor

from mmebm.kernels.ops import watched


@lru_cache(maxsize=256)
def _kept(make: Callable[..., Tensor], *arguments: Hashable) -> Tensor:
    # An ordinary tensor, whatever mode the first caller is in.
    with torch.inference_mode(False):
        return make(*arguments)


def remembered(make: Callable[..., Tensor], *arguments: Hashable) -> Tensor:
    """make(*arguments), not to be written into: that of an earlier call, unless tracing or a mode wants to see it."""
    return make(*arguments) if watched() else _kept(make, *arguments)
