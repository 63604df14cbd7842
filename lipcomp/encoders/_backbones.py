"""Backbones by name: what an :class:`~lipcomp.encoders.EncoderSpec` builds, including timm's and your own."""

import weakref
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipcomp._arguments import checked
from lipcomp._functions import called
from lipcomp._messages import needed
from lipcomp.encoders._resnet import ResNet
from lipcomp.encoders._small import SmallCNN

BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    "small_cnn": lambda channels: SmallCNN(channels),
    **{
        f"resnet{depth}{suffix}": lambda channels, depth=depth, stem=stem, width=width: ResNet(  # type: ignore[misc]
            depth, stem, width, channels
        )
        for depth in (18, 34, 50, 101, 152, 200)
        for suffix, stem, width in (("", "imagenet", 1), ("_2x", "imagenet", 2), ("_cifar", "cifar", 1))
    },
    **{  # with the padding of the paper's TensorFlow code
        f"resnet{depth}{suffix}_tf": lambda channels, depth=depth, width=width: ResNet(  # type: ignore[misc]
            depth, "imagenet", width, channels, "tensorflow"
        )
        for depth in (18, 34, 50, 101, 152, 200)
        for suffix, width in (("", 1), ("_2x", 2))
    },
}

_MADE: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()  # the networks that live


@checked
def register_backbone(name: str, function: Callable[..., object]) -> None:
    """Give a name to your own function that takes the number of channels and returns a network.

    The network maps images to features (batch, features), or to maps (batch, features, height, width), which are
    averaged. The name is what checkpoints hold, so it must be registered again before one is loaded; no code is ever
    run because a file asks for it.

    Parameters
    ----------
    name
        With a colon, such as "mine:net"; :class:`EncoderSpec` takes it as ``backbone``.
    function
        Number of channels -> network.

    Raises
    ------
    ValueError
        If the name belongs to a backbone of lipcomp's.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.encoders import EncoderSpec, build_encoder, register_backbone
    >>> register_backbone("mine:conv", lambda channels: torch.nn.Conv2d(channels, 16, 3))
    >>> encoder = build_encoder(EncoderSpec("mine:conv", (1, 8, 8), projector=None))
    >>> encoder(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 16])
    """
    if ":" not in name:
        raise ValueError(f"the name of a backbone of your own needs a colon, as in 'mine:net'; got {name!r}")
    BACKBONES[name] = function  # type: ignore[assignment]


def make_backbone(name: str, image_shape: tuple[int, int, int]) -> nn.Module:
    """A backbone with random weights and its width as ``out_features``."""
    if name.startswith("timm/"):
        network = _from_timm(name.removeprefix("timm/"), image_shape)
        return Pooled(network, _first_output(network, image_shape, name).shape[1], name)
    function, channels = BACKBONES[name], image_shape[0]
    network = called(name, function, channels) if ":" in name else function(channels)
    if isinstance(network, nn.Module):
        if network in _MADE:
            raise ValueError(
                f"backbone {name!r} returned the same network twice, so that two encoders would share their weights; "
                f"build a new one at each call"
            )
        _MADE.add(network)
    if ":" not in name:
        return network
    found = _first_output(network, image_shape, name)
    ready = found.ndim == 2 and getattr(network, "out_features", None) == found.shape[1]
    return network if ready else Pooled(network, found.shape[1], name)


def _first_output(network: nn.Module, image_shape: tuple[int, int, int], name: str) -> Tensor:
    """What a network gives for one black image; ValueError says why it is no backbone."""
    if not isinstance(network, nn.Module):
        raise ValueError(f"backbone {name!r} must be a torch.nn.Module, got {type(network).__name__}")  # noqa: TRY004
    place = next((weight.device for weight in network.parameters()), None)
    mode, image = network.training, torch.zeros(1, *image_shape, device=place)
    try:
        with torch.no_grad():
            found = _tensor(network.eval()(image), name)
    except (RuntimeError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise ValueError(
            f"backbone {name!r} failed on an image of shape {image_shape} ({type(error).__name__}: {error}); correct "
            f"it, or give images of the size that it takes"
        ) from error
    network.train(mode)
    if found.dtype != image.dtype:
        raise ValueError(
            f"backbone {name!r} must return features of its images' type {image.dtype}, got {found.dtype}; build it in "
            f"float32 (in training, precision says in what type it runs)"
        )
    return found


def _tensor(found: object, name: str) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim not in (2, 4):
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"backbone {name!r} must return features (batch, features) or maps (batch, features, height, width), while "
            f"it trains too; got {what}: give its network without classifiers"
        )
    return found


class Pooled(nn.Module):
    """A network whose output is features, or maps that are averaged."""

    not_identity = ("name",)  # of lipcomp._identity.hash_module

    def __init__(self, network: nn.Module, out_features: int, name: str) -> None:
        super().__init__()
        self.network, self.out_features, self.name = network, out_features, name

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Features, not normalised."""
        found = _tensor(self.network(images), self.name)
        return found.mean((2, 3)) if found.ndim == 4 else found


def _from_timm(name: str, image_shape: tuple[int, int, int]) -> nn.Module:
    with needed(f"backbone timm/{name}", "timm"):
        import timm
    options: dict[str, object] = {"pretrained": False, "num_classes": 0, "in_chans": image_shape[0]}
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; timm.list_models() lists them")
    if timm.get_pretrained_cfg(name) and timm.get_pretrained_cfg(name).fixed_input_size:
        height, width = image_shape[1:]
        # some models take one number alone
        options["img_size"] = height if height == width else (height, width)
    try:
        network: nn.Module = timm.create_model(name, **options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"backbone 'timm/{name}' cannot be built for images of shape {image_shape} ({type(error).__name__}: "
            f"{error}); give images of the size that it takes"
        ) from error
    return network
