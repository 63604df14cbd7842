"""Whether the intervals cover as often as they say, and the p-values are uniform under the null.

    python -m benchmarks.coverage                       about five minutes on one core
    python -m benchmarks.coverage --repeats 400         a first look
    python -m benchmarks.coverage --only paired --json coverage.json

Every scenario draws data whose truth is known in closed form, asks ``lipcomp.statistics`` for an estimate, and notes
whether the 95% interval holds the truth and how often p <= 0.05 (and 0.20) where there is no effect. tests/statistics
run the same scenarios with fewer repeats.

The closed forms: for a bivariate normal with correlation r, Spearman's is 6/pi asin(r/2) and Kendall's 2/pi asin(r);
for a score and a latent with correlation r, thresholded at its median, AUROC is 1/2 + 2/pi asin(r/sqrt(2)).
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.special
import scipy.stats

from analyses.paired_study.comparison import Comparison
from analyses.paired_study.design import Design
from analyses.paired_study.study import CREDIT
from lipcomp._commands import Parser, run, table
from lipcomp.statistics import contrast, correlation, paired_effect, within_pairs
from lipcomp.statistics._correlation import partial_correlation
from lipcomp.statistics._estimate import Estimate
from lipcomp.statistics._hierarchical import hierarchical_effect
from lipcomp.statistics._mediation import mediation
from lipcomp.statistics._per_image import auroc, clustered_logistic
from lipcomp.statistics._slopes import block_slope

Draw = Callable[[np.random.Generator], tuple[Estimate, float]]


@dataclass(frozen=True)
class Scenario:
    """Data with a known truth, and what is asked of it; ``null`` says that there is no effect in it."""

    name: str
    draw: Draw
    null: bool = False


@dataclass(frozen=True)
class Coverage:
    """How often the interval held the truth, and how often p fell below a level."""

    name: str
    repeats: int
    coverage: float | None
    width: float | None
    missing: float
    size05: float | None
    size20: float | None
    p_values: tuple[float, ...] = ()


def simulate(scenario: Scenario, repeats: int, seed: int = 0) -> Coverage:
    """Draw a scenario many times."""
    rng = np.random.default_rng([seed, *scenario.name.encode()])
    held, widths, p_values = [], [], []
    for _ in range(repeats):
        estimate, truth = scenario.draw(rng)
        if estimate.interval is not None:
            low, high = estimate.interval
            held.append(low <= truth <= high)
            widths.append(high - low)
        if estimate.p_value is not None:
            p_values.append(estimate.p_value)
    tested = scenario.null and bool(p_values)
    return Coverage(
        scenario.name,
        repeats,
        float(np.mean(held)) if held else None,
        float(np.median(widths)) if widths else None,
        1 - len(held) / repeats,
        float(np.mean(np.array(p_values) <= 0.05)) if tested else None,
        float(np.mean(np.array(p_values) <= 0.20)) if tested else None,
        tuple(p_values) if tested else (),
    )


def paired(resamples: int, n: int, shape: str, effect: float, interval: str = "auto") -> Draw:
    """Differences with mean ``effect``: normal, Laplace (symmetric, heavy tails) or exponential (skewed)."""

    def draw(rng: np.random.Generator) -> tuple[Estimate, float]:
        noise = {
            "normal": lambda: rng.standard_normal(n),
            "laplace": lambda: rng.laplace(size=n),
            "exponential": lambda: rng.exponential(size=n) - 1,
        }[shape]()
        common = rng.normal(size=n)
        found = paired_effect(
            common + effect + noise, common, interval=interval, resamples=resamples, rng=rng  # type: ignore[arg-type]
        )  # fmt: skip
        return found, effect

    return draw


def normal_pair(rng: np.random.Generator, n: int, r: float) -> tuple[np.ndarray, np.ndarray]:
    """A bivariate normal sample."""
    x = rng.standard_normal(n)
    return x, r * x + math.sqrt(1 - r * r) * rng.standard_normal(n)


def population(r: float, method: str) -> float:
    """The population coefficient of a bivariate normal."""
    return {
        "pearson": r,
        "spearman": 6 / math.pi * math.asin(r / 2),
        "kendall": 2 / math.pi * math.asin(r),
    }[method]


def across(resamples: int, n: int, r: float, method: str, interval: str = "auto") -> Draw:
    """Correlation across independent models."""

    def draw(rng: np.random.Generator) -> tuple[Estimate, float]:
        x, y = normal_pair(rng, n, r)
        found = correlation(x, y, method=method, interval=interval, resamples=resamples, rng=rng)  # type: ignore[arg-type]
        return found, population(r, method)

    return draw


def grouped(resamples: int, groups: int, size: int, r: float, shared: float) -> Draw:
    """Correlation across models of which ``size`` share a method: ``shared`` of the variance is the method's."""

    def draw(rng: np.random.Generator) -> tuple[Estimate, float]:
        gx, gy = normal_pair(rng, groups, r)
        x, y = normal_pair(rng, groups * size, r)
        label = np.repeat(np.arange(groups), size)
        x = math.sqrt(shared) * gx[label] + math.sqrt(1 - shared) * x
        y = math.sqrt(shared) * gy[label] + math.sqrt(1 - shared) * y
        return correlation(x, y, groups=label, resamples=resamples, rng=rng), population(r, "spearman")

    return draw


