"""The report of a study from its parts: what is said, drawn and tabled, as one page."""

from pathlib import Path

from analyses.paired_study.answer import answer_study
from analyses.paired_study.associations import bits_model, through_smoothness
from analyses.paired_study.drawings import build_figures
from analyses.paired_study.frames import load_study
from analyses.paired_study.methods import methods_text
from analyses.paired_study.study import RECORDS
from analyses.paired_study.tables import build_tables
from analyses.paired_study.words import findings, headline, model_findings, verdict_rows
from lipcomp.report._cells import provenance_rows
from lipcomp.report._page import Page, write_page


def make_report(folder: Path, *, downloads: bool = True) -> tuple[Path, Page]:
    """Write report.html, report.md and figures/ into a study's folder; returns the HTML's path and the page.

    Without ``downloads`` the page does not carry its records.
    """
    study = load_study(folder)
    answered = answer_study(study)
    methods = list(dict.fromkeys(study.models["method"]))
    seeds = study.models["seed"].nunique()
    page = Page(
        title="Does compression make the encoder smoother, and does smoothness make it robust?",
        subtitle=f"{len(study.models)} runs: {', '.join(methods)}; {seeds or 'no'} seed{'s' if seeds != 1 else ''}.",
        headline=headline(answered, study.design),
        verdicts=verdict_rows(answered),
        findings=[
            *findings(answered),
            *model_findings(answered, bits_model(study), through_smoothness(study)),
        ],
        figures=build_figures(study, answered),
        tables=build_tables(study, answered),
        methods=methods_text(study),
        provenance=provenance_rows(study.frame),
        records=[folder / RECORDS] if downloads else [],
        record_count=study.measured.count,
        cautions=answered.cautions,
        images_csv=study.images.to_csv(index=False).encode() if downloads and len(study.images) else b"",
    )
    return write_page(folder / "report.html", page), page
