"""The answer in words: one sentence that answers, then one a finding; each with its interval, n and p-value."""

from collections.abc import Sequence

import numpy as np

from analyses.page.page import Answer
from analyses.paired_study.answer import (
    ALL_MODELS,
    ALL_PAIRS,
    ALPHA,
    ROBUSTNESS,
    SMOOTHNESS,
    Association,
    Effect,
    ImageFinding,
    is_present,
)
from analyses.paired_study.study import CONTRASTS
from lipcomp.statistics import Estimate


def answer(effects: Sequence[Effect], found: Sequence[Association], images: Sequence[ImageFinding]) -> Answer:
    """The words that open the report."""
    by_key = {(effect.contrast, effect.column): effect for effect in effects}
    contrast = next(
        (
            name
            for name in (ALL_PAIRS, *(c.name for c in CONTRASTS if c.compression))
            if (name, "sigma") in by_key
        ),
        None,
    )
    findings, verdicts = [], []
    if contrast is None:
        verdicts.append("there is no compressed-uncompressed pair among these models, so no paired effect")
    else:
        smooth = by_key[contrast, "sigma"]
        verdicts.append(_verdict(smooth, "compression made these encoders", "smoother", "less smooth", -1))
        findings.append(_smoothness(smooth))
        control = by_key.get(("C-SimCLR − SimCLR ×(1+β)", "sigma"))
        if control is not None and control.estimate.value is not None:
            verdicts.append(_credit(control))
        robust = [
            (by_key[contrast, column], words)
            for column, words in (("corruption", "under corruptions"), ("shift", "under the natural shift"))
            if (contrast, column) in by_key
        ]
        verdicts += [
            _verdict(e, "compression made them", f"more accurate {w}", f"less accurate {w}", 1)
            for e, w in robust
        ]
        findings += [_robustness(effect, words) for effect, words in robust]
        if control is not None and control.estimate.value is not None:
            findings.append(_control(control, by_key.get(("SimCLR ×(1+β) − SimCLR", "sigma"))))
    main = [a for a in found if a.x == SMOOTHNESS["sigma"] and a.y == ROBUSTNESS["corruption"]]
    findings += [_association(a) for a in main]
    link = next((a for a in main if "fixed" in a.level and a.estimate.value is not None), None)
    if link is not None:
        verdicts.append(_link(link.estimate))
    if images:
        findings.append(_image(images))
    headline = "; ".join(verdicts)
    return Answer(headline[:1].upper() + headline[1:] + ".", findings)


def numbers(estimate: Estimate, form: str = "{:+.2f}") -> str:
    """Interval, n and p-value in words ("95% interval a to b, n = 6, p = 0.03"), with what is missing said."""
    parts = []
    if estimate.interval is not None:
        parts.append("95% interval " + " to ".join(form.format(end) for end in estimate.interval))
    else:
        parts.append("no interval can be given")
    parts.append(f"n = {estimate.n}")
    if estimate.p_value is not None:
        parts.append(f"p = {estimate.p_value:.2g}")
    if not is_present(estimate) and estimate.smallest_p is not None and estimate.smallest_p > ALPHA:
        parts.append(f"and with so few no p below {estimate.smallest_p:.2g} is possible")
    return ", ".join(parts)


def _verdict(effect: Effect, who: str, better: str, worse: str, sign: int) -> str:
    """One clause of the headline: yes, the other way round, or not enough evidence."""
    estimate = effect.estimate
    if estimate.value is None or estimate.interval is None:
        return f"whether {who} {better} cannot be estimated from {estimate.n} pair{'s' if estimate.n != 1 else ''}"
    if effect.logarithm:
        value, low, high = (100 * (np.exp(v) - 1) for v in (estimate.value, *estimate.interval))
        shown = f"σ_max {value:+.0f}%, 95% interval {low:+.0f}% to {high:+.0f}%, {estimate.n} pairs"
    else:
        low, high = estimate.interval
        shown = f"{estimate.value:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}, {estimate.n} pairs"
    if effect.present:
        return f"{who} {better if sign * estimate.value > 0 else worse} ({shown})"
    return f"there is not enough evidence that {who} {better} ({shown})"


def _credit(control: Effect) -> str:
    """Whether what C-SimCLR changes is more than what re-weighting the positive pair changes."""
    estimate = control.estimate
    change = f"σ_max {100 * (np.exp(control.value) - 1):+.0f}%"
    if estimate.interval is not None:
        low, high = (100 * (np.exp(v) - 1) for v in estimate.interval)
        change += f", 95% interval {low:+.0f}% to {high:+.0f}%"
    change += f", {estimate.n} pair{'s' if estimate.n != 1 else ''}"
    if control.present:
        word = "smoother" if control.value < 0 else "less smooth"
        return f"C-SimCLR is {word} than its control, SimCLR with the positive pair weighted 1 + β ({change})"
    return f"C-SimCLR cannot be told apart from its control, SimCLR with the positive pair weighted 1 + β ({change})"


