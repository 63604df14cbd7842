"""All pairs of 50,000 embeddings: what fraction of the measured matrix product rate, in how much memory; one thread.

    python -m benchmarks.all_pairs [--n 50000] [--dim 128] [--pixels 3072] [--concentration 1024]

The rate of the product is measured in the same process on blocks of the same shapes, before and after; the best counts.
Multiplications and additions: 2 (pixels + dim + 4) a pair.
"""

import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._harness import peak_memory, reset_peak, seconds
from lipcomp._commands import Parser, run
from lipcomp.bound import all_pairs
from lipcomp.bound._all_pairs import block_length


def main(arguments: Sequence[str] | None = None) -> int:
    """Print rate and memory."""
    parser = Parser(prog="python -m benchmarks.all_pairs", description=__doc__)
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--pixels", type=int, default=3072)
    parser.add_argument("--concentration", type=float)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (options.n, options.pixels), generator=generator, dtype=torch.uint8)
    mu = F.normalize(torch.randn(options.n, options.dim, generator=generator), dim=1)

    def load(indices: Tensor) -> Tensor:
        return pixels[indices].float().div_(255)

    before = product_rate(options.pixels, options.dim)
    rest = reset_peak()
    started = time.process_time()
    done = 0

    def advance(pairs: int) -> None:
        nonlocal done
        done += pairs

    found = all_pairs(mu, load, concentration=options.concentration, advance=advance)
    taken = time.process_time() - started
    peak = peak_memory() - rest
    rate = max(before, product_rate(options.pixels, options.dim))
    pairs = options.n * (options.n - 1) // 2
    reached = 2 * (options.pixels + options.dim + 4) * pairs / taken / 1e9
    print(f"{pairs:,} pairs in {taken:.1f} s, {pairs / taken / 1e6:.1f} million a second; {done:,} counted")
    print(f"{reached:.1f} of {rate:.1f} GFLOP/s measured for the product: {reached / rate:.0%}")
    print(f"peak memory over the rest {peak:.0f} MiB (n² floats would be {4 * options.n**2 / 2**20:.0f} MiB)")
    print(f"largest delta/Delta {found['direction'].maximum:.6g}, pair {found['direction'].witness.pair}")
    return 0


def product_rate(pixels: int, dim: int) -> float:
    """GFLOP/s of the two products of a block, best of several."""
    size = block_length(pixels + dim)
    sides = [(torch.rand(size, k + 2), torch.rand(size, k + 2)) for k in (pixels, dim)]
    outs = [torch.empty(size, size) for _ in sides]
    pairs = list(zip(sides, outs, strict=True))
    best = seconds(lambda: [torch.mm(left, right.T, out=out) for (left, right), out in pairs], 6)
    return 2 * size * size * (pixels + dim + 4) / best / 1e9


if __name__ == "__main__":
    sys.exit(run(main))
