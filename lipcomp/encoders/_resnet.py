"""ResNets: torchvision's, with the CIFAR stem, any width, and the padding of the paper's TensorFlow code.

The parameter names are torchvision's, so its state dicts load. Four things differ on request:

- ``stem="cifar"``: a 3 x 3 convolution of stride 1 and no max-pool, for images up to 32 x 32 (the official code
  does this; Lee et al. 2021, following Chen et al. 2020).
- ``width=2``: *every* width doubled ("ResNet-50 2x", 94 M parameters). torchvision's ``wide_resnet50_2`` doubles
  the inner widths of the bottlenecks only and is another network.
- ``pool_padding="tensorflow"``: TensorFlow's ``SAME`` max-pool pads (0, 1), torchvision's pads (1, 1). A network
  trained with the one and run with the other is off by 2.7% in its features. The paper's ResNet-18 and -34 also
  project the shortcut of their first block, which torchvision's do not.
- ``pool_padding="same"``: every strided layer pads as XLA's ``SAME`` does, more at the end than at the start. This
  is how networks of Haiku, such as DeepMind's BYOL, were trained.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet as TorchvisionResNet

Stem = Literal["imagenet", "cifar"]
PoolPadding = Literal["torchvision", "tensorflow", "same"]

DEPTHS: dict[int, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    9: (BasicBlock, [1, 1, 1, 1]),
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
    200: (Bottleneck, [3, 24, 36, 3]),
}


class ResNet(TorchvisionResNet):
    """A torchvision ResNet without its classifier; ``forward`` returns pooled features.

    Parameters
    ----------
    depth
        9, 18, 34, 50, 101, 152 or 200.
    stem
        ``"imagenet"`` (7 x 7, stride 2, max-pool) or ``"cifar"`` (3 x 3, stride 1, no pool).
    width
        Factor on every width; lightly's smallest have 1/16.
    in_channels
        Channels of the images.
    pool_padding
        Whose max-pool padding the ImageNet stem uses.

    Raises
    ------
    ValueError
        If ``depth`` or ``stem`` is unknown.
    """

    def __init__(
        self,
        depth: int = 50,
        stem: Stem = "imagenet",
        width: float | int = 1,
        in_channels: int = 3,
        pool_padding: PoolPadding = "torchvision",
    ) -> None:
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {sorted(DEPTHS)}, got {depth}")
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f'stem must be "imagenet" or "cifar", got {stem!r}')
        block, counts = DEPTHS[depth]
        super().__init__(block, counts, zero_init_residual=True)
        base = int(64 * width)
        if width != 1:
            self.inplanes = base
            self.bn1 = nn.BatchNorm2d(base)
            self.layer1 = self._make_layer(block, base, counts[0])
            self.layer2 = self._make_layer(block, base * 2, counts[1], stride=2)
            self.layer3 = self._make_layer(block, base * 4, counts[2], stride=2)
            self.layer4 = self._make_layer(block, base * 8, counts[3], stride=2)
        if stem == "cifar":
            self.conv1 = nn.Conv2d(in_channels, base, 3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(in_channels, base, 7, stride=2, padding=3, bias=False)
            if pool_padding != "torchvision":
                self.maxpool = nn.Sequential(  # type: ignore[assignment]
                    nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, stride=2)
                )
        if pool_padding == "tensorflow" and block is BasicBlock:
            self.layer1[0].downsample = nn.Sequential(
                nn.Conv2d(base, base, 1, bias=False), nn.BatchNorm2d(base)
            )
        if pool_padding == "same":
            _pad_as_xla(self)
        self.fc = nn.Identity()
        self.out_features = base * 8 * block.expansion
        _initialise(self)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Pooled features, not normalised."""
        return super().forward(x)


class SameConv2d(nn.Conv2d):
    """A convolution that pads as XLA's ``SAME``: the odd pixel goes to the end."""

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c2 h2 w2"]:
        """The convolution of the padded images."""
        (height, width), (down, across) = x.shape[2:], self.stride
        rows = max((-(-height // down) - 1) * down + self.kernel_size[0] - height, 0)
        columns = max((-(-width // across) - 1) * across + self.kernel_size[1] - width, 0)
        left, top = columns // 2, rows // 2
        return super().forward(functional.pad(x, (left, columns - left, top, rows - top)))


def _pad_as_xla(network: nn.Module) -> None:
    """Replace every strided convolution wider than 1 x 1 by one that pads as XLA does."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and child.stride[0] > 1 and child.kernel_size[0] > 1:
                same = SameConv2d(child.in_channels, child.out_channels, 3, child.stride[0], bias=False)
                same.kernel_size, same.weight = child.kernel_size, child.weight
                setattr(parent, name, same)


def _initialise(network: nn.Module) -> None:
    """Start convolutions as torchvision does and the last batch norm of every residual block at zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
