"""Encoders: pixels in [0, 1] -> mean direction (and concentration)."""

from lipcomp.encoders._backbones import register_backbone
from lipcomp.encoders._encoder import EncoderSpec, build_encoder
from lipcomp.encoders._wrapped import wrap

__all__ = [
    "EncoderSpec",
    "build_encoder",
    "register_backbone",
    "wrap",
]
