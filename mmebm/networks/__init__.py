"""Encoders x -> (loc, raw scale), [B, dim] each, and decoders u [R, dim] -> [R, *shape]; any such module serves.

| name | modalities | source |
|---|---|---|
| mlp | any | |
| mnist | pictures in [0, 1] | MMVAE: an mlp whose decoder ends in a sigmoid |
| svhn | [3, 32, 32] in [0, 1] | MMVAE |
| conv | pictures | MoPoE, for PolyMNIST |
| resnet | pictures | MMVAE+, for PolyMNIST and CUB |
| caption | one-hot words [L, V], L a multiple of 8 | MMVAE+, for CUB |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .caption import CaptionDecoder, CaptionEncoder
from .conv import ConvDecoder, ConvEncoder, SVHNDecoder, SVHNEncoder
from .mlp import MLPDecoder, MLPEncoder
from .resnet import ResNetDecoder, ResNetEncoder

NETWORKS = ("mlp", "mnist", "svhn", "conv", "resnet", "caption")

__all__ = [
    "NETWORKS",
    "CaptionDecoder",
    "CaptionEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "ResNetDecoder",
    "ResNetEncoder",
    "SVHNDecoder",
    "SVHNEncoder",
    "choose_network",
    "decoded",
    "make_decoder",
    "make_encoder",
    "moments",
]


def choose_network(shape: Sequence[int]) -> str:
    """What serves a modality of this shape where nothing is said.

    Colour pictures of 24 pixels or more: resnet, [3, 32, 32]: svhn; 16 words or more of eight or more kinds, their
    number a multiple of 8: caption; all else: mlp.
    """
    if tuple(shape) == (3, 32, 32):
        return "svhn"
    if len(shape) == 3 and shape[0] == 3 and min(shape[1:]) >= 24:
        return "resnet"
    if len(shape) == 2 and shape[0] >= 16 and shape[0] % 8 == 0 and shape[1] >= 8:
        return "caption"
    return "mlp"


def make_encoder(
    network: str, shape: Sequence[int], dim: int, hidden: Sequence[int], private: bool = False
) -> nn.Module:
    """The named network's encoder, to `dim` latents, private ones or shared; `hidden` is for the mlp.

    Errors: ValueError for an unknown name, or a shape it does not take.
    """
    network = _checked(network, shape)
    if network in ("mlp", "mnist"):
        return MLPEncoder(shape, dim, hidden)
    if network == "caption":
        return CaptionEncoder(shape, dim, shallow=private)
    return {"svhn": SVHNEncoder, "conv": ConvEncoder, "resnet": ResNetEncoder}[network](shape, dim)


def make_decoder(network: str, shape: Sequence[int], dim: int, hidden: Sequence[int], private: int = 0) -> nn.Module:
    """The named network's decoder, from `dim` latents of which the first `private` are private."""
    network = _checked(network, shape)
    if network in ("mlp", "mnist"):
        return MLPDecoder(dim, shape, hidden, sigmoid=network == "mnist")
    if network == "caption":
        return CaptionDecoder(dim, shape, private=private)
    return {"svhn": SVHNDecoder, "conv": ConvDecoder, "resnet": ResNetDecoder}[network](dim, shape)


def _checked(network: str, shape: Sequence[int]) -> str:
    """The name, "auto" resolved."""
    if network == "auto":
        return choose_network(shape)
    if network not in NETWORKS:
        raise ValueError(f"network: expected auto or one of {', '.join(NETWORKS)}, got {network!r}")
    if network in ("svhn", "conv", "resnet") and len(shape) != 3:
        raise ValueError(f"network: {network!r} takes pictures [C, H, W], got {list(shape)}")
    if network == "caption" and (len(shape) != 2 or shape[0] % 8):
        raise ValueError(f"network: {network!r} takes words [L, V] with L a multiple of 8, got {list(shape)}")
    return network


def moments(output: Any) -> tuple[Tensor, Tensor]:
    """(loc, raw scale) [B, dim] of what an encoder returns: the pair, or one tensor [B, 2 dim] of both."""
    if isinstance(output, Tensor):
        loc, raw = output.chunk(2, dim=-1)
        return loc, raw
    try:
        loc, raw = output
    except (TypeError, ValueError):
        raise TypeError(
            f"encoder: expected it to return (loc, raw scale) or one tensor of both, got {type(output).__name__}"
        ) from None
    return loc, raw


def decoded(output: Any) -> Tensor:
    """The tensor that a decoder returns, or the `reconstruction` of what it returns (MultiVae's decoders)."""
    if isinstance(output, Tensor):
        return output
    if isinstance(found := getattr(output, "reconstruction", None), Tensor):
        return found
    raise TypeError(f"decoder: expected it to return a tensor, got {type(output).__name__}")
