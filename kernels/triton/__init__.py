"""Backend triton."""

from __future__ import annotations

import torch

from ..reference import MLP


def unsupported(operator: str, device: torch.device, dtype: torch.dtype, net: MLP | None = None) -> str | None:
    """Why it cannot serve the call, or None if it can; with `net`, whether that fits its kernels as well."""
    return f"it has no kernel for '{operator}' yet"
