"""Encoders and decoders. Any module with the same call serves: encoder(x) -> [B, outputs], decoder(u) -> [R, *shape]."""

from .mlp import MLPDecoder, MLPEncoder

__all__ = ["MLPDecoder", "MLPEncoder"]
