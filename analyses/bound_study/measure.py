"""Measure how tight the bounds are: by source of pairs, layer and kappa, and between search and certificate.

    python -m analyses.bound_study.measure studies/default --workers 2

Measures the checkpoints of a study's folder (or of any folder of checkpoints) and appends the results to bounds.jsonl
there. Results that are in the file already are not measured again.

==========  ===================================================================================================
part        what is measured
==========  ===================================================================================================
layers      sigma_max at every layer, of the normalised embedding
pairs       the bound of the mean direction (3.5) from each source of pairs: views, random, neighbours, search
kappa       (3.1) to (3.4) over positive pairs at kappa = 1, 10, 100, 1024, 16384
ball        per image, on L2 balls of growing radius: lower <= searched <= certified (5.3)
==========  ===================================================================================================
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analyses.runs import add_study_arguments, read_study, write_roll
from lipcomp._commands import Parser, run
from lipcomp.jobs._options import engine_choice
from lipcomp.measure import Pairs, Plan, Sigma, Source
from lipcomp.measure._local import Ball
from lipcomp.measure._map import Map
from lipcomp.measure._options import positive, tell_plan
from lipcomp.measure._outputs import ImageTable
from lipcomp.measure._parallel import run_parallel
from lipcomp.measure._plan import Probe
from lipcomp.measure._run import Outputs

RECORDS = "bounds.jsonl"
TABLE = "bounds.csv"  # of values image by image
IMAGES = 500
SIGMA_IMAGES = 128
BALL_IMAGES = 5
RADIUS = 0.25  # of the random directions
KAPPAS = (1.0, 10.0, 100.0, 1024.0, 16384.0)


def quantities(layers: Sequence[str], ball_images: int = BALL_IMAGES) -> Iterator[Any]:
    """What is measured of an encoder with these layers."""
    yield from (Sigma(Map(layer), SIGMA_IMAGES) for layer in layers)
    for source in ("shuffled", "neighbours", "random", "all"):
        yield Pairs(source, Map(concentration=1024.0), IMAGES, radius=RADIUS)
    yield from (Pairs("views", Map(concentration=kappa), IMAGES) for kappa in KAPPAS)
    yield Ball(limit=ball_images)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure how tight the bounds are."""
    parser = Parser(prog="python -m analyses.bound_study.measure", description=__doc__)
    # fmt: off
    parser.add_argument("study", type=Path, help="folder of a study, or a folder of checkpoints")
    parser.add_argument("--ball-images", type=positive(int), default=BALL_IMAGES,
        help="number of images to search and certify")
    # fmt: on
    add_study_arguments(parser)
    options = parser.parse_args(arguments)
    sources, _, layers, hashes, images = read_study(options)
    engine = engine_choice(options, options.study / "cache" / "jobs")
    outputs = Outputs(
        options.study / RECORDS,
        cells=options.study / "cache" / "bounds",
        table=ImageTable(options.study / TABLE),
    )
    plans: dict[tuple[str, ...], list[Source]] = {}
    for source, present in zip(sources, layers, strict=True):  # with a predictor, one layer more
        plans.setdefault(present, []).append(source)
    for present, alike in plans.items():
        asked = tuple(quantities(present, options.ball_images))
        machine = (options.device, options.precision, options.batch_size)
        plan = Plan(tuple(alike), images, asked, Probe(), *machine, options.seed)
        if options.dry_run:
            tell_plan(plan, outputs)
        else:
            run_parallel(plan, lambda source: replace(outputs), **engine)
    if not options.dry_run:
        write_roll(options.study, hashes)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
