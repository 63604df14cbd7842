"""Draw a study's report from its records alone: one self-contained HTML file, the same as Markdown, the figures.

    python -m analyses.paired_study.report studies/default

Reads records.jsonl and images/*.csv in the study's folder (what the measuring stage wrote) and nothing else; writes
report.html, report.md and figures/. The place of the report is the last line printed.
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from analyses.page.cells import provenance_rows
from analyses.page.page import Answer, Page, write_page
from analyses.paired_study.answer import associations, dose_response, image_findings, paired_effects
from analyses.paired_study.drawings import build_figures
from analyses.paired_study.frames import load_study
from analyses.paired_study.methods import methods_text
from analyses.paired_study.study import RECORDS
from analyses.paired_study.tables import build_tables
from analyses.paired_study.words import answer
from lipcomp.commands import Parser, run


def make_report(folder: Path) -> tuple[Path, Answer]:
    """Write report.html, report.md and figures/ into a study's folder; returns the HTML's path and the answer."""
    study = load_study(folder)
    effects = paired_effects(study.models)
    found = associations(study.models) + dose_response(study.models)
    per_image = image_findings(study.images)
    methods = list(dict.fromkeys(study.models["method"]))
    seeds = study.models["seed"].nunique()
    cautions = []
    if study.plan.get("preset") == "quick":
        cautions.append(f"This study is {study.plan['purpose']}.")
    missing = sorted(set(study.plan.get("runs", {})) - set(study.models.index))
    if missing:
        cautions.append(f"{len(missing)} planned runs are missing here: {', '.join(missing)}.")
    said = answer(effects, found, per_image)
    page = Page(
        title="Does compression make the encoder smoother, and does smoothness make it robust?",
        subtitle=f"{len(study.models)} models: {', '.join(methods)}; {seeds or 'no'} seed{'s' if seeds != 1 else ''}.",
        answer=said,
        figures=build_figures(study, effects),
        tables=build_tables(study, effects, found, per_image),
        methods=methods_text(study.frame),
        provenance=provenance_rows(study.frame),
        records=folder / RECORDS,
        record_count=len(study.frame),
        cautions=cautions,
        images_csv=study.images.to_csv(index=False).encode() if len(study.images) else b"",
    )
    return write_page(folder, page), said


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the report."""
    parser = Parser(prog="python -m analyses.paired_study.report", description=__doc__)
    parser.add_argument("study", type=Path, help="the study's folder")
    options = parser.parse_args(arguments)
    path, said = make_report(options.study)
    print(textwrap.fill(said.headline, 100))
    print(path.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
