"""Random networks against dense float64 Jacobians: nothing called a bound may be on the wrong side.

    python -m benchmarks.fuzz_networks --count 10000 [--shard 3/16] [--out fuzz.jsonl] [--only sigma,pairs]

For every network of :mod:`benchmarks.random_networks`:

sigma        converged sigma_max within its tolerance of the dense Jacobian's, by Lanczos and by rows
pairs        no reported maximum above the same pair in float64 (or ‖J v‖ there, for a pair too close), at any distance
all          the same over all pairs of the images
search       no searched sigma above the dense one at its point, no chord above its pair, every point in the ball
certificate  none below dense Jacobians at, or secants between, points of the ball
caller       images, parameters, buffers and the random state are as they were

A network may be refused with a ValueError; refusals are counted by their message, violations are printed and written
with the seed that repeats them (``--first SEED --count 1``).
"""

import collections
import functools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._harness import add_part, append_lines
from benchmarks.random_networks import IMAGES, Case, dense, random_case
from lipcomp._commands import Parser, run
from lipcomp.bound import all_pairs, certified_bound, measure_pairs, random_pairs, search_ball
from lipcomp.bound._certified import UNITS
from lipcomp.jacobian import spectral_norm

ROUNDING = {torch.float32: 3e-4, torch.float64: 1e-7}  # of a derivative (PyTorch has a 1/6 in float32)
PROVED = 1e-6  # relative: what was computed in float64 may exceed the truth by so much


@dataclass(frozen=True)
class Violation:
    """A number on the wrong side of the truth, or a world that was changed."""

    seed: int
    check: str
    found: float
    truth: float
    words: list[str]


def sigma_of(case: Case, images: Tensor) -> Tensor:
    """The true sigma_max at every image."""
    return torch.linalg.matrix_norm(dense(case.exact, images), 2)


def tolerance(case: Case) -> float:
    return ROUNDING[case.images.dtype]


def floor(case: Case) -> float:
    """Below this a Jacobian is zero but for float64 rounding: a part of the map's own scale, ‖fn(x)‖ / ‖x‖."""
    with torch.no_grad():
        outputs = case.exact(case.images.double().clone())
    sizes = outputs.norm(dim=1) / case.images.double().flatten(1).norm(dim=1)
    return 1e-9 * float(sizes.max())


def check_sigma(case: Case) -> Iterator[tuple[str, float, float]]:
    """Both methods, at every image that they call converged."""
    truth = sigma_of(case, case.images)
    for method in ("lanczos", "rows"):
        found = spectral_norm(case.fn, case.images, method=method)
        allowed = (found.rtol if method == "lanczos" else 0) + tolerance(case)
        for sigma, true, known in zip(found.sigma.double(), truth, found.converged, strict=True):
            if bool(known) and not abs(sigma - true) <= allowed * true + floor(case):
                yield f"sigma.{method}", float(sigma), float(true)


def ratio_of(case: Case, first: Tensor, second: Tensor) -> float:
    """What a pair proves, in float64: its chord over its distance, or ‖J v‖ at its first image."""
    step = (second.double() - first.double()).flatten()
    with torch.no_grad():
        one, two = case.exact(torch.stack([first, second]).double())
    at = dense(case.exact, first[None])[0] @ (step / step.norm())
    return max(float((two - one).norm() / step.norm()), float(at.norm()))


def check_pairs(case: Case) -> Iterator[tuple[str, float, float]]:
    """Random pairs at distances from 1e-7 on: the maximum, and every value up to rounding."""
    for exponent in (-7, -5, -4, -3, -1):
        generator = torch.Generator().manual_seed(case.seed)
        blocks = random_pairs([case.images], 10.0**exponent, generator=generator)
        found = measure_pairs(case.fn, blocks, normalised=case.normalised)["direction"]
        if found.witness is None or found.witness.images is None:
            continue
        true = ratio_of(case, *found.witness.images)
        if not found.maximum <= true * (1 + PROVED + _jacobian_slack(case)) + floor(case):
            yield f"pairs.1e{exponent}", found.maximum, true


def _jacobian_slack(case: Case) -> float:
    return 1e-4 if case.images.dtype == torch.float32 else 0.0


def check_all(case: Case) -> Iterator[tuple[str, float, float]]:
    """All pairs of the images and of near copies of them."""
    noise = torch.randn(case.images.shape, generator=torch.Generator().manual_seed(case.seed))
    near = (case.images + 1e-4 * noise.to(case.images)).clamp(0, 1)
    images = torch.cat([case.images, near])
    with torch.no_grad():
        mu = case.fn(images.clone())
    found = all_pairs(mu, images, fn=case.fn, normalised=case.normalised)["direction"]
    if found.witness is not None and found.witness.images is not None:
        true = ratio_of(case, *found.witness.images)
        if not found.maximum <= true * (1 + PROVED + _jacobian_slack(case)) + floor(case):
            yield "all", found.maximum, true


