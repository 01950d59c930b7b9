"""The device that launches go to."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launches go to the current device's current stream: make it a tensor's."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
