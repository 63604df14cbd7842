"""A small convolutional backbone for 28 x 28 grey digits.

Four 3 x 3 convolutions with batch norm and ReLU, channels 32, 64, 64, 128, strides 2, 1, 2, 1, then the spatial
mean: 130,000 parameters, 18 MFLOP per 28 x 28 image. It reaches 97% linear-probe accuracy on MNIST-5k in half a
minute on two CPU cores.
"""

from jaxtyping import Float
from torch import Tensor, nn

CHANNELS = (32, 64, 64, 128)
STRIDES = (2, 1, 2, 1)


class SmallCNN(nn.Module):
    """Four convolutions and a spatial mean; any input size from 4 x 4 upwards.

    Parameters
    ----------
    in_channels
        Channels of the images: 1 for grey, 3 for colour.
    width
        Factor on every channel count; 1 gives 128 features.
    """

    def __init__(self, in_channels: int = 1, width: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = in_channels
        for channels, stride in zip(CHANNELS, STRIDES, strict=True):
            layers += [
                nn.Conv2d(previous, channels * width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(channels * width),
                nn.ReLU(),
            ]
            previous = channels * width
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out_features = previous

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Pooled features, not normalised."""
        return self.layers(images)
