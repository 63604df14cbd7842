"""The answer of a study as data: verdicts, credits, associations, cautions. Text and figures are made from it."""

from dataclasses import dataclass

import pandas as pd

from analyses.paired_study.associations import (
    Association,
    ImageFinding,
    associations,
    dose_response,
    image_findings,
    on_main_data,
)
from analyses.paired_study.frames import Study
from analyses.paired_study.pairs import WITHIN
from analyses.paired_study.study import CREDIT, PLAIN
from analyses.paired_study.verdicts import OUTCOMES, Credit, Verdicts, credits, judge
from analyses.runs import PLACES

# Columns of the models' table that the primary outcomes are made of -> what they are called.
LACKING = {"features": "σ of the features", "corruption": "Corruption accuracy", "clean": "Clean accuracy"}
# Where a value comes from, as far as it may change it.
MACHINE = [f"provenance.{name}" for name in ("device", "precision", "torch", "lipcomp")]


@dataclass(frozen=True)
class Answered:
    """A study's answer."""

    verdicts: Verdicts  # every outcome of every contrast
    credits: list[Credit]  # the primary outcomes, with what may be credited to compression
    associations: list[Association]  # whether smoothness and robustness go together across runs
    images: list[ImageFinding]  # the same across the images of a model
    cautions: list[str]  # what a reader must know before believing any of it


def answer_study(study: Study) -> Answered:
    """Everything that a study's records say."""
    verdicts = judge(study)
    return Answered(
        verdicts,
        credits(verdicts, study.design),
        associations(study) + dose_response(study),
        image_findings(study.images, on_main_data(study).models.index),
        cautions(study, verdicts),
    )


def cautions(study: Study, verdicts: Verdicts) -> list[str]:
    """What limits the study as a whole, most important first."""
    found = []
    if study.plan.get("preset") == "quick":
        found.append("Smoke test: few epochs. The results are not meaningful.")
    if not study.design.written:
        late = (study.plan.get("design") or {}).get("written")
        why = (
            f"The design was written on {late}, after the first value"
            if late
            else "No design was written before the data"
        )
        if study.redesigned:
            why = f"The design was changed after the study was measured ({'; '.join(study.redesigned)})"
        found.append(f"{why}, so every verdict here is exploratory.")
    if len(study.looks) > study.design.looks:
        found.append(
            f"Measured with {', '.join(map(str, study.looks))} seeds, so it may have been looked at {len(study.looks)} "
            f"times; the design plans for {study.design.looks} looks at most. A false yes is more likely than the "
            f"intervals say."
        )
    primary = verdicts.find(study.design.primary[0], CREDIT)
    if primary is None and verdicts.find(study.design.primary[0], PLAIN) is not None:
        found.append(
            f"There is no pair of {study.design.treated} and its control {study.design.control}, so no effect can be "
            f"credited to compression."
        )
    kinds = sorted(set(map(str, study.corruptions["corruption"])))
    lost = [
        o.label
        for o in OUTCOMES
        if o.key in study.design.primary
        and not (verdicts.find(o.key, CREDIT) or verdicts.find(o.key, PLAIN))
        and not (o.key == "given_clean" and kinds and not study.informative)
    ]
    if lost and any(r.contrast in (CREDIT, PLAIN) for r in verdicts.rows):
        found.append(f"Not measured, so without a verdict: {', '.join(lost)}.")
    if study.again:
        found.append(
            f"Measured again, with other images or settings, and changed: {study.again} of the values. The last ones "
            f"count."
        )
    found += _measured_otherwise(study)
    found += study.measured.cautions()
    left_out = (*study.measured.removed, *study.measured.replaced, *study.measured.diverged)
    known = {*study.models.index, *study.collapsed, *left_out}
    missing = sorted(set(study.plan.get("runs", {})) - known)
    if missing:
        found.append(f"{_count(missing, 'planned run')} not measured: {', '.join(missing)}.")
    if study.collapsed:
        told = "; ".join(f"{run} ({why})" for run, why in study.collapsed.items())
        found.append(
            f"{_count(list(study.collapsed), 'run')} collapsed and left out: {told}. If collapse depends on the "
            "method, the effects hold only for runs that do not collapse."
        )
    seeded = study.models[study.models["seed"].notna()]
    for column, name in LACKING.items():
        empty = seeded.index[seeded[column].isna()]
        if 0 < len(empty) < len(seeded):
            found.append(f"{name} was not measured for {', '.join(map(str, empty))}.")
    if verdicts.refused:
        shown = "; ".join(verdicts.refused[:4]) + ("; ..." if len(verdicts.refused) > 4 else "")
        runs = tuple({reason.partition(" is not paired")[0] for reason in verdicts.refused})
        found.append(f"{_count(runs, 'run')} without a matching partner: {shown}.")
    if verdicts.strata:
        found.append(
            f"The folder holds several kinds of runs, which are never mixed: {'; '.join(verdicts.strata)}. The "
            "headline is on the first."
        )
    if dull := [name for name in kinds if name not in study.informative]:
        rest = "left out of the mean" if study.informative else "no verdict on corruption accuracy"
        found.append(f"{', '.join(dull)}: at chance for every run; {rest}, by a rule of the design.")
    found += [
        f"The verdict on {r.outcome.label} ({r.contrast.name}) depends on seed {r.fragile.removesuffix('.0')}: "
        f"without it, the verdict changes."
        for r in verdicts.rows
        if r.fragile
    ]
    return found


