"""The measured map: raw pixels in [0, 1] -> mean direction on the unit sphere.

    x --normalise--> backbone --> projector (--> predictor) --> h(x),    mu(x) = h / |h|

Mean/std normalisation is part of the network, and so is the evaluation-mode batch norm; otherwise the Lipschitz
constants of two models are in different units (theory, notation). An encoder is rebuilt from its
:class:`EncoderSpec` alone, and any layer of it can be measured by name:

============  ==================================================================================
backbone      pooled features
projection    output of the projector: the latent's mean direction in SimCLR and C-SimCLR
prediction    output of the predictor: the latent's mean direction in BYOL and C-BYOL
latent        whichever of the two carries e(z|x): prediction if there is a predictor
============  ==================================================================================
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipcomp._arguments import checked
from lipcomp._messages import nearest
from lipcomp.distributions import VonMisesFisher
from lipcomp.encoders._backbones import BACKBONES, make_backbone
from lipcomp.encoders._heads import LatentDecoder, MLPHead, mean_direction

Layer = Literal["backbone", "projection", "prediction", "latent"]


class NormalisationError(ValueError):
    """A mean or standard deviation that does not fit the images."""


@checked
@dataclass(frozen=True)
class EncoderSpec:
    """Everything needed to rebuild an encoder, except its weights.

    Parameters
    ----------
    backbone
        A name in :data:`BACKBONES`, ``timm/NAME`` (a timm model with random weights and no classifier), or one given to
        :func:`register_backbone`.
    image_shape
        (channels, height, width) that the encoder is measured on.
    mean, std
        Normalisation of pixels in [0, 1]; one number for all channels, or one per channel.
    projector
        (hidden, out) features, or None for no projector.
    predictor
        Hidden features of BYOL's predictor (its output has the projection's width), or None.
    decoder
        Whether C-BYOL's linear decoder follows the latent. It is trained and saved with the encoder, but is not part of
        any measured layer.

    Raises
    ------
    ValueError
        If a field is not valid; the message names it.

    Examples
    --------
    >>> from lipcomp.encoders import EncoderSpec
    >>> EncoderSpec("resnet18", (3, 32, 32), projector=None).backbone
    'resnet18'
    """

    backbone: str
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    projector: tuple[int, int] | None = (256, 64)
    predictor: int | None = None
    decoder: bool = False

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES and not self.backbone.startswith("timm/"):
            hint = nearest(self.backbone, BACKBONES)
            if ":" in self.backbone:
                hint = (
                    "; name the function of your own that builds it: "
                    "lipcomp.encoders.register_backbone(name, function)."
                )
            raise ValueError(
                f"backbone {self.backbone!r} is unknown{hint} Known: {', '.join(BACKBONES)}, timm/NAME"
            )
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(
                f"image_shape must be (channels, height, width), all positive; got {self.image_shape}"
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.image_shape[0]):
                raise NormalisationError(
                    f"{name} needs 1 or {self.image_shape[0]} numbers, got {getattr(self, name)}"
                )
            if not all(map(math.isfinite, getattr(self, name))):
                raise NormalisationError(f"{name} must be finite, got {getattr(self, name)}")
        if min(self.std) <= 0:
            raise NormalisationError(f"std must be positive, got {self.std}")
        widths = (*(self.projector or ()), *(() if self.predictor is None else (self.predictor,)))
        if self.projector is not None and len(self.projector) != 2:
            raise ValueError(f"projector must be (hidden, out) features, or None; got {self.projector}")
        if not all(isinstance(width, int) and width >= 1 for width in widths):
            raise ValueError(
                f"features of projector and predictor must be positive integers, got {self.projector} and "
                f"{self.predictor}"
            )
        if self.predictor is not None and self.projector is None:
            raise ValueError("a predictor needs a projector before it; give projector=(hidden, out)")
        if self.decoder and self.predictor is None:
            raise ValueError(
                "the decoder follows the latent of C-BYOL, which its predictor makes; give predictor=hidden"
            )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary from which :meth:`from_dict` rebuilds the spec."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "EncoderSpec":
        """The spec of a dictionary of :meth:`to_dict`, also after a way through JSON, which has no tuples."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**given)


