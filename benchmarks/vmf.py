"""The vMF functions and sampling against scipy and TensorFlow Probability, as ratios in one process.

    python -m benchmarks.vmf                 about a minute
    python -m benchmarks.vmf --errors        the errors against 60 digits, by region and dtype, as well
    python -m benchmarks.vmf --json vmf.json

Processor time of one thread, the least of several runs: ratios hold where absolute times drift. A peer that is not
installed is left out; one that is not finite somewhere says where.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import scipy.stats
import torch

from benchmarks._harness import seconds, show
from lipcomp._commands import Parser, run
from lipcomp.distributions import VonMisesFisher
from lipcomp.distributions._bessel import log_normalizer, mean_resultant_length, mean_resultant_slope

REFERENCE = Path(__file__).parents[1] / "tests" / "reference" / "vmf_functions.npz"


def scipy_log_c(d: int, kappa: np.ndarray) -> np.ndarray:
    """As scipy.stats.vonmises_fisher has it."""
    nu = d / 2 - 1
    with np.errstate(divide="ignore"):
        log_i = np.log(scipy.special.ive(nu, kappa)) + kappa
    return nu * np.log(kappa) - d / 2 * math.log(2 * math.pi) - log_i


def scipy_ratio(d: int, kappa: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return scipy.special.ive(d / 2, kappa) / scipy.special.ive(d / 2 - 1, kappa)


def tfp_functions() -> dict[str, Callable[[int, np.ndarray], Any]]:
    """TensorFlow Probability's log C and A; empty where it is not installed."""
    try:
        import tensorflow_probability as tfp
    except ImportError:
        return {}
    math_ = tfp.math

    def log_c(d: int, kappa: np.ndarray) -> np.ndarray:
        log_i = math_.log_bessel_ive(np.float64(d / 2 - 1), kappa) + kappa
        return (d / 2 - 1) * np.log(kappa) - d / 2 * math.log(2 * math.pi) - log_i.numpy()

    def ratio(d: int, kappa: np.ndarray) -> Any:
        return math_.bessel_iv_ratio(np.float64(d / 2), kappa).numpy()

    return {"log C": log_c, "A": ratio}


def functions(repeats: int) -> list[dict[str, Any]]:
    """Times of log C and A at 100,000 concentrations, log-uniform in 1e-1 ... 1e6."""
    x = torch.logspace(-1, 6, 100_000, dtype=torch.float64)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    numbers, tfp = x.numpy(), tfp_functions()
    rows = []
    for name, ours, theirs in (
        ("log C", log_normalizer, scipy_log_c),
        ("A", mean_resultant_length, scipy_ratio),
    ):
        for d in (2, 128, 512, 2048):
            base = seconds(lambda d=d, ours=ours: ours(d, x), repeats)
            row = {"quantity": f"{name}, d = {d}", "ours, ms": 1e3 * base}
            row["scipy / ours"] = seconds(lambda d=d, f=theirs: f(d, numbers), repeats) / base
            row["scipy not finite"] = float(1 - np.isfinite(theirs(d, numbers)).mean())
            if tfp:
                row["TFP / ours"] = seconds(lambda d=d, f=tfp[name]: f(d, numbers), 2) / base
            rows.append(row)
    return rows


def sampling(repeats: int) -> list[dict[str, Any]]:
    """100 draws for each of 64 mean directions."""
    rows = []
    for dtype in (torch.float64, torch.float32):
        for d, kappa in ((64, 1024.0), (128, 10.0), (128, 1024.0), (512, 16384.0)):
            mu = torch.nn.functional.normalize(torch.randn(64, d, dtype=dtype), dim=1)
            vmf = VonMisesFisher(mu, kappa, validate_args=False)
            ours = seconds(lambda vmf=vmf: vmf.sample((100,)), repeats)
            normals = seconds(lambda d=d, dtype=dtype: torch.randn(100, 64, d, dtype=dtype), repeats)
            row = {"quantity": f"sample, d = {d}, kappa = {kappa:g}, {dtype}".replace("torch.", "")}
            row |= {"ours, ms": 1e3 * ours, "ours / normals": ours / normals}
            if dtype == torch.float64 and d <= 128:  # scipy builds a d x d rotation each time
                each = [scipy.stats.vonmises_fisher(m, kappa) for m in mu.numpy()]
                row["scipy / ours"] = seconds(lambda each=each: [v.rvs(100) for v in each], 2) / ours
            rows.append(row)
    return rows


REGIONS = {
    "kappa < 1": lambda d, k: k < 1,
    "1 <= kappa < d": lambda d, k: (k >= 1) & (k < d),
    "d <= kappa < 100 d": lambda d, k: (k >= np.maximum(1, d)) & (k < 100 * d),
    "kappa >= 100 d": lambda d, k: (k >= 1) & (k >= 100 * d),
}


def errors() -> list[dict[str, Any]]:
    """The largest errors by region: log C relative to max(1, |log C|), the others relative."""
    with np.load(REFERENCE) as file:
        d, k, log_c, ratio, slope = (file[n] for n in ("dims", "kappas", "log_c", "ratio", "slope"))
    found: dict[str, dict[str, np.ndarray]] = {}
    for dtype in (torch.float64, torch.float32):
        got = {name: np.empty_like(k) for name in ("log C", "A", "A'")}
        moved = np.empty_like(k)
        for dim in np.unique(d):
            here = d == dim
            kappa = torch.tensor(k[here], dtype=dtype)
            moved[here] = kappa.double().numpy() - k[here]
            for name, f in (
                ("log C", log_normalizer),
                ("A", mean_resultant_length),
                ("A'", mean_resultant_slope),
            ):
                got[name][here] = f(int(dim), kappa).double().numpy()
        # rounding kappa to single precision moves the values to first order; that is not the functions' error
        want = {"log C": log_c - ratio * moved, "A": ratio + slope * moved, "A'": slope}
        scale = {"log C": np.maximum(1, np.abs(log_c)), "A": np.maximum(ratio, 1e-300), "A'": slope}
        found[str(dtype)] = {name: np.abs(got[name] - want[name]) / scale[name] for name in got}
    rows = []
    for (low, high), label in (
        ((2, 3), "d = 2, 3"),
        ((4, 48), "d = 4 ... 48"),
        ((49, 4096), "d = 49 ... 4096"),
    ):
        for region, test in REGIONS.items():
            here = (d >= low) & (d <= high) & test(d.astype(float), k)
            if here.any():
                row: dict[str, Any] = {"region": f"{label}, {region}", "points": int(here.sum())}
                for dtype_name, by in found.items():
                    row |= {f"{name}, {dtype_name[6:]}": float(e[here].max()) for name, e in by.items()}
                rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the ratios."""
    parser = Parser(prog="python -m benchmarks.vmf", description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="runs of each, of which the fastest counts")
    parser.add_argument("--errors", action="store_true", help="the errors against 60 digits as well")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts = {"functions": functions(options.repeats), "sampling": sampling(options.repeats)}
    if options.errors:
        parts["errors"] = errors()
    show(parts, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