def _measured_otherwise(study: Study) -> list[str]:
    """What sets the compared runs apart beside the method: their beta, machine, versions, or what was kept of them."""
    found = []
    models, frame = study.models, study.frame
    betas = models.loc[models["method"] == study.design.treated, "beta"].dropna().unique()
    if len(betas) > 1 and study.design.beta not in betas:
        told = ", ".join(f"{b:g}" for b in sorted(betas))
        found.append(
            f"No run has β = {study.design.beta:g}, which the design compares at; means over β = {told} are compared."
        )
    for name, held in _unlike(frame[frame["subject.run"].isin(models.index)], models).items():
        each = "; ".join(f"{method}: {', '.join(values)}" for method, values in held.items())
        found.append(f"The methods were not measured alike ({name}), which may explain differences. {each}.")
    bare = models.index[
        models["seed"].notna() & models["corruption"].notna() & ~models.index.isin(list(study.bits))
    ]
    if len(bare):
        found.append(
            f"{_count(list(bare), 'run')} without correctness bits: intervals of accuracies leave out the sampling of "
            f"test images as far as no seed has them."
        )
    return found


def _unlike(frame: pd.DataFrame, models: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """In what values of one quantity, setting and seed differ between methods: field -> method -> what it has."""
    method, seed = (frame["subject.run"].map(models[name]) for name in ("method", "seed"))
    fields = {"images": frame["quantity"].where(frame["n"].notna()) + frame["n"].map(" of {:.0f}".format)}
    fields["unit"] = frame["unit"].where(frame["unit"] != "")
    for column in map(str, frame):
        group, _, name = column.partition(".")
        if (group == "settings" and name not in (*PLACES, "images", "note")) or column in MACHINE:
            fields["test images" if name == "data_hash" else name] = frame[column]
    settings = [f"settings.{p}" for p in PLACES if f"settings.{p}" in frame]
    kind = [frame["subject.run"].map(models[field]) for field in WITHIN]  # others are not compared
    place = frame.groupby(["quantity", *settings, seed, *kind], dropna=False, sort=False).ngroup()
    found = {}
    for name, values in fields.items():
        text = values.astype(str).where(values.notna())
        odd = seed.notna() & (text.groupby(place).transform("nunique") > 1)
        if odd.any():
            found[name] = {
                str(m): [v if len(v) < 60 else f"{v[:57]}..." for v in sorted(set(own.dropna()))[:3]]
                for m, own in text[odd].groupby(method[odd], sort=False)
            }
    return found


def _count(things: list[str] | tuple[str, ...], name: str) -> str:
    return f"{len(things)} {name}{'s' if len(things) != 1 else ''}"