class Encoder(nn.Module):
    """Pixels in [0, 1] -> mean direction, with the named layers on the way.

    Use :func:`build_encoder`, which also seeds the weights part by part.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        spec: EncoderSpec,
        backbone: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        decoder: nn.Module,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(-1, 1, 1), persistent=False)
        self.backbone, self.projector, self.predictor, self.decoder = backbone, projector, predictor, decoder

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that it takes."""
        return self.spec.image_shape

    @property
    def architecture(self) -> str:
        """What messages and records call the backbone."""
        return self.spec.backbone

    def layers(self) -> tuple[Layer, ...]:
        """The layers this encoder has, by name."""
        present: list[Layer] = ["backbone"]
        if self.spec.projector is not None:
            present.append("projection")
        if self.spec.predictor is not None:
            present.append("prediction")
        return (*present, "latent")

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Pooled backbone features: what a probe reads."""
        expected = self.image_shape
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must have shape (batch, {', '.join(map(str, expected))}) for this {self.architecture} "
                f"encoder, got {tuple(images.shape)}; resize or convert them first"
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be pixels in [0, 1], got {images.dtype}; divide bytes by 255")
        return self.backbone((images - self.mean) / self.std)

    def embedding(
        self, images: Float[Tensor, "batch channels height width"], layer: Layer = "latent"
    ) -> Float[Tensor, "batch dim"]:
        """h(x) at a layer, before normalisation.

        Raises
        ------
        ValueError
            If this encoder has no such layer.
        """
        if layer not in get_args(Layer) or layer not in self.layers():
            raise ValueError(
                f"layer must be one of {', '.join(self.layers())} for this encoder, got {layer!r}"
            )
        hidden = self.features(images)
        if layer in ("projection", "prediction", "latent"):
            hidden = self.projector(hidden)
        if layer in ("prediction", "latent"):
            hidden = self.predictor(hidden)
        return hidden

    def forward(
        self, images: Float[Tensor, "batch channels height width"], layer: Layer = "latent"
    ) -> Float[Tensor, "batch dim"]:
        """mu(x), the mean direction at a layer."""
        return mean_direction(self.embedding(images, layer))

    def distribution(
        self, images: Float[Tensor, "batch channels height width"], concentration: float
    ) -> VonMisesFisher:
        """e(z|x) = vMF(mu(x), kappa_e) for every image."""
        mu = self(images)
        return VonMisesFisher(mu, torch.full(mu.shape[:-1], concentration, dtype=mu.dtype, device=mu.device))


@checked
def build_encoder(spec: EncoderSpec, *, seed: int = 0) -> Encoder:
    """Build an encoder with weights drawn from ``seed``, a separate stream for each part.

    Two specs that share a part therefore share that part's initial weights, whatever other parts they have: so
    a C-BYOL encoder starts from the same weights as its BYOL twin. The global random state is not changed.

    Parameters
    ----------
    spec
        What to build.
    seed
        Random seed of the weights.

    Raises
    ------
    ValueError
        If the backbone gives neither features nor maps, or a function of your own returns one network twice.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.encoders import EncoderSpec, build_encoder
    >>> encoder = build_encoder(EncoderSpec("small_cnn", image_shape=(1, 28, 28))).eval()
    >>> with torch.no_grad():
    ...     encoder(torch.rand(2, 1, 28, 28)).norm(dim=1).round(decimals=4)
    tensor([1., 1.])
    """
    shape, projector = spec.image_shape, spec.projector
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 4)
        backbone = make_backbone(spec.backbone, shape)
        width = int(backbone.out_features)  # type: ignore[arg-type]
        torch.manual_seed(seed * 4 + 1)
        project = nn.Identity() if projector is None else MLPHead(width, *projector)
        torch.manual_seed(seed * 4 + 2)
        out = width if projector is None else projector[1]
        predict = nn.Identity() if spec.predictor is None else MLPHead(out, spec.predictor, out)
        torch.manual_seed(seed * 4 + 3)
        decode = LatentDecoder(out) if spec.decoder else nn.Identity()
    return Encoder(spec, backbone, project, predict, decode)
