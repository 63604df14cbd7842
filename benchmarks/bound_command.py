"""What `python -m lipcomp.bound` costs beside the encoder's own forward passes on the same images; one thread.

    python -m benchmarks.bound_command [CHECKPOINT] [--data mnist5k] [--limit 1000] [--repeats 5]

The command runs on positive views: two forward passes an image. What is compared is its measuring part (views, passes,
bounds, records), without starting Python and loading the set, against two passes of the encoder over as many images.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lipcomp._commands import Parser, run
from lipcomp.checkpoints import save_checkpoint
from lipcomp.checkpoints._native import Metadata, load_checkpoint
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.measure import Images, Pairs, Plan, Source
from lipcomp.measure._run import open_benches, to_records, units_of
from lipcomp.measure._unit import nothing


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the ratio of each repeat."""
    parser = Parser(prog="python -m benchmarks.bound_command", description=__doc__)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--data", default="mnist5k")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = options.checkpoint or Path(folder) / "encoder.safetensors"
        if options.checkpoint is None:
            encoder = build_encoder(EncoderSpec("small_cnn", (1, 28, 28), projector=(256, 64))).eval()
            save_checkpoint(
                path, encoder, metadata=Metadata(objective={"name": "c_simclr", "kappa_e": 1024.0})
            )
        encoder = load_checkpoint(path).encoder
        images = Images(options.data, limit=options.limit)
        plan = Plan(sources=(Source(str(path)),), images=images, quantities=(Pairs("views"),))
        ratios = []
        for _ in range(options.repeats):
            (bench,) = open_benches(plan)  # anew, so that nothing is known
            (unit,) = units_of(bench)
            clean = bench.load(torch.arange(len(bench.indices)))
            forward = min(passes(encoder, clean, bench.batch_size) for _ in range(2))
            started = time.process_time()
            to_records(bench, unit, unit.measure(nothing), 0.0)
            taken = time.process_time() - started
            forward = min(forward, passes(encoder, clean, bench.batch_size))
            ratios.append(taken / forward)
            print(f"command {taken:.3f} s, forward passes {forward:.3f} s: {ratios[-1]:.2f}")
        print(f"least ratio {min(ratios):.2f}, median {sorted(ratios)[len(ratios) // 2]:.2f} (goal 1.1)")
    return 0


def passes(encoder: torch.nn.Module, images: torch.Tensor, size: int) -> float:
    """Two forward passes over the images."""
    started = time.process_time()
    with torch.no_grad():
        for batch in [*images.split(size)] * 2:
            encoder(batch)
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(run(main))
