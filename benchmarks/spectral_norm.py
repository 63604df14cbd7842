"""What sigma_max costs, in forward passes of the same batch, against its peers; ratios in one process, one thread.

    python -m benchmarks.spectral_norm [--only resnet18,narrow,vit] [--checkpoint TRAINED.safetensors] [--peers]

A forward-equivalent (fwd-eq) is the time of one forward pass without gradients on the same batch: the median of five
before and five after each run. ``--train-steps`` trains the ResNet-18 on coloured MNIST-5k first (about six fwd-eq an
image and step), ``--checkpoint`` takes a trained one. Peak memory is what a fresh process grows by, on the
peers' images.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._harness import awaken, dense_sigma, peak_memory, reset_peak, times
from benchmarks.network_steps import Apply
from lipcomp._commands import Parser, run, table
from lipcomp.checkpoints._native import load_checkpoint
from lipcomp.data import load_set
from lipcomp.data._views import DigitViews
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.encoders._resnet import ResNet
from lipcomp.jacobian import spectral_norm

SPEC = EncoderSpec("resnet18_cifar", (3, 32, 32), projector=(512, 128))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = Parser(prog="python -m benchmarks.spectral_norm", description=__doc__)
    parser.add_argument("--only", default="resnet18,narrow,vit,resnet50")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peers", action="store_true", help="run the peers too (slow)")
    parser.add_argument("--peer-images", type=int, default=4)
    parser.add_argument("--truth", action="store_true", help="compare with all rows of the Jacobian")
    parser.add_argument("--checkpoint", help="a trained encoder of lipcomp")
    parser.add_argument("--train-steps", type=int, default=40)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for name, build, goal in CASES:
        if name.split()[0].strip(",") in options.only.split(","):
            rows += measure(name, *build(options), goal, options)
    print(table(("network", "method", "fwd-eq an image", "goal", "steps", "peak MiB", "worst error"), rows))
    return 0


def measure(
    name: str, fn: Callable[[Tensor], Tensor], images: Tensor, goal: str, options: argparse.Namespace
) -> list[tuple[str, ...]]:
    """Our estimate on the batch, and with --peers the others on the first few images."""
    few = images[: options.peer_images]
    truth = dense_truth(fn, few) if options.truth else None
    costs, found = [], None
    for _ in range(options.repeats):
        cost, found = cost_of(fn, images, lambda: spectral_norm(fn, images, batch_size=len(images)))
        costs.append(cost)
    assert found is not None
    error = "" if truth is None else f"{float((1 - found.sigma[: len(few)] / truth).abs().max()):.1e}"
    steps = f"{float(found.iterations.double().mean()):.1f}"
    rows = [(name, f"lipcomp, {len(images)} images", f"{min(costs):.1f}", goal, steps, "", error)]
    print(f"{name}: {min(costs):.1f} fwd-eq, {steps} steps", flush=True)
    if not options.peers:
        return rows
    for peer, method in PEERS.items():
        cost, sigma = cost_of(fn, few, lambda method=method: method(fn, few))  # type: ignore[misc]
        peak = peak_of(name, peer, options)
        print(f"{name}: {peer} {cost:.1f} fwd-eq, {peak:.0f} MiB", flush=True)
        worst = "" if truth is None else f"{float((1 - sigma / truth).abs().max()):.1e}"
        if truth is not None and peer.startswith("deel"):  # it tells the batch maximum only
            worst = f"{float(1 - sigma.max() / truth.max()):.1e} (maximum)"
        rows.append((name, peer, f"{cost:.1f}", "", "", f"{peak:.0f}", worst))
    return rows


def cost_of(fn: Callable[[Tensor], Tensor], images: Tensor, run: Callable[[], Any]) -> tuple[float, Any]:
    """Time in forward passes, and the result."""
    passes = forward_times(fn, images)
    started = time.process_time()
    result = run()
    taken = time.process_time() - started
    return taken / statistics.median(passes + forward_times(fn, images)), result


def peak_of(name: str, peer: str, options: argparse.Namespace) -> float:
    """What the method needs above a forward pass, MiB: in a process of its own, which has run a forward pass before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, name, peer, options).result()


