"""What an evaluation and a training run at ImageNet's scale cost, from unit costs measured on this machine.

    python -m benchmarks.scale                       one CPU thread
    python -m benchmarks.scale --device cuda --images 256

A unit cost is what one image takes: a forward pass, a corruption, a Jacobian's norm, a training step. The hours are
those costs times the counts of the whole job (50,000 validation images, 75 conditions, 1,281,167 training images) on
one device; jobs are independent, so N devices need 1/N of it. Images are held with their channels last; on a GPU a
training step computes in bfloat16, all else in float32.
"""

import sys
from collections.abc import Callable, Sequence

import torch

from benchmarks._harness import seconds
from lipcomp._commands import Parser, choose_device, run, table
from lipcomp.data._views import PhotoViews
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.jacobian import spectral_norm
from lipcomp.robustness.corruptions import corrupt
from lipcomp.robustness.corruptions._tables import COMMON
from train.recipes import find_recipe

VALIDATION, TRAINING, CONDITIONS = 50_000, 1_281_167, 75


def unit_costs(device: torch.device, count: int, sigma_images: int) -> dict[str, float]:
    """Seconds per image of each unit, on one device."""
    spec = EncoderSpec("resnet50", (3, 224, 224), projector=(4096, 256))
    encoder = build_encoder(spec, seed=0).eval().to(device, memory_format=torch.channels_last)
    images = torch.rand(count, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)

    def per_image(work: Callable[[], object], n: int) -> float:
        return seconds(work, 1, device=device.type) / n

    def forward() -> None:
        with torch.no_grad():
            encoder(images)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            embeddings = encoder.train()(images)
        torch.nn.functional.normalize(embeddings.float()).sum().backward()
        encoder.zero_grad(set_to_none=True)
        encoder.eval()

    views, generator = PhotoViews(), torch.Generator().manual_seed(0)
    costs = {
        "forward pass": per_image(forward, count),
        "forward and backward pass": per_image(step, count),
        "two augmented views": per_image(lambda: views(images, generator), count),
        "a corruption": sum(per_image(lambda n=n: corrupt(images, n, 3), count) for n in COMMON)
        / len(COMMON),
    }
    few = images[:sigma_images]
    encoder.requires_grad_(False)
    costs["sigma_max at 1e-4"] = per_image(lambda: spectral_norm(encoder, few), len(few))
    return costs


def jobs(costs: dict[str, float]) -> dict[str, float]:
    """Hours of one device for each whole job."""
    forward = costs["forward pass"]
    taken = {
        f"clean accuracy, {VALIDATION:,} images": VALIDATION * forward,
        f"ImageNet-C from disk, {CONDITIONS} conditions": CONDITIONS * VALIDATION * forward,
        f"ImageNet-C made on the way, {CONDITIONS} conditions": CONDITIONS
        * VALIDATION
        * (forward + costs["a corruption"]),
        "pair bounds over two views of every image": VALIDATION
        * (2 * forward + costs["two augmented views"]),
        "sigma_max at 1,000 images": 1000 * costs["sigma_max at 1e-4"],
        f"sigma_max at {VALIDATION:,} images": VALIDATION * costs["sigma_max at 1e-4"],
    }
    for name in ("imagenet_simclr_1000", "imagenet_c_byol_1000"):
        epochs = find_recipe(name).epochs
        twice = 2 if "byol" in name else 0  # the target's forward passes
        each = 2 * costs["forward and backward pass"] + twice * forward + costs["two augmented views"]
        taken[f"training {name}, {epochs} epochs"] = epochs * TRAINING * each
    return {name: value / 3600 for name, value in taken.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the unit costs and print both tables."""
    parser = Parser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--images", type=int, default=4, help="images per batch (default 4)")
    parser.add_argument("--sigma-images", type=int, default=2, help="images of sigma_max (default 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    costs = unit_costs(choose_device(options.device), options.images, options.sigma_images)
    forward = costs["forward pass"]
    rows = [(n, f"{1000 * c:.1f}", f"{c / forward:.2f}") for n, c in costs.items()]
    print(table((f"ResNet-50 at 224 x 224 on {options.device}", "ms per image", "forward passes"), rows))
    print(table(("job", "hours of one device"), [(n, f"{h:.3g}") for n, h in jobs(costs).items()]))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