def partialled(resamples: int, n: int, r: float, loading: float, method: str) -> Draw:
    """Both x and y follow the control; ``r`` is what is left of their correlation."""
    total = loading**2 + r * (1 - loading**2)  # their plain correlation

    def draw(rng: np.random.Generator) -> tuple[Estimate, float]:
        z = rng.standard_normal(n)
        x, y = (loading * z + math.sqrt(1 - loading**2) * e for e in normal_pair(rng, n, r))
        found = partial_correlation(x, y, z, method=method, resamples=resamples, rng=rng)  # type: ignore[arg-type]
        xy, xz = population(total, method), population(loading, method)
        return found, (xy - xz**2) / (1 - xz**2)

    return draw


def inside(resamples: int, pairs: int, size: int, r: float, between: float) -> Draw:
    """Correlation ``r`` inside pairs, ``between`` across them."""

    def draw(rng: np.random.Generator) -> tuple[Estimate, float]:
        gx, gy = normal_pair(rng, pairs, between)
        x, y = normal_pair(rng, pairs * size, r)
        label = np.repeat(np.arange(pairs), size)
        found = within_pairs(x + 3 * gx[label], y + 3 * gy[label], label, resamples=resamples, rng=rng)
        return found.within, r

    return draw


def flips(images: int, models: int, r: float, kind: str) -> Draw:
    """Images under models; scores share an image's part, flips too; models shift the score, which means nothing."""

    def draw(rng: np.random.Generator) -> tuple[Estimate, float]:
        image = np.repeat(np.arange(images), models)
        model = np.tile(np.arange(models), images)
        own, shared = normal_pair(rng, images * models, r), normal_pair(rng, images, r)
        score, latent = (math.sqrt(0.5) * (a + b[image]) for a, b in zip(own, shared, strict=True))
        label = latent > 0
        truth = 0.5 + 2 / math.pi * math.asin(r / math.sqrt(2))
        if kind == "independent":
            # one row of each of many images: nothing is shared
            rows = rng.permutation(images * models)[:images]
            fresh = normal_pair(rng, rows.size, r)
            return auroc(fresh[0], fresh[1] > 0), truth
        if kind == "image":
            return auroc(score, label, image), truth
        score = score + rng.standard_normal(models)[model]
        return auroc(score, label, [image, model], within=model), truth

    return draw


def odds(images: int, models: int, slope: float) -> Draw:
    """Exactly logistic in the score; flips of one image, and of one model, depend through a Gaussian copula."""

    def draw(rng: np.random.Generator) -> tuple[Estimate, float]:
        image = np.repeat(np.arange(images), models)
        model = np.tile(np.arange(models), images)
        score = rng.normal(size=images)[image] + 0.5 * rng.normal(size=image.size)
        common = (
            math.sqrt(0.4) * rng.normal(size=images)[image] + math.sqrt(0.1) * rng.normal(size=models)[model]
        )
        uniform = scipy.stats.norm.cdf(common + math.sqrt(0.5) * rng.normal(size=image.size))
        label = uniform < scipy.special.expit(slope * score)
        return clustered_logistic(score, label, [image, model]), slope * float(score.std())

    return draw


def over_seeds(seeds: int, loud: float, images: float, level: float = 0.95) -> Draw:
    """One method against another of three over seeds: the first with ``loud`` times the noise, ``images`` shared."""

    def draw(rng: np.random.Generator) -> tuple[Estimate, float]:
        noise = rng.standard_normal((seeds, 3)) * np.array([loud, 1.0, 1.0])
        values = rng.standard_normal((seeds, 1)) + noise + images * rng.standard_normal(3)
        unit, condition = np.repeat(np.arange(seeds), 3), np.tile(["t", "c", "d"], seeds)
        found = contrast(
            values.ravel(), list(unit), list(condition), "t", "c",
            pool=("t", "c", "d"), shared=2 * images**2, level=level,
        )  # fmt: skip
        return found, 0.0

    return draw


