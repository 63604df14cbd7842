"""Pre-activation residual networks for CIFAR, in the names that RobustBench's checkpoints use.

    x -> x + conv(relu(bn(conv(relu(bn(x))))))

Batch norm and ReLU come before each convolution (He et al. 2016), so the trunk itself is linear between blocks. A
block that changes shape takes its shortcut from the activated input. Wide ResNets: Zagoruyko & Komodakis 2016.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class PreActBlock(nn.Module):
    """Two 3 x 3 convolutions, each after its batch norm and ReLU."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, shortcut: str, raw_shortcut: bool = False
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.projects = stride != 1 or inputs != outputs
        self.name, self.raw_shortcut = shortcut, raw_shortcut
        if self.projects:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            # kuangliu's code, whose names PreActResNet has, holds the shortcut in a Sequential; WideResNet does not.
            self.add_module(shortcut, nn.Sequential(project) if shortcut == "shortcut" else project)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c2 h2 w2"]:
        """The block's output."""
        active = functional.relu(self.bn1(x))
        kept = getattr(self, self.name)(x if self.raw_shortcut else active) if self.projects else x
        return kept + self.conv2(functional.relu(self.bn2(self.conv1(active))))


class WideResNet(nn.Module):
    """WRN-depth-width without its classifier; ``forward`` returns pooled features.

    Parameters
    ----------
    depth
        6 n + 4: 10, 16, 28, 34, 70 ...
    width
        Factor on the channels 16, 32, 64.
    in_channels
        Channels of the images.

    Raises
    ------
    ValueError
        If no such network exists.
    """

    def __init__(self, depth: int = 28, width: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise ValueError(
                f"depth must be 6 n + 4 (10, 16, 22, 28 ...) and width positive; got {depth} and {width}"
            )
        channels = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, 1, 1, bias=False)
        for number in (1, 2, 3):
            blocks = [
                PreActBlock(
                    channels[number - 1] if first else channels[number],
                    channels[number],
                    2 if first and number > 1 else 1,
                    "convShortcut",
                )
                for first in [True, *[False] * ((depth - 4) // 6 - 1)]
            ]
            self.add_module(f"block{number}", nn.ModuleDict({"layer": nn.Sequential(*blocks)}))
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.out_features = channels[3]

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Pooled features, not normalised."""
        out = self.conv1(x)
        for number in (1, 2, 3):
            out = getattr(self, f"block{number}")["layer"](out)
        return functional.relu(self.bn1(out)).mean((2, 3))


class PreActResNet(nn.Module):
    """The pre-activation ResNet-18 without its classifier; ``forward`` returns pooled features.

    Parameters
    ----------
    in_channels
        Channels of the images.
    final_norm
        Whether a batch norm and ReLU follow the last block (they do in Rice et al. 2020).
    raw_shortcut
        Whether a projecting shortcut takes the block's raw input instead of the activated one.
    """

    def __init__(self, in_channels: int = 3, final_norm: bool = True, raw_shortcut: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        inputs = 64
        for number, channels in enumerate((64, 128, 256, 512), start=1):
            first = PreActBlock(inputs, channels, 1 if number == 1 else 2, "shortcut", raw_shortcut)
            self.add_module(
                f"layer{number}", nn.Sequential(first, PreActBlock(channels, channels, 1, "shortcut"))
            )
            inputs = channels
        self.bn = nn.BatchNorm2d(inputs) if final_norm else None
        self.out_features = inputs

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Pooled features, not normalised."""
        out = self.conv1(x)
        for number in (1, 2, 3, 4):
            out = getattr(self, f"layer{number}")(out)
        if self.bn is not None:
            out = functional.relu(self.bn(out))
        return out.mean((2, 3))