def _peak(name: str, peer: str, options: argparse.Namespace) -> float:
    torch.set_num_threads(1)
    fn, images = next(build for case, build, _ in CASES if case == name)(options)
    few = images[: options.peer_images]
    with torch.no_grad():
        fn(few)
    rest = reset_peak()
    PEERS[peer](fn, few)
    return peak_memory() - rest


def forward_times(fn: Callable[[Tensor], Tensor], images: Tensor) -> list[float]:
    with torch.no_grad():
        return times(lambda: fn(images), 5)


def dense_truth(fn: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return spectral_norm(fn, images, method="rows").sigma


def torchlip(fn: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """deel-torchlip tells the largest of a batch: exact from the whole Jacobian."""
    from deel.torchlip.utils import evaluate_lip_const

    value = evaluate_lip_const(Apply(fn), images, evaluation_type="jacobian_norm")
    return torch.as_tensor(float(value)).expand(len(images))


def resnet18(options: argparse.Namespace, trained: bool) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    if trained and options.checkpoint:
        encoder = load_checkpoint(options.checkpoint).encoder
    else:
        encoder = build_encoder(SPEC, seed=0)
        torch.manual_seed(0)
        awaken(encoder)
        if trained:
            train(encoder, options.train_steps)
    encoder.eval().requires_grad_(False)
    return encoder, digits(options.images)


def narrow(options: argparse.Namespace) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """ResNet-18 of half the width, 32 to 256 channels."""
    torch.manual_seed(0)
    backbone = ResNet(18, "cifar", 0.5, 3)
    head = nn.Sequential(nn.Linear(256, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 128))
    network = nn.Sequential(awaken(backbone), head).eval().requires_grad_(False)
    return lambda x: F.normalize(network(x), dim=-1), digits(options.images)


def digits(count: int) -> Tensor:
    """MNIST digits, 3 x 32 x 32."""
    return coloured(load_set("mnist5k", "test").batch(torch.arange(0, 1000, 1000 // count))[:count])


def coloured(digits: Tensor) -> Tensor:
    return F.interpolate(digits, (32, 32), mode="bilinear").expand(-1, 3, -1, -1).clamp(0, 1).contiguous()


def train(encoder: nn.Module, steps: int) -> None:
    """A short contrastive training, enough to leave the spectra of random weights."""
    digits, generator = load_set("mnist5k", "train"), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(encoder.parameters(), 2e-3)
    encoder.train()
    for step in range(steps):
        batch = coloured(digits.batch(torch.randint(len(digits), (32,), generator=generator)))
        z = encoder(torch.cat(DigitViews()(batch, generator)))
        similarity = (z @ z.T / 0.2).fill_diagonal_(-1e9)
        loss = F.cross_entropy(similarity, torch.arange(64).roll(32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"training step {step + 1}/{steps}: loss {loss.item():.3f}", flush=True)


def vit(options: argparse.Namespace, noise: bool) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(32, 4, 6, 4, 128, 512, num_classes=128).eval()
    nn.init.normal_(network.heads.head.weight, std=0.05)
    network.requires_grad_(False)
    uniform = torch.rand(options.images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return lambda x: F.normalize(network(x), dim=-1), uniform if noise else digits(options.images)


def resnet50(options: argparse.Namespace) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    encoder = build_encoder(EncoderSpec("resnet50", (3, 224, 224), projector=(512, 256)), seed=0)
    torch.manual_seed(0)
    awaken(encoder).eval().requires_grad_(False)
    return encoder, torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


PEERS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "lipcomp": lambda fn, images: spectral_norm(fn, images).sigma,
    "vmap(jacrev) + svdvals": dense_sigma,
    "lipcomp rows": dense_truth,
    "deel-torchlip evaluate_lip_const": torchlip,
}
CASES = (
    ("resnet18 untrained", lambda options: resnet18(options, False), "40"),
    ("resnet18 trained", lambda options: resnet18(options, True), "25"),
    ("narrow ResNet-18, untrained", narrow, "40"),
    ("vit, digits", lambda options: vit(options, False), "30"),
    ("vit, uniform noise", lambda options: vit(options, True), "30"),
    ("resnet50 at 224", resnet50, "37"),
)


if __name__ == "__main__":
    sys.exit(run(main))
