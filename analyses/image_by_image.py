"""Which constant tells, image by image, what corruptions and attacks change.

    python -m analyses.image_by_image studies/default --data mnist5k --out image_by_image.csv
    python -m analyses.image_by_image --table image_by_image.csv

For the first test images of every run: sigma_max of the features at the image, the searched constant in a ball around
it, the certified one (of few images, since it takes longest), the margin of the probe, and the L2 radius at which PGD
changes the probe's prediction. How many corruptions change it was measured with the study. The table has the area under
the ROC curve of each for "more easily changed than the median image of this model", among images of one class and
model; the interval is clustered by image and by model. Runs that are in the file are not measured again.
"""

import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from analyses.runs import add_study_arguments, read_study
from lipcomp._atomic import atomic_file
from lipcomp._commands import Parser, run, table
from lipcomp.bound import certified_bound, search_ball
from lipcomp.jacobian import spectral_norm
from lipcomp.measure import Plan
from lipcomp.measure._bench import Bench
from lipcomp.measure._options import positive
from lipcomp.measure._run import open_benches
from lipcomp.robustness import pgd
from lipcomp.statistics._per_image import auroc

SEARCHED, CERTIFIED = 0.1, 0.01  # radius of the ball, pixel L2
RADII = tuple(0.1 * 2 ** (k / 2) for k in range(10))  # 0.1 to 2.3: where PGD is tried
SCORES = {
    "sigma": "σ of the features at the image",
    "searched": f"searched constant of the features, radius {SEARCHED:g}",
    "certified": f"certified constant of the features, radius {CERTIFIED:g}",
    "margin": "margin of the probe (small is easily changed)",
    "relative": "margin over σ of the logits (small is easily changed)",
}
REVERSED = ("margin", "relative")
OUTCOMES = {"flipped": "corruptions", "attack": "PGD, L2"}


def attack_radius(classifier: nn.Module, images: Tensor, predicted: Tensor) -> np.ndarray:
    """The least of :data:`RADII` at which PGD changes the prediction; infinite where none does."""
    found = np.full(len(images), np.inf)
    for radius in RADII:
        left = np.flatnonzero(np.isinf(found))
        if not len(left):
            break
        fooled = pgd(classifier, images[left], predicted[left], norm="l2", radius=radius, steps=20, starts=1)
        found[left[~fooled.right]] = radius
    return found


def measure_run(bench: Bench, images: int, certified: int) -> pd.DataFrame:
    """One row per image."""
    x = bench.load(torch.arange(images))
    features, classifier = bench.map("backbone"), bench.classifier()
    with torch.no_grad():
        logits = classifier(x)
    best = logits.topk(2, dim=1).values
    margin = (best[:, 0] - best[:, 1]).double().numpy()
    searched = search_ball(features, x, SEARCHED, starts=1, steps=20)
    bound = np.full(images, np.nan)
    if certified:
        bound[:certified] = certified_bound(features, x[:certified], radius=CERTIFIED).bound.numpy()
    return pd.DataFrame(
        {
            "run": bench.label,
            "image": np.arange(images),
            "sigma": searched.sigma_at_image.double().numpy(),
            "searched": searched.sigma.double().numpy(),
            "certified": bound,
            "margin": margin,
            "relative": margin / spectral_norm(bench.map("logits"), x).sigma.double().numpy(),
            "attack": attack_radius(classifier, x, logits.argmax(1)),
        }
    )


def with_study(rows: pd.DataFrame, study: Path) -> pd.DataFrame:
    """The rows with each image's label and the share of corruptions that change its prediction."""
    measured = [
        pd.read_csv(study / "images" / f"{name}.csv")[["image", "label", "flipped"]].assign(run=name)
        for name in rows["run"].unique()
    ]
    return rows.merge(pd.concat(measured), on=["run", "image"])


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """AUROC of every score for every outcome, within class and model."""
    found = []
    for outcome, changed_by in OUTCOMES.items():
        easily = rows["flipped"] if outcome == "flipped" else -rows["attack"]
        label = (easily > easily.groupby(rows["run"]).transform("median")).to_numpy()
        for score, name in SCORES.items():
            here = rows[score].notna().to_numpy()
            if not here.any():
                continue
            part = rows[here]
            strata = pd.factorize(part["run"] + "/" + part["label"].astype(str))[0]
            groups = [pd.factorize(part[column])[0] for column in ("image", "run")]
            sign = -1 if score in REVERSED else 1
            estimate = auroc(sign * part[score].to_numpy(float), label[here], groups, within=strata)
            low, high = estimate.interval if estimate.interval is not None else (np.nan, np.nan)
            found.append(
                (changed_by, name, estimate.value, low, high, part["image"].nunique(), part["run"].nunique())
            )
    columns = ["changed by", "score", "AUROC", "low", "high", "images", "models"]
    return pd.DataFrame(found, columns=columns)


HEAD = ("changed by", "score", "AUROC", "95% interval", "images", "models")


def cells(found: pd.DataFrame) -> list[tuple[str, ...]]:
    """The scores as words."""
    return [
        (
            by,
            name,
            f"{value:.2f}",
            "-" if np.isnan(low) else f"{low:.2f} to {high:.2f}",
            str(images),
            str(models),
        )
        for by, name, value, low, high, images, models in found.itertuples(index=False)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure image by image, or show the table."""
    parser = Parser(prog="python -m analyses.image_by_image", description=__doc__)
    # fmt: off
    parser.add_argument("study", type=Path, nargs="?", help="folder of a measured study")
    parser.add_argument("--out", type=Path, help="file of the rows (default: image_by_image.csv in the study)")
    parser.add_argument("--runs", help="patterns of runs, comma-separated, as in 'c_simclr-*' (default: all)")
    parser.add_argument("--images", type=positive(int), default=300, help="test images, from the first (default 300)")
    parser.add_argument("--certified", type=int, default=0, help="images that are certified (default 0)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="show the table of a finished file and stop")
    # fmt: on
    add_study_arguments(parser)
    options = parser.parse_args(arguments)
    if options.table is not None:
        print(table(HEAD, cells(scores(pd.read_csv(options.table)))))
        return 0
    if options.study is None:
        raise ValueError("name the folder of a measured study, or a file with --table")
    out = options.out or options.study / "image_by_image.csv"
    rows = pd.read_csv(out) if out.exists() else pd.DataFrame({"run": []})
    sources, _, _, images = read_study(options)
    patterns = options.runs.split(",") if options.runs else ["*"]
    for source in sources:
        if source.name in set(rows["run"]) or not any(fnmatch(str(source.name), each) for each in patterns):
            continue
        plan = Plan(
            (source,), images, (), device=options.device, batch_size=options.batch_size, seed=options.seed
        )
        (bench,) = open_benches(plan)
        fresh = with_study(measure_run(bench, options.images, options.certified), options.study)
        rows = pd.concat([rows, fresh], ignore_index=True)
        with atomic_file(out) as temporary:
            rows.to_csv(temporary, index=False, float_format="%.6g")
        print(f"{source.name}: {options.images} images", flush=True)
    print(table(HEAD, cells(scores(rows))))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
