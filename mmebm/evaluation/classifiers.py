"""One small classifier for each modality: coherence and Frechet distance are measured through them.

They are trained on the spot, on the data at hand, and kept in a cache; a classifier that errs on real test images would
measure itself, so it is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmebm.data.dataset import MultimodalDataset

__all__ = ["MINIMUM_ACCURACY", "Classifiers", "DigitClassifier", "WordClassifier", "load_or_train"]

# Raise it with every change to the network or its training: it is part of the cache's key.
VERSION = 1
MINIMUM_ACCURACY = 0.90
# A set of images is seen at least EPOCHS times, a small one for at least STEPS batches.
STEPS = 700
EPOCHS = 4
BATCH = 128
LEARNING_RATE = 4e-3
SHIFT = 1
CHUNK = 1_000


class DigitClassifier(nn.Module):
    """Two strided convolutions and two linear layers: images [B, C, H, W] in [0, 1] -> logits [B, n_classes]."""

    def __init__(self, shape: tuple[int, ...], n_classes: int, width: int = 64) -> None:
        super().__init__()
        channels, height, breadth = shape
        self.shape = tuple(shape)
        self.conv1 = nn.Conv2d(channels, 16, 4, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 4, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.hidden = nn.Linear(32 * (height // 4) * (breadth // 4), width)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, n_classes)

    def features(self, images: Tensor) -> Tensor:
        """The penultimate layer, [B, width]."""
        h = F.relu(self.norm1(self.conv1(images)))
        h = F.relu(self.norm2(self.conv2(h)))
        return F.relu(self.hidden(h.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(images)))

    def prepared(self, images: Tensor) -> Tensor:
        """Floats in [0, 1] of uint8 or float images."""
        return images.float() / 255 if images.dtype == torch.uint8 else images.float().clamp(0, 1)

    def shifted(self, images: Tensor) -> Tensor:
        """As training sees them: by up to a pixel, the same for all."""
        height, width = self.shape[1:]
        padded = F.pad(images, (SHIFT,) * 4, mode="replicate")
        y, x = (int(v) for v in torch.randint(2 * SHIFT + 1, (2,)))
        return padded[:, :, y : y + height, x : x + width]


class WordClassifier(nn.Module):
    """Two convolutions along a string, the largest over its places: probabilities [B, L, V] -> logits [B, n_classes].

    Source: the letters' classifier of MoPoE's code (Sutter et al., ICLR 2021), in small.
    """

    def __init__(self, shape: tuple[int, ...], n_classes: int, width: int = 64) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.conv1 = nn.Conv1d(shape[1], width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, n_classes)

    def features(self, text: Tensor) -> Tensor:
        """The largest activations over all places, [B, width]."""
        h = F.relu(self.conv1(text.transpose(1, 2)))
        return F.relu(self.conv2(h)).amax(-1)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(text)))

    def prepared(self, text: Tensor) -> Tensor:
        """Probabilities [B, L, V], which codes [B, L] are with certainty."""
        return text.float() if text.is_floating_point() else F.one_hot(text.long(), self.shape[1]).float()

    def shifted(self, text: Tensor) -> Tensor:
        return text


Network = DigitClassifier | WordClassifier


class Classifiers:
    """A classifier for each modality, in evaluation mode.

    Args:
        networks: modality -> network.
        accuracy: modality -> accuracy on the test split's images.
        agreement: joint coherence of the test split's own tuples, which generated ones are measured against.
        seconds: time spent on training; 0 where nothing was trained.

    Raises:
        ValueError: an accuracy below 0.90; what it measured would be the classifier.
    """

    def __init__(
        self, networks: Mapping[str, Network], accuracy: Mapping[str, float], agreement: float, seconds: float
    ) -> None:
        for name, value in accuracy.items():
            if not value >= MINIMUM_ACCURACY:
                raise ValueError(
                    f"classifier of {name!r}: expected a test accuracy of at least {MINIMUM_ACCURACY:.2f}, got "
                    f"{value:.4f}; refused, coherence would measure the classifier"
                )
        self.networks: dict[str, Network] = {
            name: network.eval().requires_grad_(False) for name, network in networks.items()
        }
        self.accuracy = dict(accuracy)
        self.agreement = agreement
        self.seconds = seconds

    @property
    def n_classes(self) -> int:
        return next(iter(self.networks.values())).head.out_features

    def to(self, device: torch.device | str) -> Classifiers:
        for network in self.networks.values():
            network.to(device)
        return self

    def logits(self, name: str, images: Tensor) -> Tensor:
        """Class scores [N, n_classes] of images [N, C, H, W], or probabilities of words [N, L, V], of modality `name`.

        Images are uint8, or floats of which 0 is black and 1 is white. Decoder means leave that range: they are clamped
        to [0, 1], as writing them to a file would.
        """
        network, inputs = self._prepare(name, images)
        return torch.cat([network(part) for part in inputs])

    def predict(self, name: str, images: Tensor) -> Tensor:
        """Most probable classes, int64 [N], of images [N, C, H, W]; clamped as in `logits`."""
        return self.logits(name, images).argmax(dim=1)

    def features(self, name: str, images: Tensor) -> Tensor:
        """Penultimate features [N, 64] of images [N, C, H, W]; clamped as in `logits`."""
        network, inputs = self._prepare(name, images)
        return torch.cat([network.features(part) for part in inputs])

    def _prepare(self, name: str, images: Tensor) -> tuple[Network, Iterator[Tensor]]:
        if name not in self.networks:
            raise ValueError(f"name: expected one of {', '.join(self.networks)}, got {name!r}")
        network = self.networks[name]
        if not isinstance(images, Tensor):
            raise TypeError(f"images: expected a tensor [N, C, H, W], got {type(images).__name__}")
        if tuple(images.shape[1:]) != network.shape or not len(images):
            raise ValueError(
                f"images of {name!r}: expected [N, {', '.join(map(str, network.shape))}] with N > 0, "
                f"got {list(images.shape)}"
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images of {name!r}: expected uint8 or floats, got {images.dtype}")
        if images.is_floating_point() and not all(map(torch.isfinite, torch.aminmax(images))):
            raise ValueError(f"images of {name!r}: expected finite values, got NaN or infinity")
        return network, (network.prepared(part) for part in images.detach().split(CHUNK))


def load_or_train(
    train: MultimodalDataset,
    test: MultimodalDataset,
    *,
    modalities: Sequence[str] | None = None,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Classifiers:
    """Classifiers for `modalities` (default: all), from the cache or trained now (about 20 s on one core for `digits`).

    Trained on `train`, on the device it lies on, with shifts by one pixel; measured on `test`. The cache is keyed by
    the content of both, the seed and the version of this file's training; refused classifiers are not kept.

    Args:
        train, test: labelled images and words of the same modalities.
        modalities: which of them are judged.
        seed: initialisation, order, shifts and dropout; torch's default generator is left as it was.
        cache_dir: by default the environment variable MMEBM_CACHE_DIR, else ~/.cache/mmebm.

    Raises:
        ValueError: no labels, other modalities in `test`, modalities that are neither images nor spelled words, a test
            accuracy below 0.90.
    """
    names = list(train.modalities if modalities is None else modalities)
    _check(train, test, names)
    folder = Path(cache_dir or os.environ.get("MMEBM_CACHE_DIR") or Path.home() / ".cache" / "mmebm") / "classifiers"
    told = f"{train.fingerprint()} {test.fingerprint()} {seed} {VERSION}"
    told += "" if names == list(train.modalities) else f" {' '.join(names)}"
    key = hashlib.sha256(told.encode()).hexdigest()[:24]
    weights, record = folder / f"{key}.safetensors", folder / f"{key}.json"
    found = _load(weights, record, train, names)
    if found is None:
        found = _train_all(train, test, names, seed)
        about = {
            "version": VERSION, "seed": seed, "dataset": train.name, "train": train.fingerprint(),
            "test": test.fingerprint(), "n_classes": found.n_classes, "accuracy": found.accuracy,
            "agreement": found.agreement, "seconds": found.seconds, "torch": torch.__version__,
        }  # fmt: skip
        state = {
            f"{name}.{k}": v.cpu().contiguous()
            for name, net in found.networks.items()
            for k, v in net.state_dict().items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        with _replacing(weights) as path:
            save_file(state, path)
        # The record last: where it is, the weights are whole.
        with _replacing(record) as path:
            path.write_text(json.dumps(about, indent=2))
    return found.to(train.device)


def is_picture(shape: Sequence[int]) -> bool:
    """Whether a modality of this shape is something the classifiers take: [C, H, W] of at least 8 x 8 pixels."""
    return len(shape) == 3 and min(shape[1:]) >= 8


def is_spelled(data: MultimodalDataset, name: str) -> bool:
    """Whether a modality is a string of letters, whose class is what it spells; sentences of words are not judged."""
    words = data.vocabularies.get(name, [])
    return bool(words) and len(data.shapes[name]) == 2 and all(len(word) == 1 for word in words)


def judged(data: MultimodalDataset) -> list[str]:
    """The modalities that classifiers are trained for: pictures and strings of letters."""
    return [m for m, shape in data.shapes.items() if is_picture(shape) or is_spelled(data, m)]


def _check(train: MultimodalDataset, test: MultimodalDataset, names: Sequence[str]) -> None:
    for argument, data in (("train", train), ("test", test)):
        if data.labels is None:
            raise ValueError(f"{argument}: expected a labelled dataset, got {data.name!r} without labels")
    if train.shapes != test.shapes:
        raise ValueError(f"test: expected train's modalities {train.shapes}, got {test.shapes}")
    if unknown := [m for m in names if m not in train.modalities]:
        raise ValueError(f"modalities: expected some of {', '.join(train.modalities)}, got {', '.join(unknown)}")
    for name in names:
        if not is_picture(shape := train.shapes[name]) and not is_spelled(train, name):
            raise ValueError(
                f"modality {name!r}: expected images [C, H, W] of at least 8 x 8 pixels, got {list(shape)}"
            )


def _load(weights: Path, record: Path, train: MultimodalDataset, names: Sequence[str]) -> Classifiers | None:
    if not (weights.is_file() and record.is_file()):
        return None
    try:
        about = json.loads(record.read_text())
        state = load_file(weights)
        networks: dict[str, Network] = {}
        for name in names:
            networks[name] = _network(train, name, about["n_classes"])
            prefix = f"{name}."
            networks[name].load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
        accuracy = {name: float(about["accuracy"][name]) for name in names}
        agreement = float(about["agreement"])
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        warnings.warn(f"{weights}: unreadable, classifiers are trained again ({error})", stacklevel=3)
        return None
    return Classifiers(networks, accuracy, agreement, 0.0)


def _train_all(train: MultimodalDataset, test: MultimodalDataset, names: Sequence[str], seed: int) -> Classifiers:
    if train.labels is None or test.labels is None:
        raise ValueError("train, test: expected labelled datasets")
    start = time.perf_counter()
    n_classes = int(train.labels.max()) + 1
    networks: dict[str, Network] = {}
    accuracy: dict[str, float] = {}
    device = train.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for name in names:
            torch.manual_seed(seed)
            networks[name] = _network(train, name, n_classes).to(device)
            seen = slice(None) if train.masks is None else train.masks[name]
            _train(networks[name], train.modalities[name][seen], train.labels[seen])
    unchecked = Classifiers(networks, {}, 0.0, 0.0)
    labels = test.labels.to(device)
    agree = torch.ones(len(test), dtype=torch.bool, device=device)
    first = None
    for name in names:
        predicted = unchecked.predict(name, test.batch(torch.arange(len(test)))[name].to(device))
        first = predicted if first is None else first
        seen = torch.ones_like(agree) if test.masks is None else test.masks[name].to(device)
        agree &= predicted == first
        accuracy[name] = float((predicted == labels)[seen].double().mean())
    return Classifiers(networks, accuracy, float(agree.double().mean()), time.perf_counter() - start)


def _network(data: MultimodalDataset, name: str, n_classes: int) -> Network:
    kind = WordClassifier if is_spelled(data, name) else DigitClassifier
    return kind(data.shapes[name], n_classes)


def _train(network: Network, values: Tensor, labels: Tensor) -> None:
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    steps = max(STEPS, EPOCHS * len(values) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(values))])
        rows, order = order[:BATCH].to(values.device), order[BATCH:]
        loss = F.cross_entropy(network(network.shifted(network.prepared(values[rows]))), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when whole: others may write the same cache entry."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
