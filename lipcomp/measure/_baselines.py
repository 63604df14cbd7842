"""Baselines: the same architecture with random weights, and the pixels without a network."""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipcomp.checkpoints._native import Checkpoint, Metadata
from lipcomp.encoders import EncoderSpec, build_encoder, wrap
from lipcomp.encoders._encoder import Encoder


class Pixels(nn.Module):
    """Images (batch, channels, height, width) -> their pixels as features (batch, channels * height * width)."""

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """The pixels, one row per image."""
        return images.flatten(1)


def baseline(checkpoint: Checkpoint, kind: Literal["random", "pixels"], seed: int = 0) -> Checkpoint:
    """The baseline that belongs to an encoder: its architecture untrained, or the images that it takes.

    Raises
    ------
    ValueError
        If the encoder is a foreign one whose architecture cannot be built anew.
    """
    data = checkpoint.metadata.data
    if kind == "pixels":
        encoder: Encoder = wrap(Pixels(), image_shape=checkpoint.image_shape, architecture="pixels")
        told = Metadata(objective={"name": "RawPixels"}, data=data)
    else:
        spec = getattr(checkpoint.encoder, "spec", None)
        if not isinstance(spec, EncoderSpec):
            raise ValueError(
                f"a random baseline needs an encoder of lipcomp, whose architecture is known; "
                f"{checkpoint.path} is a {checkpoint.format} checkpoint"
            )
        encoder = build_encoder(spec, seed=seed).eval()
        told = Metadata(objective={"name": "Random"}, recipe=_architecture(checkpoint), data=data, seed=seed)
    with torch.no_grad():
        encoder.requires_grad_(False)
    return replace(checkpoint, encoder=encoder, metadata=told, sha256=f"{kind}-{seed}")


def _architecture(checkpoint: Checkpoint) -> dict[str, object]:
    """The augmentation stays, so that compression is measured on the same views."""
    return {"views": v} if (v := checkpoint.metadata.recipe.get("views")) else {}
