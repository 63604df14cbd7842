"""Write tests/reference/vmf_functions.npz: log C_d, A_d, A_d' at 60 digits, rounded to float64.

    python tests/distributions/make_reference.py

A grid (20 dimensions x 61 concentrations) and 10,000 random points, d log-uniform in 2 ... 4096 and kappa log-uniform
in 1e-6 ... 1e7; one in 20 is moved to within 0.1% of the zero crossing of log C. A few minutes.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from conftest import exact

from lipcomp.distributions._bessel import log_normalizer

OUT = Path(__file__).parents[1] / "reference" / "vmf_functions.npz"
GRID = [2, 3, 4, 5, 7, 8, 16, 31, 49, 50, 51, 64, 127, 128, 256, 512, 1000, 2048, 4095, 4096]


def zero_crossing(d: int) -> float | None:
    """Roughly where log C_d is zero; where to look is all that the library decides here."""
    kappas = torch.logspace(-6, 7, 200_001, dtype=torch.float64)
    log_c = log_normalizer(d, kappas)
    return None if log_c[0] < 0 else float(kappas[(log_c > 0).sum()])


def main() -> None:
    rng = np.random.default_rng(0)
    points = [(d, k) for d in GRID for k in (0.0, *np.geomspace(1e-6, 1e7, 60))]
    for number in range(10_000):
        d = min(4096, int(np.exp(rng.uniform(np.log(2), np.log(4097)))))
        kappa = float(np.exp(rng.uniform(np.log(1e-6), np.log(1e7))))
        if number % 20 == 0 and (crossing := zero_crossing(d)) is not None:
            kappa = crossing * (1 + rng.uniform(-1e-3, 1e-3))
        points.append((d, kappa))
    values = []
    for number, point in enumerate(points):
        found = exact(*point)
        values.append((float(found.log_c), float(found.ratio), float(found.slope)))
        if number % 500 == 0:
            print(f"{number}/{len(points)}", flush=True)
    log_c, ratio, slope = np.array(values).T
    dims, kappas = np.array([d for d, _ in points], dtype=np.int16), np.array([k for _, k in points])
    np.savez_compressed(OUT, dims=dims, kappas=kappas, log_c=log_c, ratio=ratio, slope=slope)


if __name__ == "__main__":
    main()