def run_to_run(seeds: int, slope: float) -> Draw:
    """A slope inside seeds and methods, whose own levels say the opposite."""

    def draw(rng: np.random.Generator) -> tuple[Estimate, float]:
        seed, method = np.repeat(np.arange(seeds), 4), np.tile(np.arange(4), seeds)
        levels = rng.standard_normal(seeds)[seed] + rng.standard_normal(4)[method]
        x = 3 * levels + rng.standard_normal(seed.size)
        y = -3 * levels + slope * (x - 3 * levels) + rng.standard_normal(seed.size)
        return block_slope(x, y, [seed, method]), slope

    return draw


def at_equal_clean(seeds: int, slope: float) -> Draw:
    """Corruption accuracy follows clean accuracy with ``slope``, and nothing else; clean accuracy differs."""
    design = Design()

    def draw(rng: np.random.Generator) -> tuple[Estimate, float]:
        methods = np.tile([CREDIT.treated, CREDIT.control], seeds)
        clean = 0.9 + 0.003 * rng.standard_normal(2 * seeds) + 0.005 * (methods == CREDIT.treated)
        runs = pd.DataFrame({"method": methods, "seed": np.repeat(np.arange(seeds), 2), "clean": clean})
        runs["corruption"] = 0.6 + slope * (clean - 0.9) + 0.011 * rng.standard_normal(2 * seeds)
        found = Comparison(CREDIT, runs, {}, design.clean_slope).effect("given_clean", 0.95)
        assert found is not None
        return found, 0.0

    return draw


def mediated(seeds: int, step: float, slope: float) -> Draw:
    """One of three methods moves the mediator by ``step`` and the outcome by ``slope`` times that; seeds move both."""

    def draw(rng: np.random.Generator) -> tuple[Estimate, float]:
        seed, method = np.repeat(np.arange(seeds), 3), np.tile(["t", "c", "d"], seeds)
        mediator = rng.standard_normal(seeds)[seed] + step * (method == "t") + rng.standard_normal(seed.size)
        outcome = slope * mediator + rng.standard_normal(seeds)[seed] + rng.standard_normal(seed.size)
        pool = ("t", "c", "d")
        effect = contrast(mediator, list(seed), list(method), "t", "c", pool=pool)
        return mediation(
            effect, block_slope(mediator, outcome, [method, seed]), draws=4000, rng=rng
        ), step * slope

    return draw


def simulated_bits(
    rng: np.random.Generator, seeds: int, spread: float, effect: float = 0.0, images: int = 120
) -> tuple[list[np.ndarray], np.ndarray, list[bool], list[int]]:
    """What hierarchical_effect takes: log-odds of corruption, image, seed and run (``spread``), and the effect."""
    image, level = rng.standard_normal(images), np.repeat([1.0, 0.5, 0.0, 1.5], 2)
    bits, treated, of_seed = [], [], []
    for seed in range(seeds):
        common = 0.2 * rng.standard_normal()
        for is_treated in (True, False):
            logit = level[:, None] + image + common + spread * rng.standard_normal() + effect * is_treated
            bits.append(rng.random(logit.shape) < scipy.special.expit(logit))
            treated.append(is_treated)
            of_seed.append(seed)
    return bits, np.repeat(["fog", "snow", "blur", "noise"], 2), treated, of_seed


def bits_of_runs(seeds: int, spread: float) -> Draw:
    """Right answers of two methods that do not differ."""
    return lambda rng: (hierarchical_effect(*simulated_bits(rng, seeds, spread)), 0.0)


def rare(rows: int, positives: int) -> Draw:
    """AUROC of a score that means nothing, with few rows of one label."""

    def draw(rng: np.random.Generator) -> tuple[Estimate, float]:
        return auroc(rng.standard_normal(rows), np.arange(rows) < positives), 0.5

    return draw


