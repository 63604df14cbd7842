"""The answer in words: a headline of one sentence per primary outcome, and the rows of the verdict table."""

from collections.abc import Sequence

import numpy as np

from analyses.paired_study.answer import Answered
from analyses.paired_study.associations import ACROSS, RUNS, Association, ImageFinding
from analyses.paired_study.design import Design
from analyses.paired_study.study import CREDIT, PLAIN, WEIGHT, Contrast
from analyses.paired_study.verdicts import Credit, Row
from lipcomp.report._marks import interval_mark
from lipcomp.report._page import VerdictRow
from lipcomp.statistics import decide
from lipcomp.statistics._hierarchical import HierarchicalEffect
from lipcomp.statistics._mediation import Mediation
from lipcomp.statistics._verdict import Verdict, Zone

LARGEST = 1_000_000  # percent; more is no change but a collapse
KINDS = {Verdict.YES: "yes", Verdict.NO_LARGER: "small", Verdict.CANNOT_TELL: "open"}
QUESTIONS = {
    "features": "Does compression make the probed features smoother?",
    "given_clean": "Is it more accurate under corruptions, at equal clean accuracy?",
}


def headline(answered: Answered, design: Design) -> str:
    """What the study says, at most one sentence per primary outcome."""
    if not answered.credits:
        told = [r for r in answered.verdicts.rows if r.main]
        if any(r.contrast in (CREDIT, PLAIN) for r in told):
            return "The primary outcomes were not measured, so they have no verdict."
        if told:
            others = ", ".join(dict.fromkeys(r.contrast.name for r in told))
            return (
                f"There is no pair of a {design.treated} and an uncompressed run here, so the primary outcomes have no "
                f"verdict. What is said of {others} is exploratory."
            )
        return "There is no pair of a compressed and an uncompressed run here, so no verdict."
    return " ".join(_sentence(credit, answered, design) for credit in answered.credits)


def _sentence(credit: Credit, answered: Answered, design: Design) -> str:
    row, plain = credit.row, credit.plain
    ratio = row.outcome.ratio
    what = (
        "the smoothness of the probed features"
        if ratio
        else "accuracy under corruptions, at equal clean accuracy"
    )
    shown = f"{shown_value(row)}, {_seeds(row)}"
    against = "its control" if row.contrast == CREDIT else row.contrast.control
    state = f"{row.word} than {against}"
    if credit.credited:
        subject = "Compression makes the probed features" if ratio else "Compression makes the encoder"
        tail = "" if ratio else " under corruptions, at equal clean accuracy"
        return f"{subject} {row.word}{tail}, against its control ({shown})."
    if row.verdict is Verdict.YES:
        name = f"The probed features of {design.treated} are" if ratio else f"{design.treated} is"
        tail = "" if ratio else " under corruptions, at equal clean accuracy"
        why = "without that control nothing is credited to compression"
        if row.contrast == CREDIT:
            why = f"but the same is not shown against {PLAIN.control}, so nothing is credited to compression"
        return f"{name} {state}{tail} ({shown}); {why}."
    if row.verdict is Verdict.NO_LARGER and row.contrast != CREDIT:
        return f"{row.contrast.name} in {what}: no larger than {zone_text(row.zone, ratio)} ({shown})."
    if row.verdict is Verdict.NO_LARGER:
        return f"Beyond its control, compression changes {what} by no more than {zone_text(row.zone, ratio)} ({shown})."
    reason = f"; {row.note}" if row.note else f"; about {row.needed} seeds would decide" if row.needed else ""
    other = answered.verdicts.find(row.outcome.key, WEIGHT)
    if (
        plain is not None
        and plain is not row
        and plain.direction
        and other is not None
        and other.direction == plain.direction
    ):
        reason = f"; {design.treated} and its control are both {plain.word} than {PLAIN.control}" + reason
    return f"Whether compression changes {what}: cannot tell ({shown}){reason}."


def shown_value(row: Row) -> str:
    """Estimate and interval, in % change or points."""
    return value_text(
        row.effect.value, row.effect.interval, ratio=row.outcome.ratio, level=row.effect.level, zone=row.zone
    )


def value_text(
    value: float | None,
    interval: tuple[float, float] | None,
    *,
    ratio: bool,
    level: float = 0.95,
    zone: Zone | None = None,
) -> str:
    """Estimate and interval of a log ratio (as % change) or of points, in words; a verdict by the zone follows from it.

    Examples
    --------
    >>> value_text(-0.431, (-0.56, -0.31), ratio=True)
    '−35%, 95% interval −43% to −27%'
    """
    if value is None:
        return "not measured"
    unit = "" if ratio else " points"
    if interval is None:
        return f"{number_text(value, ratio=ratio, zone=zone)}{unit}, no interval"
    ends = " to ".join(number_text(end, ratio=ratio, zone=zone) for end in interval)
    return f"{number_text(value, ratio=ratio, zone=zone)}{unit}, {100 * level:.4g}% interval {ends}"


