"""A classifier of a model zoo with the interface of an encoder: its features are the input of its last linear layer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ZooModel(nn.Module):
    """A network pixels in [0, 1] -> logits, measured like an encoder.

    ``features`` is the input of the last linear layer; the mean direction is that input, normalised ("backbone",
    also "latent"), or the normalised logits ("logits").

    Parameters
    ----------
    network
        Pixels in [0, 1] -> logits, normalisation inside. It is held, not copied, and set to evaluation mode.
    image_shape
        (channels, height, width) of its images.
    architecture
        Its name in messages and records.

    Raises
    ------
    ValueError
        If no linear layer makes its logits.
    """

    def __init__(
        self, network: nn.Module, image_shape: tuple[int, int, int], architecture: str = "zoo"
    ) -> None:
        super().__init__()
        self.classifier = network.eval()
        self.image_shape, self.architecture = image_shape, architecture
        self._last = self._find_last()

    def _find_last(self) -> str:
        seen: list[tuple[str, Tensor]] = []
        handles = [
            module.register_forward_hook(lambda m, i, output, name=name: seen.append((name, output)))
            for name, module in self.classifier.named_modules()
            if isinstance(module, nn.Linear)
        ]
        try:
            parameter = next(self.classifier.parameters())
            with torch.no_grad():
                logits = self.classifier(
                    torch.zeros(1, *self.image_shape, dtype=parameter.dtype, device=parameter.device)
                )
        finally:
            for handle in handles:
                handle.remove()
        makers = [name for name, output in seen if output.shape == logits.shape]
        if not makers:
            raise ValueError(
                f"no linear layer of {self.architecture} gives its {logits.shape[1]} logits, so there are no "
                f"features to read; wrap the network with lipcomp.wrap(network, layer=...)"
            )
        return makers[-1]

    def layers(self) -> tuple[str, ...]:
        """The layers that can be measured."""
        return ("backbone", "latent", "logits")

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """What the last linear layer reads."""
        taken: list[Tensor] = []
        layer = self.classifier.get_submodule(self._last)
        handle = layer.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
        try:
            self.classifier(images)
        finally:
            handle.remove()
        return taken[-1].flatten(1)

    def embedding(
        self, images: Float[Tensor, "batch channels height width"], layer: str = "latent"
    ) -> Float[Tensor, "batch dim"]:
        """h(x) before normalisation."""
        if layer not in self.layers():
            raise ValueError(f"layer must be one of {', '.join(self.layers())}, got {layer!r}")
        return self.classifier(images) if layer == "logits" else self.features(images)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], layer: str = "latent"
    ) -> Float[Tensor, "batch dim"]:
        """mu(x), the mean direction at a layer."""
        return nn.functional.normalize(self.embedding(images, layer), dim=1, eps=0.0)
