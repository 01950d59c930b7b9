"""Reading the files of datasets: what is damaged is named, with its line."""

from __future__ import annotations

import gzip
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["read_bytes", "read_lines", "read_npy", "read_npz", "read_picture", "read_table", "root_folder"]

# What numpy, with zipfile, zlib and the parser of headers, raises on the way from damaged bytes to arrays.
DAMAGED_ARRAYS = (
    ValueError, TypeError, KeyError, OSError, EOFError, RuntimeError, SyntaxError, MemoryError, struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
# The same of Pillow; its UnidentifiedImageError is an OSError.
DAMAGED_PICTURE = (
    ValueError, TypeError, OSError, EOFError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def root_folder(data_dir: str | os.PathLike[str] | None, dataset: str, reads: str) -> Path:
    """The folder of all datasets; `reads` says what the dataset looks for in it, and where people get that."""
    found = data_dir if data_dir is not None else os.environ.get("MMEBM_DATA_DIR")
    if not found:
        raise FileNotFoundError(
            f"{dataset}: expected its files under data_dir or the environment variable MMEBM_DATA_DIR, got neither; "
            f"it reads {reads}"
        )
    return Path(found)


def read_bytes(path: Path) -> bytes:
    """A file's content, decompressed where its name ends in .gz."""
    raw = path.read_bytes()
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:  # BadGzipFile is an OSError
        raise ValueError(f"{path}: expected a gzip file, got a damaged one ({error})") from error


def read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file; pickled ones are refused."""
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except FileNotFoundError:
        raise
    except DAMAGED_ARRAYS as error:
        raise ValueError(f"{path}: expected a plain array, got {_said(error)}") from error


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, or those of them that `names` has; pickled ones are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if names is None or name in names}
    except FileNotFoundError:
        raise
    except (*DAMAGED_ARRAYS, AttributeError) as error:  # a .npy file under the name of an archive has no `files`
        raise ValueError(f"{path}: expected an npz archive of plain arrays, got {_said(error)}") from error


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without the space around them; the last one's line end is optional."""
    raw = read_bytes(path)
    try:
        lines = raw.decode().split("\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: expected UTF-8 text, got byte {raw[error.start]:#04x}") from error
    if not lines[-1]:
        lines.pop()
    return [line.strip() for line in lines]


def read_table(path: Path, columns: int) -> np.ndarray:
    """float64 [lines, columns] of a file of finite numbers with spaces between them."""
    lines = read_lines(path)
    try:
        table = np.loadtxt(lines, comments=None, ndmin=2) if lines else np.zeros((0, columns))
    except ValueError:
        table = None
    if table is not None and table.shape == (len(lines), columns) and np.isfinite(table).all():
        return table
    for number, line in enumerate(lines, 1):
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            row = []
        if len(row) != columns or not np.isfinite(row).all():
            got = line if len(line) <= 60 else f"{line[:57]}..."
            raise ValueError(f"{path}, line {number}: expected {columns} finite numbers, got {got!r}")
    raise ValueError(f"{path}: expected lines of {columns} finite numbers, got another form of numbers")


def read_picture(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """The RGB pixels of a picture file, uint8 [H, W, 3], resized bilinearly to size = (H, W) where it is given."""
    try:
        with Image.open(path) as picture:
            pixels = picture.convert("RGB")
            if size is not None and pixels.size != size[::-1]:
                pixels = pixels.resize(size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(pixels)
    except FileNotFoundError:
        raise
    except DAMAGED_PICTURE as error:
        raise ValueError(
            f"{path}: expected a picture, got a file that is none or is damaged ({_said(error)})"
        ) from error