def number_text(number: float, *, ratio: bool, zone: Zone | None = None, digits: int | None = None) -> str:
    """A log ratio (as % change) or points, with as many digits as show its side of zero and of the zone's ends."""

    def scaled(value: float) -> float:
        return 100 * float(np.expm1(min(value, 700.0))) if ratio else value

    edges = [0.0, *((scaled(zone.low), scaled(zone.high)) if zone else ())]
    shown = scaled(number)
    if shown > LARGEST:
        return f"over +{LARGEST:,}{'%' if ratio else ''}"
    digits = digits_on_side(shown, edges, (0 if ratio else 1) if digits is None else digits)
    form = f"{shown:+.{digits}f}" if round(shown, digits) else "0"
    return form.replace("-", "−") + ("%" if ratio else "")


def digits_on_side(number: float, edges: Sequence[float], least: int) -> int:
    """The fewest digits with which rounding leaves a number on its side of all edges; ``least`` if four do not do."""

    def stays(digits: int) -> bool:
        shown = round(number, digits)
        return all(np.sign(round(number - e, 9)) == np.sign(round(shown - e, 9)) for e in edges)

    return next((digits for digits in range(least, 5) if stays(digits)), least)


def zone_text(zone: Zone, ratio: bool) -> str:
    """How large the zone is."""
    return (
        f"{100 * np.expm1(zone.high):.3g}%"
        if ratio
        else f"{zone.high:g} point{'s' if zone.high != 1 else ''}"
    )


def _seeds(row: Row) -> str:
    return f"{row.effect.n} seed{'s' if row.effect.n != 1 else ''}"


def verdict_rows(answered: Answered) -> list[VerdictRow]:
    """The short table: the primary outcomes, the plain twins, and how they are associated."""
    rows = [_row(c.row, QUESTIONS[c.row.outcome.key], _meaning(c)) for c in answered.credits]
    for contrast, key, question in (
        (PLAIN, "features", "Are the features of C-SimCLR smoother than SimCLR's?"),
        (Contrast("C-BYOL", "BYOL", ""), "features", "Are the features of C-BYOL smoother than BYOL's?"),
    ):
        row = next(
            (
                r
                for r in answered.verdicts.rows
                if r.outcome.key == key
                and (r.contrast.treated, r.contrast.control) == (contrast.treated, contrast.control)
            ),
            None,
        )
        if row is not None and row not in [c.row for c in answered.credits]:
            rows.append(_row(row, question, f"{row.contrast.meaning[:1].upper()}{row.contrast.meaning[1:]}."))
    main = [a for a in answered.associations if a.y == "corruption accuracy" and a.level in (RUNS, ACROSS)]
    rows += _association_rows(main)[-1:]  # from run to run where there are seeds; the other is in the table
    if answered.images:
        rows.append(_image_row(answered.images[0]))
    return rows


def _row(row: Row, question: str, meaning: str) -> VerdictRow:
    ratio = row.outcome.ratio
    chip = {
        Verdict.YES: f"yes: {row.word}" if row.outcome.better == row.direction else f"no: {row.word}",
        Verdict.NO_LARGER: f"no larger than {zone_text(row.zone, ratio)}",
        Verdict.CANNOT_TELL: "cannot tell",
    }[row.verdict]
    if row.verdict is Verdict.CANNOT_TELL and row.needed:
        meaning = f"About {row.needed} seeds would decide, if effect and spread stay as they are. {meaning}"
    elif row.verdict is Verdict.CANNOT_TELL and row.note:
        meaning = f"{row.note[:1].upper()}{row.note[1:]}. {meaning}"
    text = shown_value(row)
    mark = interval_mark(row.effect.value, row.effect.interval, (row.zone.low, row.zone.high), text)
    role = f"{row.contrast.name} · {'primary' if row.primary else 'exploratory'}"
    return VerdictRow(question, chip, KINDS[row.verdict], text, mark, _seeds(row), meaning.strip(), role)


def _meaning(credit: Credit) -> str:
    if credit.row.contrast != CREDIT:
        return (
            "This study has no control of equal gradient weight, so nothing can be credited to compression."
        )
    if credit.credited:
        return "Credited to compression: it holds against the control of equal gradient weight and the plain twin."
    if credit.row.verdict is Verdict.YES:
        return "Shown against the control only, not against the plain twin, so not credited to compression."
    plain = credit.plain
    if plain is not None and plain.direction:
        return (
            f"{PLAIN.treated} is {plain.word} than {PLAIN.control}, but that is not credited to compression."
        )
    return "Against the control with the same gradient weight."


def _association_rows(main: list[Association]) -> list[VerdictRow]:
    found = []
    signs = {a.level: np.sign(a.estimate.value or 0.0) for a in main if a.verdict is Verdict.YES}
    reversal = len(set(signs.values())) > 1
    for a in main:
        question = "Are encoders with smoother features more accurate under corruptions?"
        value = a.estimate.value or 0.0
        chip = {
            Verdict.YES: "yes" if value > 0 else "no: less accurate",
            Verdict.NO_LARGER: f"no larger than {zone_text(a.zone, False)}",
            Verdict.CANNOT_TELL: "cannot tell",
        }[a.verdict]
        text = "per 10% lower σ " + value_text(
            a.estimate.value, a.estimate.interval, ratio=False, zone=a.zone
        )
        meaning = "An association; it does not say that one causes the other."
        if reversal:
            meaning = "Across methods the association has the opposite sign, so neither answers the question."
        mark = interval_mark(a.estimate.value, a.estimate.interval, (a.zone.low, a.zone.high), text)
        n = f"{a.estimate.n} {a.units}"
        found.append(
            VerdictRow(question, chip, KINDS[a.verdict], text, mark, n, meaning, f"{a.level} · exploratory")
        )
    return found


