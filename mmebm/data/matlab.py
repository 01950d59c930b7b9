"""MATLAB's level 5 files, as far as datasets need them: real numeric arrays, compressed or not.

scipy.io reads more of the format and, given a file with one wrong byte, may end the process in a segmentation fault;
here every length is held against what is there. Source: "MAT-File Format", The MathWorks.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["read_matlab"]

HEADER = 128
MATRIX, COMPRESSED = 14, 15
COMPLEX = 0x0800
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}


def read_matlab(path: Path) -> dict[str, np.ndarray]:
    """name -> array, of the file's real numeric arrays; others are left out.

    Raises:
        ValueError: a file of another kind or a damaged one, named.
    """
    raw = memoryview(path.read_bytes())
    try:
        if len(raw) < HEADER or bytes(raw[126:128]) not in (b"IM", b"MI"):
            raise ValueError("another header")
        order = "<" if bytes(raw[126:128]) == b"IM" else ">"
        (version,) = struct.unpack(f"{order}H", raw[124:126])
        if version != 0x0100:
            raise ValueError(f"version {version >> 8}.{version & 255} of the format")
        found = {}
        for kind, body in _elements(raw[HEADER:], order):
            if kind == COMPRESSED:
                kind, body = next(_elements(memoryview(zlib.decompress(body)), order), (0, body))
            if kind != MATRIX:
                raise ValueError(f"an element of type {kind}")
            name, array = _matrix(body, order)
            if array is not None:
                found[name] = array
    except (ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"{path}: expected a MATLAB 5 file, got another or a damaged one ({error})") from error
    return found


def _elements(raw: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    at = 0
    while at < len(raw):
        (first,) = struct.unpack(f"{order}I", raw[at : at + 4])
        small = first >> 16  # up to four bytes lie in the tag itself
        kind, size, start = (first & 0xFFFF, small, at + 4) if small else (first, None, at + 8)
        if size is None:
            (size,) = struct.unpack(f"{order}I", raw[at + 4 : at + 8])
        elif size > 4:
            raise ValueError(f"{size} bytes where four have room")
        body = raw[start : start + size]
        if len(body) < size:
            raise ValueError(f"{len(body)} bytes where {size} should be")
        yield kind, body
        at = at + 8 if small else start + size + (0 if kind == COMPRESSED else -size % 8)


def _matrix(body: memoryview, order: str) -> tuple[str, np.ndarray | None]:
    parts = _elements(body, order)
    try:
        (_, flags), (_, extents), (_, name) = (next(parts) for _ in range(3))
        (told,) = struct.unpack(f"{order}I", flags[:4])
        called = bytes(name).decode()
        if told & COMPLEX or told & 0xFF not in CLASSES:
            return called, None
        stored, values = next(parts)
    except (StopIteration, RuntimeError):
        raise ValueError("an array without its parts") from None
    shape = np.frombuffer(extents, f"{order}i4").tolist()
    if stored not in STORED or len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"values of type {stored}, shape {shape}")
    flat = np.frombuffer(values, order + STORED[stored])
    if len(flat) != math.prod(shape):
        raise ValueError(f"{len(flat)} values for shape {shape}")
    return called, flat.reshape(shape, order="F").astype(CLASSES[told & 0xFF], copy=False)
