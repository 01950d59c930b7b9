"""Frechet inception distances, with weights of Inception that the user supplies.

Pictures go through 8 bits as files would: clamped to [0, 1], times 255, rounded. Features are the 2,048 of pool3 of the
network that was ported from TensorFlow, which resizes to 299 pixels itself. Source: Heusel et al., NeurIPS 2017; the
protocol of MoPoE, MVTCAE and MMVAE+, whose real pictures are the test split's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmebm.data import MultimodalDataset
from mmebm.models import MultimodalVAE

from .frechet import frechet_distance

__all__ = ["Features", "cross_fid", "inception", "joint_fid", "real_features"]

Features = Callable[[Tensor], Tensor]  # uint8 [N, 3, H, W] -> [N, features]
_CHUNK = 256


def inception(weights: Path | str, device: torch.device | str = "cpu") -> Features:
    """Inception's features by torchmetrics (`pip install mmebm[fid]`).

    `weights`: pt_inception-2015-12-05-6726825d.pth, as PolyMNIST's archive and torch-fidelity's releases have it.
    Errors: FileNotFoundError, ModuleNotFoundError that says what to install, ValueError for another file.
    """
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"inception: expected weights at {weights}, which is not there; they are in "
            "https://github.com/toshas/torch-fidelity/releases, pt_inception-2015-12-05-6726825d.pth"
        )
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"inception: {error.name} is not installed: pip install 'mmebm[fid]', which brings torchmetrics and "
            "torch-fidelity"
        ) from None
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"{weights}: expected Inception's weights, got another file ({error})") from error
    return network.to(device).eval()


def joint_fid(
    model: MultimodalVAE, z: Tensor, features: Features, real: Mapping[str, Tensor], seed: int
) -> dict[str, float]:
    """Of likelihood means decoded from z [N, d], to `real` features of each modality; private latents from p(w)."""
    images = model.decode(z, list(real), seed=seed)
    return {m: frechet_distance(_features(features, images[m]), real[m]) for m in real}


def cross_fid(
    model: MultimodalVAE, data: MultimodalDataset, features: Features, real: Mapping[str, Tensor], rows: int, seed: int
) -> dict[str, dict[str, float]]:
    """Source -> target -> distance of what is generated from the first rows, a picture a row; itself included."""
    index = torch.arange(min(rows, len(data)))
    inputs, masks = data.batch(index), data.observed(index)
    return {
        source: {
            m: frechet_distance(_features(features, x), real[m])
            for m, x in model.cross_generate(inputs, source, list(real), masks=masks, seed=seed).items()
        }
        for source in real
    }


def real_features(data: MultimodalDataset, features: Features, names: list[str]) -> dict[str, Tensor]:
    """Of the rows that have each modality."""
    found = {}
    for m in names:
        rows = torch.arange(len(data)) if data.masks is None else data.masks[m].nonzero().flatten().cpu()
        found[m] = torch.cat([_features(features, data.batch(part, [m])[m]) for part in rows.split(_CHUNK)])
    return found


@torch.no_grad()
def _features(features: Features, images: Tensor) -> Tensor:
    """Of floating images [N, C, H, W] of 1 or 3 channels."""
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images: expected [N, C, H, W] with 1 or 3 channels, got {list(images.shape)}")
    bytes_ = (images.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).expand(-1, 3, -1, -1)
    return torch.cat([features(part) for part in bytes_.split(_CHUNK)])