def _image_row(finding: ImageFinding) -> VerdictRow:
    estimate, pooled = finding.within_class, finding.pooled
    interval = estimate.interval
    chip, kind = "cannot tell", "open"
    if interval is not None and (interval[0] > 0.5 or interval[1] < 0.5):
        chip, kind = ("yes", "yes") if interval[0] > 0.5 else ("no: the other way", "yes")
    elif interval is not None and interval[0] > 0.45 and interval[1] < 0.55:
        chip, kind = "no larger than 0.05", "small"
    if estimate.value is None:
        text = f"not estimable: {estimate.note}"
    else:
        ends = "no interval"
        if interval is not None:
            low, high = (f"{end:.{digits_on_side(end, (0.45, 0.5, 0.55), 2)}f}" for end in interval)
            ends = f"95% interval {low} to {high}"
        text = f"AUROC {estimate.value:.2f}, {ends}"
    shift = None if interval is None else (interval[0] - 0.5, interval[1] - 0.5)
    mark = interval_mark(None if estimate.value is None else estimate.value - 0.5, shift, (-0.05, 0.05), text)
    meaning = "Among images of one class; 0.5 is chance."
    if pooled.value is not None:
        meaning += f" Over all classes {pooled.value:.2f}, which hard classes explain in part."
    return VerdictRow(
        "Do corruptions flip images with a larger local constant more often?", chip, kind, text, mark,
        f"{finding.images} images", meaning, f"{finding.layer} · exploratory",
    )  # fmt: skip


def model_findings(
    answered: Answered, model: HierarchicalEffect | None, through: Mediation | None
) -> list[str]:
    """What the hierarchical model and the mediation add, in words that claim no more than they can."""
    parts = (("hierarchical model", model), ("mediation", through))
    found = [f"The {name} ({CREDIT.name}): {part.note}." for name, part in parts if part and part.note]
    row = answered.verdicts.find("corruption", CREDIT)
    if model is not None and model.points is not None and row is not None:
        verdict = decide(model.points_interval, row.zone)
        sign = int(np.sign(model.points)) if verdict is Verdict.YES else 0
        zone = {Verdict.NO_LARGER: f" {zone_text(row.zone, ratio=False)}"}
        same = "as the paired analysis does"
        if (verdict, sign) != (row.verdict, row.direction):
            word = row.word and f", {row.word}"
            same = f"where the paired analysis says {row.verdict}{zone.get(row.verdict, word)}"
        text = value_text(model.points, model.points_interval, ratio=False, zone=row.zone)
        found.append(
            f"Corruption accuracy ({CREDIT.name}) by a hierarchical model of every correctness bit (seed, run, image "
            f"and corruption as groups): {text}: {verdict}{zone.get(verdict, '')}, {same}."
        )
    if through is not None and through.value is not None:
        text = value_text(through.value, through.interval, ratio=False)
        undo = ""
        if through.robustness is not None:
            share = f"{100 * through.robustness:.0f}%"
            undo = f" A common cause that explains {share} of what is left of both would bring the slope to zero."
        found.append(
            f"If smoothness of the features is how compression acts on corruption accuracy, {text} run through it. "
            f"Smoothness was not set but observed, so this is an association.{undo}"
        )
    return found


def findings(answered: Answered) -> list[str]:
    """Details of the headline: smoothness at three layers, clean accuracy, dose-response."""
    found = []
    places = [
        answered.verdicts.find(key, CREDIT) or answered.verdicts.find(key, PLAIN)
        for key in ("latent", "features", "logits")
    ]
    told = [f"{r.outcome.label.removeprefix('σ of ')} {shown_value(r)}" for r in places if r is not None]
    if len(told) > 1:
        contrast = next(r for r in places if r is not None).contrast.name
        found.append(
            f"Smoothness ({contrast}): {'; '.join(told)}. The probe reads the features, not the latent."
        )
    for key in ("clean", "corruption"):
        row = answered.verdicts.find(key, CREDIT) or answered.verdicts.find(key, PLAIN)
        if row is not None:
            found.append(f"{row.outcome.label.capitalize()} ({row.contrast.name}): {shown_value(row)}.")
    for a in answered.associations:
        if a.units == "seeds":
            ratio = a.y.startswith("log")
            text = value_text(a.estimate.value, a.estimate.interval, ratio=ratio, zone=a.zone)
            found.append(
                f"{a.level}: {a.y.removeprefix('log ').removesuffix(', points')} {text} per tenfold β "
                f"({a.estimate.n} seeds)."
            )
    return found