def check_search(case: Case, steps: int = 4) -> Iterator[tuple[str, float, float]]:
    """Both kinds of ascent, in the case's ball and in one of 1e-5."""
    for kind, radius in (("pair", case.radius), ("chord", case.radius), ("pair", 1e-5)):
        found = search_ball(case.fn, case.images, radius, kind=kind, starts=1, steps=steps)
        truth = sigma_of(case, found.point)
        for i, (sigma, true) in enumerate(zip(found.sigma.double(), truth, strict=True)):
            if sigma > true * (1 + tolerance(case)) + floor(case):
                yield f"search.{kind}.sigma", float(sigma), float(true)
            if found.chord_ratio[i] > 0:
                true = ratio_of(case, found.first[i], found.second[i])
                if found.chord_ratio[i] > true * (1 + PROVED + _jacobian_slack(case)) + floor(case):
                    yield f"search.{kind}.chord", float(found.chord_ratio[i]), true
        for points in (found.point, found.first, found.second):
            apart = (points.double() - case.images.double()).flatten(1).norm(dim=1).max()
            if apart > radius * (1 + 1e-4) + 1e-6 or points.min() < 0 or points.max() > 1:
                yield f"search.{kind}.outside", float(apart), radius


def check_certificate(
    case: Case, points: int = 6, limit: int = IMAGES, units: int = UNITS
) -> Iterator[tuple[str, float, float]]:
    """Dense Jacobians at points of the ball, and secants between them: no certificate may be below."""
    images = case.images[:limit]
    radius = case.radius
    with torch.no_grad():
        certificate = certified_bound(case.fn, images.clone(), radius=radius, units=units)
    if bool(certificate.bound.isinf().all()):
        return
    generator = torch.Generator().manual_seed(case.seed)
    around = images.double()
    for i in range(points):
        step = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        if i % 2:  # along the largest direction
            at = dense(case.exact, around)
            step = torch.linalg.svd(at, full_matrices=False)[2][:, 0].reshape(images.shape)
        length = radius * (1.0 if i % 3 else 0.3)
        step = length * step / step.flatten(1).norm(dim=1).view(-1, *[1] * (step.dim() - 1))
        there = images.double() + step
        with torch.no_grad():
            secant = (case.exact(there.clone()) - case.exact(images.double().clone())).norm(dim=1) / length
        truth = torch.maximum(sigma_of(case, there), secant)
        for bound, true in zip(certificate.bound, truth, strict=True):
            if bound < true * (1 - 1e-12):
                yield "certificate", float(bound), float(true)
        around = there


CHECKS: dict[str, Callable[[Case], Iterator[tuple[str, float, float]]]] = {
    "sigma": check_sigma,
    "pairs": check_pairs,
    "all": check_all,
    "search": check_search,
    "certificate": check_certificate,
}


def examine(
    seed: int, only: tuple[str, ...] = tuple(CHECKS), certified: int = IMAGES, units: int = UNITS
) -> tuple[list[Violation], list[str]]:
    """The violations of one network, and the messages of what refused it; so many of its images are certified."""
    case = random_case(seed)
    images, state = case.images.clone(), {k: v.clone() for k, v in case.fn.state_dict().items()}
    violations, refusals = [], []
    checks = CHECKS | {"certificate": functools.partial(check_certificate, limit=certified, units=units)}
    for name in only:
        randomness = torch.random.get_rng_state()
        try:
            found = list(checks[name](case))
        except ValueError as refusal:
            found = []
            refusals.append(f"{name}: {str(refusal)[:90]}")
        except Exception as error:
            found = [(f"error.{name}: {type(error).__name__}: {str(error)[:200]}", math.nan, math.nan)]
        violations += [Violation(seed, *one, case.words) for one in found]
        same = torch.equal(images, case.images) and torch.equal(randomness, torch.random.get_rng_state())
        same &= all(torch.equal(value, state[k]) for k, value in case.fn.state_dict().items())
        if not same:
            violations.append(Violation(seed, f"caller.{name}", 1.0, 0.0, case.words))
            case.images.copy_(images)
            torch.random.set_rng_state(randomness)
    return violations, refusals


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine a shard, print what was found."""
    parser = Parser(prog="python -m benchmarks.fuzz_networks", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="networks (default 10000)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first network (default 0)")
    add_part(parser)
    parser.add_argument("--only", default=",".join(CHECKS), help="list of checks (default all)")
    parser.add_argument(
        "--certified", type=int, default=IMAGES, help=f"images per network to certify (default {IMAGES})"
    )
    parser.add_argument(
        "--units", type=int, default=UNITS, help=f"uncertain units per certificate at most (default {UNITS})"
    )
    parser.add_argument(
        "--progress", type=int, default=100, help="a line every so many networks (default 100)"
    )
    parser.add_argument("--out", type=Path, help="violations and counts to this file, JSON lines")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    seeds = range(options.first, options.first + options.count)[options.shard]
    started, total, refused, violations = time.monotonic(), 0, collections.Counter[str](), []
    for seed in seeds:
        found, refusals = examine(seed, tuple(options.only.split(",")), options.certified, options.units)
        refused.update(refusals)
        violations += found
        total += 1
        for one in found:
            print(json.dumps(asdict(one)), flush=True)
        if options.progress and total % options.progress == 0:
            print(f"{total}/{len(seeds)} networks, {time.monotonic() - started:.0f} s", flush=True)
    counts = collections.Counter(one.check for one in violations)
    summary = {
        "shard": f"{options.shard.start + 1}/{options.shard.step}", "networks": total, "violations": dict(counts),
        "refused": dict(refused), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    print(json.dumps(summary, indent=1))
    if options.out:
        options.out.unlink(missing_ok=True)
    append_lines(options.out, [*map(asdict, violations), summary])
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
