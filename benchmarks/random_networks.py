"""Random small networks over the operations that estimators and certificates know, and over those that are awkward.

    case = random_case(seed)        case.fn, case.images, case.radius, case.words

A network is a chain of steps on feature maps, then on vectors (or tokens), as people write them: convolutions of every
kind, norms, activations, pooling, branches, attention, token mixing, tensors that meet themselves (x * x, h hT, gates);
among them steps that work in place, write through views, reuse a module, change the dtype, compute a clamp from the
data, are scripted or traced. Weights are float32
numbers, so that ``case.exact`` (float64) and ``case.fn`` (float32 or float64) are the same map but for rounding.
:func:`dense` is the oracle: the whole Jacobian of one image at a time, by PyTorch's own operations, in float64.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.network_steps import (
    ACTIVATIONS,
    MEETINGS,
    MORE,
    MORE_FROM,
    ON_MAPS,
    ON_VECTORS,
    Apply,
    Branches,
    InPlaceBeforeNorm,
    clamp_by_data,
    first_in_place,
    in_place_between,
    through_view,
    to_double_and_back,
)

IMAGES = 3


@dataclass
class Case:
    """One network and what it is measured on.

    ``words`` name its steps; ``awkward`` says that one of them is not a plain operation.
    """

    seed: int
    fn: nn.Module
    exact: nn.Module
    images: Tensor
    radius: float
    normalised: bool
    dim: int
    words: list[str]


class Builder:
    """Grows a network step by step; ``shape`` is that of one image's features."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.meetings = MEETINGS if seed < MORE_FROM else MORE
        self.noise = torch.Generator().manual_seed(seed)
        self.steps: list[nn.Module] = []
        self.words: list[str] = []
        largest = self.pick.choice([5, 6, 9])  # from 7 on convolutions choose their layout
        self.shape: tuple[int, ...] = (
            self.pick.randint(1, 3),
            self.pick.randint(4, largest),
            self.pick.randint(4, largest),
        )

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(shape, generator=self.noise)

    def add(self, word: str, step: nn.Module) -> None:
        """Fill the step's parameters and statistics, and append it."""
        for name, value in [*step.named_parameters(), *step.named_buffers()]:
            if not value.is_floating_point() or "constant" in name:
                continue
            new = self.normal(*value.shape)
            if value.dim() > 1:
                new = new * 1.2 / value[0].numel() ** 0.5
            elif name.endswith(("running_var", "weight")):
                new = 0.3 + new.abs()
            else:
                new = 0.3 * new
            value.data.copy_(new)
        step.eval().requires_grad_(False)
        with torch.no_grad():
            probe = step(torch.rand(2, *self.shape, generator=self.noise))
        self.shape = tuple(probe.shape[1:])
        self.steps.append(step)
        self.words.append(word)

    def conv(self, out: int | None = None) -> nn.Conv2d:
        """Any convolution that fits."""
        c, size = self.shape[0], self.pick.choice([1, 2, 3])
        groups = self.pick.choice([1, c])
        out = groups * self.pick.randint(1, max(1, 6 // groups)) if out is None else out
        return nn.Conv2d(
            c, out, size, padding=size // 2, groups=groups if out % groups == 0 else 1,
            stride=self.pick.choice([1, 1, 2]), bias=self.pick.random() < 0.7,
            padding_mode=self.pick.choice(["zeros", "zeros", "reflect", "replicate", "circular"]),
        )  # fmt: skip

    def same(self) -> nn.Module:
        """A convolution that keeps the shape."""
        return nn.Conv2d(self.shape[0], self.shape[0], 3, padding=1)

    def on_maps(self) -> None:
        """One step on feature maps."""
        c, height, width = self.shape
        small = height < 3 or width < 3
        name = self.pick.choice(
            [
                "conv",
                "conv",
                "activation",
                "activation",
                "norm",
                "pool",
                "branch",
                "shape",
                "awkward",
                "itself",
            ]
        )
        if name == "conv" and not small:
            kind = self.pick.choice(["conv", "conv bn", "transposed", "dilated"])
            if kind == "conv":
                self.add(kind, self.conv())
            elif kind == "conv bn":
                conv = self.conv()
                self.add(kind, nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels)))
            elif kind == "transposed":
                self.add(
                    kind, nn.ConvTranspose2d(c, self.pick.randint(1, 4), 2, stride=self.pick.choice([1, 2]))
                )
            else:
                self.add(kind, nn.Conv2d(c, 4, 3, dilation=2, padding=2))
        elif name == "norm":
            kind = self.pick.choice(["batch norm", "group norm", "instance norm", "layer norm"])
            self.add(kind, {
                "batch norm": nn.BatchNorm2d(c), "group norm": nn.GroupNorm(1 if c % 2 else 2, c),
                "instance norm": nn.InstanceNorm2d(c, affine=self.pick.random() < 0.5),
                "layer norm": nn.LayerNorm([c, height, width]),
            }[kind])  # fmt: skip
        elif name == "pool" and not small:
            kind = self.pick.choice(
                ["max", "max ceil", "average", "adaptive", "adaptive max", "padded average"]
            )
            self.add(f"{kind} pool", {
                "max": nn.MaxPool2d(3, 2, 1), "max ceil": nn.MaxPool2d(2, ceil_mode=True), "average": nn.AvgPool2d(2),
                "adaptive": nn.AdaptiveAvgPool2d((2, 3)), "adaptive max": nn.AdaptiveMaxPool2d(2),
                "padded average": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            }[kind])  # fmt: skip
        elif name == "branch" and not small:
            self.branch()
        elif name == "shape":
            self.reshape()
        elif name == "awkward" and not small:
            self.awkward()
        elif name == "itself":
            self.meeting(ON_MAPS)
        else:
            self.activation()

    def meeting(self, more: dict[str, Callable[[Tensor], Tensor]]) -> None:
        """A tensor that meets itself."""
        functions = self.meetings | (more if self.meetings is MEETINGS else {})
        kind = self.pick.choice(list(functions))
        self.add(f"itself: {kind}", Apply(functions[kind]))

    def activation(self) -> None:
        """A function of single numbers."""
        name = self.pick.choice(list(ACTIVATIONS))
        module = ACTIVATIONS[name]()
        if "in place" in name:  # behind something that owns its output
            module = nn.Sequential(Apply(lambda x: x * 1.1), module)
        self.add(name, module)

    def branch(self) -> None:
        """Two ways through, joined; or one layer used twice."""
        c = self.shape[0]
        kind = self.pick.choice(["residual", "cat", "stack", "gate", "squeeze-excite", "chunk", "reuse"])
        if kind == "residual":
            self.add(
                kind,
                Branches(
                    torch.add,
                    nn.Sequential(self.same(), nn.BatchNorm2d(c), nn.ReLU(inplace=True)),
                    nn.Identity(),
                ),
            )
        elif kind == "cat":
            self.add(kind, Branches(lambda a, b: torch.cat([a, b], 1), self.same(), nn.Identity()))
        elif kind == "stack":
            self.add(
                kind, Branches(lambda a, b: torch.stack([a, b], 1).flatten(1, 2), self.same(), nn.ReLU())
            )
        elif kind == "gate":
            self.add(kind, Branches(torch.mul, self.same(), nn.Sequential(self.same(), nn.Sigmoid())))
        elif kind == "squeeze-excite":
            gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 2, 1), nn.ReLU(), nn.Conv2d(2, c, 1), nn.Sigmoid()
            )
            self.add(kind, Branches(torch.mul, nn.Identity(), gate))
        elif kind == "chunk":
            self.add(
                kind,
                Apply(lambda x: torch.cat([x.chunk(2, -1)[1].flip(-1), torch.relu(x.chunk(2, -1)[0])], -1)),
            )
        else:
            layer = self.same()
            self.add(kind, nn.Sequential(layer, nn.Tanh(), layer))

    def reshape(self) -> None:
        """Moves, resampling and linear maps with constants."""
        c, height, width = self.shape
        kind = self.pick.choice(
            ["flip", "roll", "index", "transpose", "interpolate", "shuffle", "einsum", "pad", "scale"]
        )
        functions: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
            "flip": (lambda x: x.flip(2), []),
            "roll": (lambda x: x.roll(1, 3), []),
            "index": (lambda x: x[:, :, :: max(1, height // 2)] * 1.5, []),
            "transpose": (lambda x: x.transpose(2, 3).contiguous(), []),
            "interpolate": (lambda x: F.interpolate(x, size=(3, 4), mode="bilinear", align_corners=False), []),
            "shuffle": (lambda x: F.pixel_unshuffle(F.pad(x, [0, width % 2, 0, height % 2]), 2), []),
            "einsum": (lambda x, m: torch.einsum("nchw,cd->ndhw", x, m), [self.normal(c, 3)]),
            "pad": (lambda x: F.pad(x, [1, 0, 0, 1], value=0.3), []),
            "scale": (lambda x, s, t: (x - t) / s, [0.5 + self.normal(c, 1, 1).abs(), self.normal(c, 1, 1)]),
        }  # fmt: skip
        function, constants = functions[kind]
        self.add(kind, Apply(function, *constants))

    def awkward(self) -> None:
        """What tracing and derivatives stumble over."""
        c = self.shape[0]
        functions = {
            "write through a view": through_view, "clamp by data": clamp_by_data,
            "in place between": in_place_between, "dtypes": to_double_and_back,
        }  # fmt: skip
        kind = self.pick.choice([*functions, "in place before norm", "scripted"])
        if kind == "in place before norm":
            self.add(kind, InPlaceBeforeNorm(self.same(), nn.BatchNorm2d(c)))
        elif kind == "scripted":
            self.add("traced", nn.Sequential(self.same(), nn.Tanh()))
            if self.pick.random() < 0.2:  # slow to make
                example = torch.rand(2, *self.shape, generator=self.noise)
                self.steps[-1] = torch.jit.trace(self.steps[-1], example)
        else:
            self.add(kind, Apply(functions[kind]))

    def on_tokens(self) -> None:
        """Tokens of the feature map: attention, token mixing, layer norm."""
        self.add("tokens", Apply(lambda x: x.flatten(2).transpose(1, 2)))
        tokens, width = self.shape
        self.add("embed", nn.Linear(width, 4))
        kind = self.pick.choice(["attention", "mixer", "multi-head", "class token"])
        if kind == "attention":
            self.add(
                kind,
                Apply(
                    lambda x, q, k: x + F.scaled_dot_product_attention(x @ q, x @ k, x),
                    self.normal(4, 4),
                    self.normal(4, 4),
                ),
            )
        elif kind == "mixer":
            mixing = nn.Sequential(
                Apply(lambda x: x.mT), nn.Linear(tokens, tokens), nn.GELU(), Apply(lambda x: x.mT)
            )
            self.add(kind, Branches(torch.add, nn.Identity(), mixing))
        elif kind == "multi-head":
            self.add(kind, nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0))
        else:
            self.add(
                kind, Apply(lambda x, t: torch.cat([t.expand(len(x), -1, -1), x], 1), self.normal(1, 1, 4))
            )
        self.add("layer norm", nn.LayerNorm(4))

    def on_vectors(self) -> None:
        """One step on vectors."""
        width = self.shape[0]
        kind = self.pick.choice(
            ["linear", "linear bn", "activation", "norm", "sort", "clamp by data", "matmul", "itself"]
        )
        if kind == "linear":
            self.add(kind, nn.Linear(width, self.pick.randint(5, 24)))
        elif kind == "linear bn":
            self.add(kind, nn.Sequential(nn.Linear(width, 16), nn.BatchNorm1d(16)))
        elif kind == "norm" and width > 3:
            self.add("layer norm", nn.LayerNorm(width))
        elif kind == "sort":
            self.add(kind, Apply(lambda x: x.sort(1).values))
        elif kind == "clamp by data":
            self.add(kind, Apply(clamp_by_data))
        elif kind == "itself":
            self.meeting(ON_VECTORS)
        elif kind == "matmul":
            self.add(kind, Apply(lambda x, m: x @ m, self.normal(width, 12) / width**0.5))
        else:
            self.activation()


def random_case(seed: int) -> Case:
    """The network, images and ball of a seed; float32 in two cases of three."""
    build = Builder(seed)
    image_shape, pick = build.shape, build.pick
    if pick.random() < 0.15:
        build.add("first in place", Apply(first_in_place))
    for _ in range(pick.randint(1, 5)):
        build.on_maps()
    if seed >= MORE_FROM:
        build.meeting({})
    if pick.random() < 0.25:
        build.on_tokens()
    build.add(
        "flatten",
        nn.Flatten() if pick.random() < 0.8 or len(build.shape) != 3 else Apply(lambda x: x.mean((2, 3))),
    )
    for _ in range(pick.randint(0, 3)):
        build.on_vectors()
    dim = pick.randint(2, pick.choice([24, 24, 40]))
    build.add("linear", nn.Linear(build.shape[0], dim))
    normalised = dim > 2 and pick.random() < 0.5
    if normalised:
        functions = {
            "normalize": lambda x: F.normalize(x, dim=1),
            "h / |h|": lambda x: x / x.norm(dim=1, keepdim=True),
        }
        word = pick.choice(list(functions))
        build.add(word, Apply(functions[word]))
    network = nn.Sequential(*build.steps).eval().requires_grad_(False)
    images = torch.rand(IMAGES, *image_shape, generator=build.noise) * 0.9 + 0.05
    single = pick.random() < 0.67
    radius = 10 ** pick.uniform(-3, -0.5)
    exact = copy.deepcopy(network).double()
    fn = network if single else copy.deepcopy(exact)
    for module in exact.modules():
        if isinstance(module, InPlaceBeforeNorm):
            module.differentiable = True
    return Case(seed, fn, exact, images if single else images.double(), radius, normalised, dim, build.words)


def dense(fn: nn.Module, images: Tensor) -> Tensor:
    """The Jacobian of every image, (n, dim, pixels), in float64: as many copies of it as outputs, one pass back."""
    found = []
    for image in images.double():
        with torch.no_grad():
            dim = fn(image[None].clone()).shape[1]
        copies = image.expand(dim, *image.shape).clone().requires_grad_()
        with torch.enable_grad():
            (rows,) = torch.autograd.grad(
                fn(copies * 1), copies, torch.eye(dim, dtype=torch.float64), materialize_grads=True
            )
        found.append(rows.flatten(1))
    return torch.stack(found)
