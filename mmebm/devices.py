"""Devices by name."""

from __future__ import annotations

import re

import torch

__all__ = ["NAMES", "find"]

NAMES = re.compile(r"cpu|cuda(:\d+)?")  # those of one device


def find(name: str | torch.device) -> torch.device:
    """The device called `name`: "cpu", "cuda", "cuda:N", or "auto", the first GPU where torch finds one, else the CPU.

    Errors: ValueError for another name, or a GPU that is not there.
    """
    name = str(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not NAMES.fullmatch(name):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: expected one that is there, got {name!r} where torch finds no CUDA device")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device: expected one that is there, got {name!r} of {torch.cuda.device_count()}")
    return device
