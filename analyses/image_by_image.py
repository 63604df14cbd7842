"""Which constant tells, image by image, what corruptions and attacks change.

    python -m analyses.image_by_image studies/default --data mnist5k --out image_by_image.csv
    python -m analyses.image_by_image --table image_by_image.csv

For the first test images of every run: sigma_max of the features at the image, the searched constant in a ball around
it, the certified one (of few images, since it takes longest), the margin of the probe, and the L2 radius at which PGD
changes the probe's prediction. How many corruptions change it was measured with the study. The table has the area under
the ROC curve of each for "more easily changed than the median image of this model", among images of one class and
model; the interval is clustered by image and by model. Rows of the same encoder, probe, images and settings (by their
content) are not measured again; rows of a run that has changed are replaced.
"""

import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from analyses.paired_study.study import RECORDS
from analyses.runs import read_measured, read_study
from lipcomp._atomic import atomic_file, check_writable
from lipcomp._commands import Parser, UsageError, progress, run, table
from lipcomp._identity import digest
from lipcomp.bound import certified_bound, search_ball
from lipcomp.jacobian import spectral_norm
from lipcomp.measure import Plan
from lipcomp.measure._bench import Bench
from lipcomp.measure._options import add_data_arguments, add_foreign_arguments, positive
from lipcomp.measure._run import open_benches
from lipcomp.robustness import pgd
from lipcomp.statistics._per_image import auroc

VERSION = 1  # of what is measured here; a change of it makes old rows strangers
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


def attack_radius(
    classifier: nn.Module,
    images: Tensor,
    predicted: Tensor,
    advance: Callable[[int], object] = lambda n: None,
) -> np.ndarray:
    """The least of :data:`RADII` at which PGD changes the prediction; infinite where none does."""
    found = np.full(len(images), np.inf)
    for radius in RADII:
        left = np.flatnonzero(np.isinf(found))
        if not len(left):
            break
        fooled = pgd(classifier, images[left], predicted[left], norm="l2", radius=radius, steps=20, starts=1)
        found[left[~fooled.right]] = radius
        advance(int((~fooled.right).sum()))
    advance(int(np.isinf(found).sum()))
    return found


def identity_of(bench: Bench, measured: pd.DataFrame, images: int, certified: int) -> str:
    """What the rows of a run depend on."""
    settings = (SEARCHED, CERTIFIED, RADII, certified, bench.plan.seed, measured["flipped"].tolist())
    chosen = bench.data_settings(indices=bench.indices[:images])["data_hash"]
    return digest("image by image", VERSION, bench.probe_identity(), chosen, settings)


def measure_run(bench: Bench, images: int, certified: int) -> pd.DataFrame:
    """One row per image."""
    x = bench.load(torch.arange(images))
    features, classifier = bench.map("backbone"), bench.classifier()
    with torch.no_grad():
        logits = classifier(x)
    best = logits.topk(2, dim=1).values.double().cpu()
    margin = (best[:, 0] - best[:, 1]).numpy()
    bound = np.full(images, np.nan)
    with progress(2 * images, bench.label) as advance:
        searched = search_ball(features, x, SEARCHED, starts=1, steps=20, advance=advance)
        attack = attack_radius(classifier, x, logits.argmax(1), advance)
    if certified:
        bound[:certified] = certified_bound(features, x[:certified], radius=CERTIFIED).bound.cpu().numpy()
    return pd.DataFrame(
        {
            "run": bench.label,
            "image": np.arange(images),
            "sigma": searched.sigma_at_image.double().cpu().numpy(),
            "searched": searched.sigma.double().cpu().numpy(),
            "certified": bound,
            "margin": margin,
            "relative": margin / spectral_norm(bench.map("logits"), x).sigma.double().cpu().numpy(),
            "attack": attack,
        }
    )


