"""Conversions of other frameworks' networks to PyTorch: DeepMind's BYOL from JAX, SimCLR v2 from TensorFlow."""

import torch
import torchvision
from torch import nn

from lipcomp.checkpoints import load_encoder


def test_byol_from_jax_is_padded_as_there(tmp_path, shaken, images):
    """An independent way to XLA's SAME padding: pad by hand what torchvision's modules see."""
    network = torchvision.models.resnet18(weights=None)
    network.fc = nn.Identity()
    shaken(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.padding = (0, 0)
            pads = {7: (2, 3, 2, 3), 3: (0, 1, 0, 1), 1: (0, 0, 0, 0)}[module.kernel_size[0]]
            module.register_forward_pre_hook(lambda m, given, pads=pads: nn.functional.pad(given[0], pads))
    network.maxpool = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), -torch.inf), nn.MaxPool2d(3, 2))
    state = {key: value for key, value in network.state_dict().items() if "tracked" not in key}
    torch.save(state, tmp_path / "byol.pth")
    ours = load_encoder(tmp_path / "byol.pth", format="byol-converted", mean=(0,), std=(1,), image_size=64)
    expected = network(images)
    torch.testing.assert_close(
        ours.encoder.features(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )
    assert len(ours.report.missing) == 20  # the counters of batches
    plain = load_encoder(tmp_path / "byol.pth", mean=(0,), std=(1,), image_size=64)
    difference = (plain.encoder.features(images) - network(images)).norm() / network(images).norm()
    assert difference > 0.01


class SimCLRv2(nn.Module):
    """The network of Separius' conversion, ResNet-50 without selective kernels, as its code builds it."""

    def __init__(self):
        super().__init__()

        def conv(a, b, kernel, stride=1):
            return nn.Conv2d(a, b, kernel, stride, (kernel - 1) // 2, bias=False)

        def norm(width, relu=True):
            return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU() if relu else nn.Identity())

        class Projection(nn.Module):
            def __init__(self, a, b, stride):
                super().__init__()
                self.shortcut, self.bn = conv(a, b, 1, stride), norm(b, False)

        class Block(nn.Module):
            def __init__(self, a, width, stride, projects):
                super().__init__()
                self.projection = Projection(a, 4 * width, stride) if projects else nn.Identity()
                self.net = nn.Sequential(conv(a, width, 1), norm(width), conv(width, width, 3, stride), norm(width),
                                         conv(width, 4 * width, 1), norm(4 * width, False))  # fmt: skip

            def forward(self, x):
                short = x
                if not isinstance(self.projection, nn.Identity):
                    short = self.projection.bn(self.projection.shortcut(x))
                return (short + self.net(x)).relu()

        class Blocks(nn.Module):
            def __init__(self, count, a, width, stride):
                super().__init__()
                self.blocks = nn.ModuleList(
                    Block(a if i == 0 else 4 * width, width, stride if i == 0 else 1, i == 0)
                    for i in range(count)
                )

            def forward(self, x):
                for block in self.blocks:
                    x = block(x)
                return x

        stem = nn.Sequential(conv(3, 64, 7, 2), norm(64), nn.MaxPool2d(3, 2, 1))
        groups = [
            Blocks(*group)
            for group in ((3, 64, 64, 1), (4, 256, 128, 2), (6, 512, 256, 2), (3, 1024, 512, 2))
        ]
        self.net = nn.Sequential(stem, *groups)
        self.fc = nn.Linear(2048, 10)

    def forward(self, x):
        return self.net(x).mean((2, 3))


def test_simclr_v2_of_pytorch(tmp_path, shaken, images, close):
    network = shaken(SimCLRv2())
    layers = []
    for a, b in ((2048, 32), (32, 32), (32, 16)):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    head = shaken(nn.Sequential(*layers[:-1]), 1)
    tree = {
        "resnet": network.state_dict(),
        "head": {f"layers.{key}": value for key, value in head.state_dict().items()},
    }
    torch.save(tree, tmp_path / "r50_1x_sk0.pth")
    checkpoint = load_encoder(tmp_path / "r50_1x_sk0.pth", image_size=64)
    assert (checkpoint.format, checkpoint.encoder.architecture) == ("simclr-v2-pytorch", "resnet50")
    assert checkpoint.preprocessing.std == (1.0,) * 3
    close(checkpoint.encoder.features(images), network(images))
    close(checkpoint.encoder.embedding(images), head(network(images)))
