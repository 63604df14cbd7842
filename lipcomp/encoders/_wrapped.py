"""Any network as an encoder: pixels in [0, 1] -> mean direction.

    x --normalise--> network --> (projector --> predictor) --> h(x),    mu(x) = h / |h|

The wrapper gives a foreign network the interface of :class:`~lipcomp.encoders.Encoder`, so that whatever
measures one measures the other. It holds the network itself, not a copy, and sets it to evaluation mode: in
training mode a batch norm makes each image's direction depend on the other images, and no Lipschitz constant
is defined.
"""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipcomp.encoders._encoder import Encoder, Layer, NormalisationError

Pool = Literal["mean", "token", "flatten"]
Numbers = float | int | Sequence[float | int] | np.ndarray | np.floating | Tensor


class WrappedEncoder(Encoder):
    """An encoder whose parts are given as modules instead of being rebuilt from a spec.

    Use :func:`wrap` for your own network; :func:`lipcomp.load_encoder` makes these from foreign
    checkpoints.

    Parameters
    ----------
    backbone
        Normalised images -> features (batch, d).
    mean, std
        Normalisation of pixels in [0, 1]; one number for all channels, or one per channel.
    image_shape
        (channels, height, width) of the images.
    projector, predictor
        What follows the features, each None where there is none.
    architecture
        What messages and records call the backbone.

    Raises
    ------
    ValueError
        If ``mean``, ``std`` or ``image_shape`` do not fit, or a predictor has no projector before it.
    """

    not_identity = ("_architecture",)  # what messages call it, of lipcomp._identity.hash_module

    def __init__(
        self,
        backbone: nn.Module,
        mean: Numbers,
        std: Numbers,
        image_shape: Sequence[int],
        *,
        projector: nn.Module | None = None,
        predictor: nn.Module | None = None,
        architecture: str | None = None,
    ) -> None:
        nn.Module.__init__(self)
        shape = tuple(map(int, image_shape)) if isinstance(image_shape, Iterable) else ()
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(
                f"image_shape must be (channels, height, width), all positive; got {image_shape}"
            )
        self._image_shape = (shape[0], shape[1], shape[2])
        for name, given in (("mean", mean), ("std", std)):
            numbers = _numbers(name, given, shape[0])
            self.register_buffer(name, torch.tensor(numbers).view(-1, 1, 1), persistent=False)
        if float(self.std.min()) <= 0:
            raise NormalisationError(f"std must be positive, got {std}")
        if predictor is not None and projector is None:
            raise ValueError("a predictor needs a projector before it; give projector= as well")
        self._architecture = architecture or type(backbone).__name__
        self._heads: tuple[Layer, ...] = (
            *(("projection",) if projector is not None else ()),
            *(("prediction",) if predictor is not None else ()),
        )
        self.backbone = backbone
        self.projector = nn.Identity() if projector is None else projector
        self.predictor = nn.Identity() if predictor is None else predictor
        self.decoder = nn.Identity()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that it takes."""
        return self._image_shape

    @property
    def architecture(self) -> str:
        """What messages and records call the backbone."""
        return self._architecture

    def layers(self) -> tuple[Layer, ...]:
        """The layers this encoder has, by name."""
        return ("backbone", *self._heads, "latent")


class Tap(nn.Module):
    """A network's output, or that of one of its submodules, as features (batch, d)."""

    def __init__(self, network: nn.Module, layer: str | None = None, pool: Pool | None = None) -> None:
        super().__init__()
        self.network, self.layer, self.pool = network, layer, pool

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Features at the tapped place."""
        where = "the network's output" if self.layer is None else f"the output of layer {self.layer!r}"
        if self.layer is None:
            out = self.network(images)
        else:
            seen: list[Any] = []
            handle = self.network.get_submodule(self.layer).register_forward_hook(
                lambda module, inputs, output: seen.append(output)
            )
            try:
                self.network(images)
            finally:
                handle.remove()
            if len(seen) != 1:
                raise ValueError(
                    f"layer {self.layer!r} ran {len(seen)} times in one forward pass, not once; name a layer "
                    f"whose output is the embedding"
                )
            out = seen[0]
        if not isinstance(out, Tensor):
            raise ValueError(  # noqa: TRY004  (the package's one kind of refusal)
                f"{where} is a {type(out).__name__}, not a tensor; give layer= the submodule whose output is "
                f"the embedding, or wrap the network in a module that returns it"
            )
        return self._pooled(out, where)

    def _pooled(self, out: Tensor, where: str) -> Tensor:
        if out.ndim == 2:
            return out
        if out.ndim < 2:
            raise ValueError(
                f"{where} has shape {tuple(out.shape)}; an embedding is (batch, features), one row per image"
            )
        if self.pool == "flatten" or out.flatten(1).shape[1] == out.shape[1]:
            return out.flatten(1)
        if self.pool == "mean":  # (batch, features, height, width), or (batch, tokens, features)
            return out.mean(1) if out.ndim == 3 else out.flatten(2).mean(2)
        if self.pool == "token" and out.ndim == 3:
            return out[:, 0]
        raise ValueError(
            f"{where} has shape {tuple(out.shape)}, which is not (batch, features); give "
            f'pool="mean" (over positions or tokens), "token" (the first of the tokens) or "flatten"'
        )


def wrap(
    module: nn.Module,
    *,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
    layer: str | None = None,
    image_shape: Sequence[int] = (3, 224, 224),
    pool: Pool | None = None,
    projector: nn.Module | None = None,
    predictor: nn.Module | None = None,
    architecture: str | None = None,
) -> WrappedEncoder:
    """Give your own network the interface of an encoder.

    Parameters
    ----------
    module
        Normalised images (batch, channels, height, width) -> embedding. It is not copied, and is set to
        evaluation mode.
    mean, std
        The normalisation it was trained with, for pixels in [0, 1]; one number for all channels, or one per channel.
        By default there is none.
    layer
        The submodule whose output is the embedding, as ``named_modules`` calls it (``"layer4"``); None takes
        the module's own output.
    image_shape
        (channels, height, width) of the images it takes.
    pool
        How to reduce an output that is not (batch, features): "mean" over positions or tokens, "token" (the first
        token) or "flatten".
    projector, predictor
        Heads after the embedding; they become the layers "projection" and "prediction".
    architecture
        Its name in messages and records.

    Raises
    ------
    ValueError
        If an argument is not valid, the layer does not exist, or a trial pass of two black images fails or does not
        give a row of floats for each.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.encoders import wrap
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8))
    >>> encoder = wrap(network, mean=0.5, std=0.25, image_shape=(3, 4, 4))
    >>> encoder(torch.rand(2, 3, 4, 4)).shape
    torch.Size([2, 8])
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")  # noqa: TRY004
    if pool is not None and pool not in get_args(Pool):
        raise ValueError(f"pool must be None or one of {', '.join(get_args(Pool))}, got {pool!r}")
    check_scale(mean=mean, std=std)
    if isinstance(module, Encoder) and (_numbers("mean", mean), _numbers("std", std)) != ([0.0], [1.0]):
        raise NormalisationError(
            f"module normalises its images itself, so mean={mean} and std={std} would be a second normalisation; leave "
            f"them out"
        )
    if layer is not None:
        names = [name for name, _ in module.named_modules() if name]
        if layer not in names:
            near = difflib.get_close_matches(str(layer), names, 3, cutoff=0.4) or names[:6]
            raise ValueError(f"layer {layer!r} is not a submodule of the network; near it: {', '.join(near)}")
    encoder = WrappedEncoder(
        Tap(module, layer, pool),
        mean,
        std,
        image_shape,
        projector=projector,
        predictor=predictor,
        architecture=architecture or type(module).__name__,
    ).eval()
    place = next((value for value in module.parameters()), torch.empty(0))
    encoder.mean, encoder.std = encoder.mean.to(place), encoder.std.to(place)
    try:
        with torch.no_grad():
            out = encoder.embedding(place.new_zeros(2, *encoder.image_shape))
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"the network does not take two images of image_shape {encoder.image_shape}: {str(error).splitlines()[0]}"
        ) from error
    if len(out) != 2 or not out.is_floating_point():
        raise ValueError(
            f"the network gives {len(out)} rows of {out.dtype} for 2 images; an embedding is one row of floats per "
            f"image"
        )
    return encoder


def check_scale(**given: Any) -> None:
    """Refuse a mean or std that the caller took from bytes: pixels are in [0, 1] here."""
    for name, numbers in given.items():
        if numbers is not None and max(_numbers(name, numbers), default=0) > 1:
            raise NormalisationError(
                f"{name} must be of pixels in [0, 1], got {numbers}; divide mean and std by 255 if they are for bytes"
            )


def _numbers(name: str, given: Any, channels: int | None = None) -> list[float]:
    try:
        numbers: list[float] = torch.as_tensor(given, dtype=torch.float64).flatten().tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise NormalisationError(f"{name} must be one number, or one per channel; got {given!r}") from error
    if channels and (len(numbers) not in (1, channels) or not all(map(math.isfinite, numbers))):
        raise NormalisationError(f"{name} needs 1 or {channels} finite numbers, got {given}")
    return numbers