def study_rows(bench: Bench, study: Path, told: pd.DataFrame) -> pd.DataFrame:
    """Each image's label and the share of corruptions that change its prediction, as the study measured them."""
    own = told[(told["subject.run"] == bench.label) & (told["quantity"] == "accuracy.clean")].tail(1)
    own = own.reindex(columns=["subject.encoder", "settings.data_hash"])
    wanted = [bench.encoder_hash, bench.data_settings()["data_hash"]]
    file = study / "images" / f"{bench.label}.csv"
    if own.to_numpy().tolist() != [wanted] or not file.exists():
        raise ValueError(
            f"{study} holds no measurement of {bench.label} with this encoder on these images; measure it with: "
            f"python -m analyses.paired_study.measure {study}, and give the same --data here"
        )
    return pd.read_csv(file)[["image", "label", "flipped"]].dropna()


def read_rows(file: Path) -> pd.DataFrame:
    """The rows of a file that this command wrote."""
    try:
        rows = pd.read_csv(file)
    except FileNotFoundError as error:
        raise ValueError(f"{file} does not exist; measure a study first with --out {file}") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no table of this command ({error}); give another file") from error
    if missing := {"run", "image", "label", *SCORES, *OUTCOMES}.difference(rows.columns):
        raise ValueError(
            f"{file} is no table of this command: it has no column {sorted(missing)[0]!r}; give another file"
        )
    return rows if "identity" in rows else rows.assign(identity="")


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
    """The scores as words; "-" for what these rows cannot tell."""
    return [
        (by, name, _told("{:.2f}", value), _told("{:.2f} to {:.2f}", low, high), str(images), str(models))
        for by, name, value, low, high, images, models in found.itertuples(index=False)
    ]


def _told(form: str, *values: float | None) -> str:
    return "-" if pd.isna(values[0]) else form.format(*values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure image by image, or show the table."""
    parser = Parser(prog="python -m analyses.image_by_image", description=__doc__)
    # fmt: off
    parser.add_argument("study", type=Path, nargs="?", help="folder of a measured study")
    parser.add_argument("--out", type=Path, help="file of the rows (default: image_by_image.csv in the study)")
    parser.add_argument("--runs", default="*", help="patterns of runs, comma-separated, as c_simclr-* (default: all)")
    parser.add_argument("--images", type=positive(int), default=300, help="test images, from the first (default: 300)")
    parser.add_argument("--certified", type=positive(int), default=0, help="images that are certified (default: none)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="show the table of a finished file and stop")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    # fmt: on
    add_foreign_arguments(parser)
    add_data_arguments(parser)
    options = parser.parse_args(arguments)
    if options.table is not None:
        print(table(HEAD, cells(scores(read_rows(options.table)))))
        return 0
    if options.study is None:
        raise UsageError("name the folder of a measured study, or a file with --table")
    out = options.out or options.study / "image_by_image.csv"
    sources, _, _, _, chosen = read_study(options)
    told = read_measured(options.study / RECORDS, "analyses.paired_study.measure").frame
    patterns = options.runs.split(",")
    sources = [source for source in sources if any(fnmatch(str(source.name), each) for each in patterns)]
    if not sources:
        raise ValueError(f"--runs {options.runs} names no run of {options.study}")
    check_writable(out, "out")
    rows = read_rows(out) if out.exists() else pd.DataFrame(columns=["run", "identity"])
    for source in sources:
        (bench,) = open_benches(Plan((source,), chosen, (), device=options.device, seed=options.seed))
        measured = study_rows(bench, options.study, told)
        images = min(options.images, len(measured))
        certified = min(options.certified, images)
        identity = identity_of(bench, measured, images, certified)
        if identity not in set(rows["identity"]):
            fresh = measure_run(bench, images, certified).assign(identity=identity)
            kept = rows[rows["run"] != source.name]
            rows = pd.concat([part for part in (kept, fresh.merge(measured, on="image")) if len(part)])
            with atomic_file(out) as temporary:
                rows.to_csv(temporary, index=False, float_format="%.6g")
        print(f"{source.name}: {images} images", flush=True)
    print(table(HEAD, cells(scores(rows[rows["run"].isin([str(s.name) for s in sources])]))))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