def _link(estimate: Estimate) -> str:
    """The headline's clause on smoothness and robustness across models."""
    shown = f"{estimate.name} {estimate.value:+.2f}, {numbers(estimate)}"
    if is_present(estimate):
        word = "more" if (estimate.value or 0) < 0 else "less"
        return f"at equal clean accuracy the smoother models are the {word} accurate ones under corruptions ({shown})"
    return f"and that smoothness goes with robustness at equal clean accuracy is not shown ({shown})"


def _smoothness(effect: Effect) -> str:
    if effect.estimate.value is None:
        return f"Whether compression makes the encoder smoother cannot be estimated: {effect.estimate.note}."
    change = 100 * (np.exp(effect.value) - 1)
    shown = numbers(effect.estimate, "{:+.2f}")
    if effect.present:
        word = "smoother" if effect.value < 0 else "less smooth"
        return (
            f"Compression made the encoder {word}: its median local Lipschitz constant changed by {change:+.0f}% "
            f"(log ratio {effect.value:+.2f}, {shown})."
        )
    return (
        f"There is not enough evidence that compression changes smoothness: the median local Lipschitz constant "
        f"differs by {change:+.0f}% (log ratio {effect.value:+.2f}, {shown})."
    )


def _robustness(effect: Effect, words: str) -> str:
    if effect.estimate.value is None:
        return (
            f"Whether it makes the encoder more accurate {words} cannot be estimated: {effect.estimate.note}."
        )
    shown = numbers(effect.estimate, "{:+.1f}")
    if effect.present:
        word = "more" if effect.value > 0 else "less"
        return f"It made the encoder {word} accurate {words}: {effect.value:+.1f} points ({shown})."
    if effect.detectable:
        shown += f"; an effect of {effect.detectable:.1f} would have been found with 80%"
    return f"There is not enough evidence that it changes accuracy {words}: {effect.value:+.1f} points ({shown})."


def _control(control: Effect, weight: Effect | None) -> str:
    beyond = f"log ratio {control.value:+.2f}, {numbers(control.estimate)}"
    alone = (
        f"; re-weighting alone moves it by {weight.value:+.2f}, {numbers(weight.estimate)}"
        if weight is not None and weight.estimate.value is not None
        else ""
    )
    verdict = "differs" if control.present else "cannot be told apart"
    return (
        f"Against SimCLR with the positive pair weighted 1 + β, the control that has C-SimCLR's gradient without its "
        f"noise, C-SimCLR's smoothness {verdict} ({beyond}{alone})."
    )


def _association(association: Association) -> str:
    estimate = association.estimate
    level = association.level[:1].upper() + association.level[1:]
    if estimate.value is None:
        return f"{level}, the association is not estimable: {estimate.note}."
    shown = f"{estimate.name} {estimate.value:+.2f}, {numbers(estimate)}"
    if not is_present(estimate):
        return f"{level}, there is not enough evidence that smoothness goes with accuracy under corruptions ({shown})."
    word = "more" if estimate.value < 0 else "less"
    return f"{level}, smoother goes with {word} accurate under corruptions ({shown})."


def _image(images: Sequence[ImageFinding]) -> str:
    whole, single = images[0], [f for f in images if f.run != ALL_MODELS]
    clear = sum(f.estimate.interval is not None and f.estimate.interval[0] > 0.5 for f in single)
    inverse = sum(f.estimate.interval is not None and f.estimate.interval[1] < 0.5 for f in single)
    if whole.estimate.value is None:
        return f"Across the images of a model the association is not estimable: {whole.estimate.note}."
    interval = whole.estimate.interval
    word = "does not tell"
    if interval is not None and (interval[0] > 0.5 or interval[1] < 0.5):
        word = "tells" if interval[0] > 0.5 else "tells, in the unexpected direction,"
    return (
        f"Within a model, a larger local constant at an image {word} that corruptions change its prediction: AUROC "
        f"{whole.estimate.value:.2f} ({numbers(whole.estimate, '{:.2f}')}; the interval lies above 0.5 in {clear} "
        f"and below it in {inverse} of {len(single)} models).{_odds(whole)}"
    )


def _odds(whole: ImageFinding) -> str:
    odds = whole.odds
    if odds is None or odds.odds_ratio is None or odds.odds_interval is None:
        return ""
    low, high = odds.odds_interval
    return (
        f" A standard deviation of log σ_max multiplies the odds by {odds.odds_ratio:.2f} (95% interval {low:.2f} to "
        f"{high:.2f}, logistic regression, errors clustered by image and by model)."
    )
