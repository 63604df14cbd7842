"""Maps whose Lipschitz constant is known: what every estimate says of it, as a table.

    python -m benchmarks.known_truths

The truth is in closed form, or the largest singular value of dense float64 Jacobians at the measured points, where the
constant over the ball is not known; a search, which looks around, may then lie above it. Pairs and searches of 4 to 8
images in a ball of 0.2 (pixel L2). No lower estimate may exceed a closed form, no certificate may fall below it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._harness import dense_sigma
from lipcomp._commands import table
from lipcomp.bound import certified_bound, measure_pairs, random_pairs, search_ball
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.jacobian import spectral_norm

# Map, images, the constant if it has a closed form.
Case = tuple[Callable[[Tensor], Tensor], Tensor, float | None]
RADIUS = 0.2


def main() -> None:
    torch.set_num_threads(1)
    head = "map", "true", "pairs", "Lanczos", "rows", "pair search", "chord search", "certified at the image"
    print(table(head, [row(name, *build(torch.Generator().manual_seed(0))) for name, build in CASES.items()]))


def row(name: str, fn: Callable[[Tensor], Tensor], images: Tensor, closed: float | None) -> tuple[str, ...]:
    unit = bool(((fn(images).detach().norm(dim=1) - 1).abs() < 1e-5).all())
    pairs = random_pairs([images], RADIUS, generator=torch.Generator().manual_seed(0), directions=8)
    lower = measure_pairs(fn, pairs, normalised=unit, domain=None)["direction"].maximum
    lanczos, rows = (spectral_norm(fn, images, method=method).sigma.max() for method in ("lanczos", "rows"))
    searched = [
        search_ball(fn, images, RADIUS, kind=kind, starts=2, steps=15).sigma.max()
        for kind in ("pair", "chord")
    ]
    certificate = certified_bound(fn, images)
    values = [
        float(dense_sigma(fn, images).max()) if closed is None else closed,
        lower,
        lanczos,
        rows,
        *searched,
    ]
    bound = float(certificate.bound.max())
    return (
        name,
        *(f"{float(value):.6g}" for value in values),
        f"{bound:.6g}" if math.isfinite(bound) else f"none: {certificate.reason[:40]}",
    )


def layer(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double().requires_grad_(False)
    made.weight.copy_(weight)
    return made.eval()


def orthogonal(n: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q


def linear(generator: torch.Generator) -> Case:
    weight = torch.randn(64, 100, generator=generator, dtype=torch.float64)
    return layer(weight), pixels(100, generator), float(torch.linalg.svdvals(weight)[0])


def rotation(generator: torch.Generator) -> Case:
    return layer(orthogonal(40, generator)), pixels(40, generator), 1.0


def scaled(generator: torch.Generator) -> Case:
    return (
        nn.Sequential(layer(orthogonal(40, generator)), layer(3.5 * torch.eye(40).double())),
        pixels(40, generator),
        3.5,
    )


def tiny(generator: torch.Generator) -> Case:
    fn, images, truth = linear(generator)
    assert truth is not None
    return lambda x: fn(x) * 1e-20, images, truth * 1e-20


def normalised(generator: torch.Generator) -> Case:
    """Mu = W x / |W x|: J = (I - mu muᵀ) W / |W x|, at the measured points."""
    weight = torch.randn(24, 30, generator=generator, dtype=torch.float64)
    images = pixels(30, generator)
    hidden = images @ weight.T
    mu = F.normalize(hidden, dim=1)
    projector = torch.eye(24, dtype=torch.float64) - mu[:, :, None] * mu[:, None, :]
    norms = torch.linalg.matrix_norm(projector @ weight / hidden.norm(dim=1)[:, None, None], 2)
    return lambda x: F.normalize(F.linear(x, weight), dim=1), images, float(norms.max())


def convolution(generator: torch.Generator) -> Case:
    """Circular padding: the Fourier symbol is exact."""
    kernel = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    symbol = torch.fft.fft2(kernel, s=(8, 8)).permute(2, 3, 0, 1)
    truth = float(torch.linalg.svdvals(symbol).max())
    images = torch.rand(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    return lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), kernel).flatten(1), images, truth


def one_lipschitz(generator: torch.Generator) -> Case:
    """deel-torchlip: every layer has norm 1, so 1 bounds the constant."""
    from deel import torchlip

    torch.manual_seed(0)
    network = torchlip.Sequential(
        torchlip.SpectralLinear(64, 48),
        torchlip.FullSort(),
        torchlip.SpectralLinear(48, 32),
        torchlip.FullSort(),
    )
    with torch.no_grad():
        network(torch.zeros(1, 64))
    return network.eval().requires_grad_(False), pixels(64, generator).float(), 1.0


def small_encoder(generator: torch.Generator) -> Case:
    spec = EncoderSpec("small_cnn", (1, 16, 16), mean=(0.13,), std=(0.31,), projector=(32, 16))
    encoder = build_encoder(spec, seed=0).eval().double().requires_grad_(False)
    return encoder, torch.rand(4, 1, 16, 16, generator=generator, dtype=torch.float64), None


def resnet(generator: torch.Generator) -> Case:
    encoder = build_encoder(EncoderSpec("resnet18_cifar", (3, 16, 16), projector=(32, 16)), seed=0)
    return (
        encoder.eval().double().requires_grad_(False),
        torch.rand(4, 3, 16, 16, generator=generator, dtype=torch.float64),
        None,
    )


def pixels(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(8, count, generator=generator, dtype=torch.float64)


CASES: dict[str, Callable[[torch.Generator], Case]] = {
    "linear 64 x 100": linear,
    "the same, times 1e-20": tiny,
    "rotation": rotation,
    "3.5 x rotation": scaled,
    "convolution, circular": convolution,
    "normalised linear map": normalised,
    "1-Lipschitz (deel-torchlip): at most": one_lipschitz,
    "small CNN encoder (dense float64)": small_encoder,
    "ResNet-18 encoder (dense float64)": resnet,
}

if __name__ == "__main__":
    main()
