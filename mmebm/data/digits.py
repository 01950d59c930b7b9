"""PolyMNIST's recipe on what scikit-learn carries: five views of 1,797 real handwritten digits, nothing to download."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from mmebm.data.dataset import MultimodalDataset
from mmebm.data.recipe import check_options, poly

__all__ = ["digits", "source_digits", "textures"]

SIDE = 16
SIZES = {"train": 12_000, "validation": 2_000, "test": 2_000}
# The split and the procedural textures belong to the dataset: `seed` must not move a test digit into training.
SPLIT_SEED = 2024
TEXTURE_SEED = 7
HELD_OUT = 300

# Crops of scikit-learn's two photographs (photo, top, bottom, left, right, reduction) and, for red, green and blue, the
# range the texture is stretched to. Each channel stays on one side of mid grey, where inversion would leave no digit.
Range = tuple[float, float]
PHOTOGRAPHS: dict[str, tuple[str, tuple[int, int, int, int, int], tuple[Range, Range, Range]]] = {
    "m0": ("china.jpg", (100, 370, 112, 335, 2), ((0.10, 0.44), (0.0, 0.34), (0.0, 0.30))),
    "m1": ("flower.jpg", (115, 335, 190, 425, 2), ((0.80, 1.0), (0.56, 0.92), (0.08, 0.42))),
    "m2": ("china.jpg", (330, 427, 60, 590, 2), ((0.54, 0.86), (0.70, 1.0), (0.50, 0.84))),
}


def digits(split: str, *, size: int | None = None, seed: int = 0) -> MultimodalDataset:
    """Five modalities m0..m4 of colour digits, uint8 [N, 3, 16, 16], that share only the class.

    Source digits are disjoint between the splits (1,197 train, 300 validation, 300 test, stratified, the same for every
    seed); tuples repeat them in new pairings on new crops.

    Args:
        split: "train", "validation" or "test".
        size: number of tuples; by default 12,000, 2,000 and 2,000.
        seed: pairing and crops.

    Raises:
        ValueError, TypeError: an option out of its range.
    """
    check_options(split, size, seed)
    masks, labels = source_digits(split)
    return poly(masks, labels, textures(), size=size or SIZES[split], seed=seed, name="digits", split=split)


@functools.cache
def _split_rows() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    labels = load_digits().target
    rest, test = train_test_split(np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=SPLIT_SEED)
    train, validation = train_test_split(rest, test_size=HELD_OUT, stratify=labels[rest], random_state=SPLIT_SEED)
    return {"train": np.sort(train), "validation": np.sort(validation), "test": np.sort(test)}


def source_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The split's digits as masks, bool [n, 16, 16], and their classes, int64 [n]."""
    from sklearn.datasets import load_digits

    check_options(split, None, 0)
    data = load_digits()
    rows = _split_rows()[split]
    masks = np.stack([_upscale(image) for image in data.images[rows]])
    return masks, data.target[rows].astype(np.int64)


def _upscale(image: np.ndarray) -> np.ndarray:
    smooth = Image.fromarray(image.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(smooth) > 8.0  # half of 16 grey levels


@functools.cache
def textures() -> tuple[np.ndarray, ...]:
    """The five textures, uint8 [H, W, 3]: three parts of photographs, two made from seeded noise."""
    from sklearn.datasets import load_sample_image

    made = []
    for photo, (top, bottom, left, right, reduction), ranges in PHOTOGRAPHS.values():
        region = Image.fromarray(load_sample_image(photo)[top:bottom, left:right]).reduce(reduction)
        made.append(_stretch(np.asarray(region, dtype=np.float64), ranges))
    rng = np.random.default_rng(TEXTURE_SEED)
    made.append(_stretch(_cells(160, 90, rng), ((0.0, 0.30), (0.10, 0.46), (0.42, 0.78))))
    made.append(_stretch(_waves(160, 24, rng), ((0.62, 1.0), (0.0, 0.40), (0.55, 1.0))))
    return tuple(made)


def _stretch(texture: np.ndarray, ranges: tuple[Range, Range, Range]) -> np.ndarray:
    low, high = np.percentile(texture, (1, 99), axis=(0, 1))
    unit = np.clip((texture - low) / (high - low), 0, 1)
    to = np.asarray(ranges)
    return np.round(255 * (to[:, 0] + unit * (to[:, 1] - to[:, 0]))).astype(np.uint8)


def _cells(side: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Voronoi cells with dark seams, each of its own shade: float64 [side, side, 3]."""
    centres = rng.uniform(0, side, (count, 2))
    shades = rng.uniform(0, 1, (count, 3))
    y, x = np.mgrid[:side, :side]
    distance = np.hypot(y[..., None] - centres[:, 0], x[..., None] - centres[:, 1])
    near = np.sort(distance, axis=-1)[..., :2]
    seam = np.clip((near[..., 1] - near[..., 0]) / 3, 0, 1)
    return shades[distance.argmin(-1)] * seam[..., None]


def _waves(side: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """A sum of plane waves, another one for each channel: float64 [side, side, 3]."""
    y, x = np.mgrid[:side, :side]
    channels = []
    for _ in range(3):
        angle = rng.uniform(0, 2 * np.pi, count)
        frequency = rng.uniform(0.25, 0.75, count)
        phase = rng.uniform(0, 2 * np.pi, count)
        along = y[..., None] * np.sin(angle) + x[..., None] * np.cos(angle)
        channels.append(np.cos(frequency * along + phase).sum(-1))
    return np.stack(channels, axis=-1)
