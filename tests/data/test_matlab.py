"""MATLAB files, against scipy's writer; damaged in every way, they end in one error."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from mmebm.data.matlab import read_matlab

HELD = {
    "X": np.random.default_rng(0).integers(0, 256, (4, 4, 3, 5)).astype(np.uint8),
    "y": np.arange(5.0)[:, None],
    "small": np.array([[-3]], np.int16),
    "single": np.eye(3, dtype=np.float32),
    "long": np.array([[2**40, -1]]),
    "empty": np.zeros((0, 3)),
}
each_form = pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])


def write(folder: Path, compressed: bool, **held: object) -> Path:
    scipy.io.savemat(folder / "a.mat", held, do_compression=compressed)
    return folder / "a.mat"


@each_form
def test_arrays_come_as_they_were_written(compressed: bool, tmp_path: Path) -> None:
    others = {"text": "words", "complex": np.ones(2) * 1j, "cell": np.array([1, "a"], object), "struct": {"a": 1}}
    found = read_matlab(write(tmp_path, compressed, **HELD, **others))
    assert set(found) == set(HELD)
    for name, array in HELD.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_and_doubles_stored_as_bytes(order: str, tmp_path: Path) -> None:
    def element(kind: int, body: bytes) -> bytes:
        return struct.pack(f"{order}II", kind, len(body)) + body + bytes(-len(body) % 8)

    flags, extents = struct.pack(f"{order}II", 6, 0), struct.pack(f"{order}ii", 2, 2)
    matrix = element(6, flags) + element(5, extents) + element(1, b"y") + element(2, bytes((1, 2, 3, 4)))
    end = struct.pack(f"{order}H", 0x0100) + (b"IM" if order == "<" else b"MI")
    (tmp_path / "a.mat").write_bytes(b"".ljust(124) + end + element(14, matrix))
    found = read_matlab(tmp_path / "a.mat")["y"]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [[1, 3], [2, 4]])


@each_form
def test_every_cut_is_refused_or_leaves_whole_arrays(compressed: bool, tmp_path: Path) -> None:
    path = write(tmp_path, compressed, **HELD)
    raw = path.read_bytes()
    for end in [*range(0, 200, 3), *range(200, len(raw), 11)]:
        path.write_bytes(raw[:end])
        try:
            found = read_matlab(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: expected a MATLAB 5 file, got another or a damaged one (")
        else:
            assert len(found) < len(HELD) or raw[end:].strip(b"\0") == b""
            assert all(np.array_equal(array, HELD[name]) for name, array in found.items())


@each_form
def test_wrong_bytes_never_end_otherwise(compressed: bool, tmp_path: Path) -> None:
    path = write(tmp_path, compressed, **HELD)
    raw = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for trial in range(300):
        damaged = bytearray(raw)
        for place in rng.integers(124, 260 if trial % 2 else len(raw), 1 + trial % 3):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read_matlab(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: expected a MATLAB 5 file")
    assert refused > 50


@pytest.mark.parametrize(("content", "message"), [
    (b"not a MATLAB file", "another header"),
    (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM", r"version 2\.0 of the format"),
    (b"".ljust(124) + b"\x00\x01IM" + b"\x09\0\0\0\0\0\0\0", "an element of type 9"),
])  # fmt: skip
def test_other_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_matlab(tmp_path / "a.mat")