def scenarios(resamples: int = 999) -> list[Scenario]:
    """Everything in the table, with this many bootstrap draws and permutations."""
    found = [
        Scenario(f"paired {shape}, n={n}", paired(resamples, n, shape, 0.0), null=True)
        for shape in ("normal", "laplace", "exponential")
        for n in (3, 5, 10, 20, 50)
    ]
    found += [
        Scenario(f"paired {shape}, n={n}, always BCa", paired(resamples, n, shape, 0.0, "bca"))
        for shape in ("normal", "exponential")
        for n in (3, 5, 10, 15)
    ]
    for method in ("spearman", "kendall", "pearson"):
        for n in (5, 8, 15, 25, 60):
            found.append(Scenario(f"{method} r=0, n={n}", across(resamples, n, 0.0, method), null=True))
            found.append(Scenario(f"{method} r=0.6, n={n}", across(resamples, n, 0.6, method)))
        found.append(Scenario(f"{method} r=0.6, n=15, always BCa", across(resamples, 15, 0.6, method, "bca")))
    for groups, size in ((5, 3), (15, 3), (40, 3)):
        for shared in (0.2, 0.9):
            label = f"groups {groups}x{size}, shared {shared:g}"
            found.append(Scenario(f"{label}, r=0", grouped(resamples, groups, size, 0.0, shared), null=True))
            found.append(Scenario(f"{label}, r=0.6", grouped(resamples, groups, size, 0.6, shared)))
    for method in ("spearman", "pearson"):
        for n in (15, 40):
            # a zero partial correlation of values is none of their ranks: only Pearson's has its null here
            null = method == "pearson"
            found.append(
                Scenario(f"partial {method} r=0, n={n}", partialled(resamples, n, 0.0, 0.7, method), null)
            )
            found.append(
                Scenario(f"partial {method} r=0.5, n={n}", partialled(resamples, n, 0.5, 0.7, method))
            )
    for pairs, size in ((6, 2), (15, 2), (5, 3), (40, 2)):
        found.append(
            Scenario(f"within {pairs}x{size} r=0", inside(resamples, pairs, size, 0.0, 0.8), null=True)
        )
        found.append(Scenario(f"within {pairs}x{size} r=-0.6", inside(resamples, pairs, size, -0.6, 0.8)))
    for r in (0.0, 0.5):
        found.append(
            Scenario(f"auroc independent n=100, r={r:g}", flips(100, 1, r, "independent"), null=r == 0)
        )
        found.append(
            Scenario(f"auroc 100 images x 5, by image, r={r:g}", flips(100, 5, r, "image"), null=r == 0)
        )
        for models in (3, 15):
            name = f"auroc 100 images x {models}, two-way, r={r:g}"
            found.append(Scenario(name, flips(100, models, r, "both"), null=r == 0))
    for seeds in (3, 5, 9):
        for loud in (1.0, 3.0):
            found.append(Scenario(f"seeds {seeds}, noise x{loud:g}", over_seeds(seeds, loud, 0.0), null=True))
    found.append(Scenario("seeds 5, noise x3, 97.5%", over_seeds(5, 3.0, 0.0, 0.975), null=True))
    found.append(Scenario("seeds 5, images shared", over_seeds(5, 1.0, 0.5), null=True))
    found += [Scenario(f"slope in {n} seeds x 4 methods", run_to_run(n, 0.0), null=True) for n in (3, 5, 15)]
    low, high = Design().clean_slope
    found += [
        Scenario(f"equal clean accuracy, {n} seeds, slope {slope:g}", at_equal_clean(n, slope), null=True)
        for n in (3, 5, 9)
        for slope in (low, (low + high) / 2, high)
    ]
    for n in (5, 9):
        found += [
            Scenario(f"mediation, {n} seeds, {step:g} x {slope:g}", mediated(n, step, slope))
            for step, slope in ((0.0, 1.0), (2.0, 0.0), (2.0, 1.0))
        ]
    found += [
        Scenario(f"bits of {n} seeds, runs spread {spread:g}", bits_of_runs(n, spread), null=True)
        for n in (3, 5)
        for spread in (0.0, 0.2, 0.4)
    ]
    found += [
        Scenario(f"auroc of 300 rows, {k} positive", rare(300, k), null=True) for k in (1, 3, 5, 10, 30)
    ]
    for slope in (0.0, 0.7):
        for models in (3, 15):
            name = f"logistic 100 images x {models}, two-way, slope={slope:g}"
            found.append(Scenario(name, odds(100, models, slope), null=slope == 0))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = Parser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000, help="draws of each scenario (default 2000)")
    parser.add_argument("--only", default="", help="only scenarios whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {options.repeats}")
    chosen = [scenario for scenario in scenarios() if options.only in scenario.name]
    if not chosen:
        raise ValueError(f"--only {options.only!r} matches none of the scenarios")
    rows = []
    for i, scenario in enumerate(chosen, 1):
        print(f"{i}/{len(chosen)} {scenario.name}", file=sys.stderr, flush=True)
        rows.append(simulate(scenario, options.repeats, options.seed))
        if options.json is not None:
            plain = [{k: v for k, v in asdict(row).items() if k != "p_values"} for row in rows]
            options.json.write_text(json.dumps(plain, indent=1))

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    head = ["scenario", "covers %", "width", "no interval %", "p<=.05 %", "p<=.20 %"]
    print(
        f"{options.repeats} repeats each; the standard error of 95 is {math.sqrt(95 * 5 / options.repeats):.2f}"
    )
    print(
        table(
            head,
            [
                [
                    row.name,
                    share(row.coverage),
                    "-" if row.width is None else f"{row.width:.2f}",
                    share(row.missing),
                    share(row.size05),
                    share(row.size20),
                ]
                for row in rows
            ],
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
