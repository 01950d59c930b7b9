"""Encoders x -> (loc, raw scale), [B, dim] each, and decoders u [R, dim] -> [R, *shape]; any such module serves."""

from .mlp import MLPDecoder, MLPEncoder

__all__ = ["MLPDecoder", "MLPEncoder"]
