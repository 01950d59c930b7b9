"""How a modality's values are shown: images as one picture, codes of a vocabulary as text, the rest as sketches.

A strip is n values side by side; one with several frames holds them all, and the page shows one at a time.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# A shown image is about this high in CSS pixels, on a wide screen and on a phone; a larger one is shrunk to LARGEST.
WIDE, NARROW, LARGEST = 48, 32, 64
# Points of a sketch, and levels that a value is rounded to.
POINTS, LEVELS = 128, 255
# Bytes of pixels from which on a picture is compressed with loss.
LOSSLESS = 1_500_000


class NotFinite(ValueError):
    """Values that cannot be shown."""


@dataclass(frozen=True)
class Strip:
    """`kind` is "image", "text" or "vector"; `count` values a frame, `frames` of them.

    An image's `width` and `height` are those of one frame in its own pixels, shown `wide` or `narrow` times as large.
    """

    name: str
    kind: str
    count: int
    frames: int
    alt: str
    source: str = ""
    width: int = 0
    height: int = 0
    wide: int = 1
    narrow: int = 1
    texts: list[list[str]] = field(default_factory=list)  # [T][n]
    levels: np.ndarray | None = None  # uint8 [T, n, points]
    base: int = 0  # the level of zero

    @property
    def paths(self) -> list[str]:
        """The first frame's sketches, as SVG paths."""
        return [] if self.levels is None else [sketch(row, self.base) for row in self.levels[0]]

    def moving(self) -> dict[str, Any]:
        """What the page's script needs to show another frame; images need the frame's number alone."""
        if self.levels is not None:
            packed = base64.b64encode(self.levels.tobytes()).decode()
            return {"levels": packed, "points": self.levels.shape[2], "base": self.base}
        return {"texts": self.texts} if self.texts else {}


class View:
    """One modality of a dataset: `shape` of a row, its `words` where it has a vocabulary, and `rows` that set a scale.

    Errors: ValueError naming the modality where values have another shape or are not finite.
    """

    def __init__(
        self, name: str, shape: Sequence[int], words: Sequence[str] | None = None, rows: Tensor | None = None
    ) -> None:
        self.name, self.shape, self.words = name, tuple(shape), words
        self.limits = None if rows is None else _limits(rows.cpu())

    @property
    def kind(self) -> str:
        if self.words is not None:
            return "text"
        return "image" if len(self.shape) == 3 and self.shape[0] in (1, 3) else "vector"

    def strip(self, values: Tensor, alt: str) -> Strip:
        """A strip of values [n, *shape], or of frames of them [T, n, *shape]."""
        values = torch.as_tensor(values).detach().cpu().float()
        if values.dim() == len(self.shape) + 1:
            values = values.unsqueeze(0)
        if tuple(values.shape[2:]) != self.shape or values.dim() != len(self.shape) + 2 or not values.numel():
            raise ValueError(
                f"{self.name}: expected [T, n, {', '.join(map(str, self.shape))}], got {list(values.shape)}"
            )
        if not bool(torch.isfinite(values).all()):
            raise NotFinite(f"{self.name}: expected finite values, got NaN or infinity")
        frames, count = values.shape[:2]
        strip = Strip(self.name, self.kind, count, frames, alt)
        return Strip(**(vars(strip) | getattr(self, f"_{self.kind}")(values)))

    def _image(self, values: Tensor) -> dict[str, Any]:
        frames, count, _, height, width = values.shape
        if max(height, width) > LARGEST:
            ratio = LARGEST / max(height, width)
            size = max(1, round(height * ratio)), max(1, round(width * ratio))
            values = torch.nn.functional.interpolate(values.flatten(0, 1), size, mode="area")
            values = values.unflatten(0, (frames, count))
            height, width = size
        pixels = (values.clamp(0, 1) * 255).round().byte().expand(-1, -1, 3, -1, -1).permute(0, 1, 3, 4, 2).numpy()
        # One transparent column between two images.
        sheet = np.zeros((frames, height, count * (width + 1) - 1, 4), dtype=np.uint8)
        for i in range(count):
            left = i * (width + 1)
            sheet[:, :, left : left + width, :3] = pixels[:, i]
            sheet[:, :, left : left + width, 3] = 255
        wide, narrow = (max(1, round(side / height)) for side in (WIDE, NARROW))
        return {
            "source": data_uri(sheet.reshape(frames * height, -1, 4)), "width": sheet.shape[2], "height": height,
            "wide": wide, "narrow": min(wide, narrow),
        }  # fmt: skip

    def _text(self, values: Tensor) -> dict[str, Any]:
        words = list(self.words or [])
        codes = values.argmax(-1).reshape(*values.shape[:2], -1)  # [T, n, L]
        return {"texts": [[sentence(row.tolist(), words) for row in frame] for frame in codes]}

    def _vector(self, values: Tensor) -> dict[str, Any]:
        rows = values.flatten(2)
        if rows.shape[2] > POINTS:
            rows = torch.nn.functional.adaptive_avg_pool1d(rows, POINTS)
        low, high = self.limits or _limits(rows)
        levels = ((rows - low) / (high - low)).clamp(0, 1) * LEVELS
        return {"levels": levels.round().byte().numpy(), "base": round(-low / (high - low) * LEVELS)}


def sentence(codes: Sequence[int], words: Sequence[str]) -> str:
    """The words of codes, up to "<eos>" and without "<pad>"; letters stand together."""
    said: list[str] = []
    for code in codes:
        if words[code] == "<eos>":
            break
        if words[code] != "<pad>":
            said.append(words[code])
    letters = all(len(word) == 1 for word in words if not word.startswith("<"))
    return ("" if letters else " ").join(said)


def sketch(levels: Sequence[int] | np.ndarray, base: int) -> str:
    """Bars from the level of zero, as one SVG path; y points down."""
    zero = LEVELS - base
    return f"M0 {zero}" + "".join(f"V{LEVELS - int(y)}h1" for y in levels) + f"V{zero}z"


def data_uri(pixels: np.ndarray) -> str:
    """uint8 [H, W, 4] as a WebP image, lossless unless it is large."""
    file = io.BytesIO()
    lossless = pixels.size <= LOSSLESS
    Image.fromarray(pixels, "RGBA").save(file, "WEBP", lossless=lossless, quality=80 if lossless else 88, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _limits(rows: Tensor) -> tuple[float, float]:
    """The range of a vector's values but the outermost hundredth; zero is in it."""
    low, high = (float(q) for q in np.percentile(rows.numpy(), (0.5, 99.5)))
    low, high = min(0.0, low), max(0.0, high)
    return (low, high) if high > low else (low, low + 1.0)
