"""Studies as they should not be: damaged designs, outcomes without spread, numbers at the edge of a verdict."""

import json

import numpy as np
import pytest

from analyses.paired_study.answer import answer_study
from analyses.paired_study.design import Design, design_text, read_design
from analyses.paired_study.frames import load_study
from analyses.paired_study.methods import methods_text
from analyses.paired_study.study import CREDIT, PLAIN, models_table, read_plan
from analyses.paired_study.words import headline, model_findings, number_text, value_text, verdict_rows
from lipcomp.records import Record, to_frame
from lipcomp.statistics._hierarchical import HierarchicalEffect
from lipcomp.statistics._verdict import Verdict


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("treated", "C-BYOL"),
        ("control", "C-SimCLR"),
        ("primary", []),
        ("primary", ["latent"]),
        ("primary", ["features", "features"]),
        ("zone_sigma", 0),
        ("zone_sigma", 1.0),
        ("zone_accuracy", -1.0),
        ("zone_accuracy", float("nan")),
        ("chance_margin", -1),
        ("collapse_margin", float("nan")),
        ("beta", -1.0),
        ("looks", 0),
        ("level", 95),
        ("primary_level", 0),
        ("clean_slope", [1]),
        ("clean_slope", [2, 0]),
        ("clean_slope", ["0", "2"]),
        ("written", "before"),
        ("written", "2026-01-01"),
    ],
)
def test_a_design_that_cannot_be_judged_by_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"study.json: the design's {field} is .*; it must be "):
        read_design({"design": {field: value}})


def test_a_design_written_after_the_first_value_makes_nothing_primary(altered, planted, tmp_path):
    def timed(record):
        return {**record, "provenance": {"time": "2026-01-02T00:00:00+00:00"}}

    planted(tmp_path)
    _, found = altered(tmp_path, timed, written="2026-01-01T23:59:59+00:00")
    assert sum(r.primary for r in found.verdicts.rows) == 2
    study, found = altered(tmp_path, timed, written="2026-01-02T01:00:00+01:00")
    assert study.design.written
    study, found = altered(tmp_path, timed, written="2026-01-02T00:00:01+00:00")
    assert not any(r.primary for r in found.verdicts.rows)
    assert "written on 2026-01-02T00:00:01+00:00, after the first value" in found.cautions[0]


def test_a_design_changed_after_measuring_makes_nothing_primary(altered, planted, tmp_path):
    """A zone that was widened to fit the data stayed "named before the data"."""
    planted(tmp_path)
    kept = design_text(read_design(read_plan(tmp_path)))
    tried = design_text(Design(zone_accuracy=2.0))
    told = iter([kept, kept])  # at first; more seeds were measured with another, which was taken back

    def measured(record):
        return {**record, "provenance": {"design": next(told, tried)}}

    _, found = altered(tmp_path, measured)
    assert sum(r.primary for r in found.verdicts.rows) == 2
    study, found = altered(tmp_path, zone_accuracy=3.0)
    assert not any(r.primary for r in found.verdicts.rows)
    assert "changed after the study was measured (zone_accuracy was 1.0, is 3.0)" in found.cautions[0]
    assert methods_text(study)[0].startswith("Design. It was changed after the data.")


def test_a_beta_of_float32_is_the_same_beta(altered, planted, tmp_path):
    def rounded(record):
        if "beta" in record["subject"] and record["subject"]["objective"] == "CSimCLR":
            record["subject"]["beta"] = float(np.float32(record["subject"]["beta"])) * (1 + 1e-8)
        return record

    planted(tmp_path, "dose-response")
    before = answer_study(load_study(tmp_path))
    study, found = altered(tmp_path, rounded)
    assert set(study.models["beta"].dropna()) == {0.1, 1.0, 10.0}
    assert found.verdicts.find("features", CREDIT) == before.verdicts.find("features", CREDIT)
    assert [a.estimate.value for a in found.associations] == [a.estimate.value for a in before.associations]


def test_a_beta_of_zero_has_no_place_on_a_logarithmic_axis(altered, planted, tmp_path):
    def zero(record):
        if record["subject"].get("beta") == 0.1:
            record["subject"]["beta"] = 0.0
        return record

    planted(tmp_path, "dose-response")
    _, found = altered(tmp_path, zero)
    assert not any("over β" in a.level for a in found.associations)


def test_equal_differences_of_counts_are_no_certainty(altered, planted, tmp_path):
    """Two seeds with a gain of one image each: a yes with an interval of width 0 was wrong in 8% of null studies."""

    def counted(record):
        if record["quantity"] == "accuracy.clean":
            record["value"] = 0.98 if record["subject"]["objective"] == "CBYOL" else 0.97
        return record

    planted(tmp_path, seeds=2, triple=False)
    for file in (tmp_path / "bits").iterdir():
        file.unlink()
    _, found = altered(tmp_path, counted)
    row = next(r for r in found.verdicts.rows if r.contrast.treated == "C-BYOL" and r.outcome.key == "clean")
    assert row.effect.value == pytest.approx(1.0)
    assert row.effect.interval is None
    assert row.verdict is Verdict.CANNOT_TELL
    assert "do not vary" in row.note
    assert row.needed is None  # nothing is known of the spread
    assert any("without correctness bits" in c for c in found.cautions)


def test_seeds_without_bits_do_not_take_the_images_error_from_the_others(altered, planted, tmp_path):
    planted(tmp_path)
    whole = answer_study(load_study(tmp_path)).verdicts.find("corruption", CREDIT).effect.shared
    (tmp_path / "bits" / "C-SimCLR-0.npz").unlink()
    _, found = altered(tmp_path)
    assert found.verdicts.find("corruption", CREDIT).effect.shared == pytest.approx(whole, rel=0.5)
    assert any("1 run without correctness bits" in c for c in found.cautions)


def test_corruptions_that_are_all_at_chance_are_no_equivalence(altered, planted, tmp_path):
    """The mean over all was taken then, and differences of a floor were "no larger than 1 point"."""

    def floor(record):
        chance = 0.1 + 1e-4 * (len(record["subject"]["run"]) + record["subject"]["seed"])
        return record | {"value": chance} if record["quantity"].startswith("accuracy.corr") else record

    planted(tmp_path)
    study, found = altered(tmp_path, floor)
    assert study.informative == ()
    assert not [r for r in found.verdicts.rows if r.outcome.key in ("corruption", "given_clean")]
    assert found.cautions == [
        "blur, fog, glass, noise, rotate, shear, snow, spatter: at chance for every run; no verdict on "
        "corruption accuracy, by a rule of the design."
    ]


def test_a_primary_outcome_that_was_not_measured_is_named(altered, planted, tmp_path):
    planted(tmp_path)
    _, found = altered(tmp_path, lambda r: None if r["quantity"] == "accuracy.clean" else r)
    assert (
        "Not measured, so without a verdict: corruption accuracy at equal clean accuracy." in found.cautions
    )


def test_a_study_of_collapsed_runs_has_no_verdict_and_no_error(altered, planted, tmp_path):
    planted(tmp_path, seeds=2)
    study, found = altered(tmp_path, lambda r: {**r, "value": 0.0})
    assert study.collapsed.keys() == study.plan["runs"].keys()
    assert not len(study.pairs.main)
    assert headline(found, study.design).startswith("There is no pair")


def test_a_headline_without_primary_outcomes_does_not_deny_other_pairs(altered, planted, tmp_path):
    planted(tmp_path, seeds=1)
    study, found = altered(
        tmp_path, lambda r: {**r, "value": 0.0} if r["subject"]["objective"] == "CSimCLR" else r
    )
    said = headline(found, study.design)
    assert said.startswith(
        "There is no pair of a C-SimCLR and an uncompressed run here, so the primary outcomes"
    )
    assert "C-BYOL − BYOL is exploratory" in said
    assert not any("Not measured" in c for c in found.cautions)
    planted(tmp_path / "other", seeds=1)
    study, found = altered(
        tmp_path / "other",
        lambda r: None if r["settings"].get("layer") == "backbone" or "clean" in r["quantity"] else r,
    )
    assert headline(found, study.design) == "The primary outcomes were not measured, so they have no verdict."


def test_what_is_no_larger_without_a_control_is_not_called_beyond_it(altered, planted, tmp_path):
    planted(tmp_path, "negligible", seeds=8)
    study, found = altered(tmp_path, lambda r: None if r["subject"]["objective"] == "WeightedSimCLR" else r)
    row = found.verdicts.find("features", PLAIN)
    assert row.verdict is Verdict.NO_LARGER
    said = headline(found, study.design)
    assert "eyond its control" not in said
    assert said.startswith("C-SimCLR − SimCLR in the smoothness of the probed features: no larger than 10%")


def test_an_association_is_judged_and_drawn_by_the_zone_of_the_design(altered, planted, tmp_path):
    planted(tmp_path)
    _, found = altered(tmp_path, zone_accuracy=50.0)
    row = next(r for r in verdict_rows(found) if "from run to run" in r.role)
    assert row.chip == "no larger than 50 points"
    assert 'class="zone" x="6.0"' in row.mark  # the zone is as wide as the drawing


@pytest.mark.parametrize(
    ("value", "interval", "ratio", "said"),
    [
        (-0.003, (-0.05, 0.05), True, "−0.3%, 95% interval −5% to +5%"),
        (0.08, (0.002, 0.16), True, "+8%, 95% interval +0.2% to +17%"),
        (0.5, (0.03, 1.0), False, "+0.5 points, 95% interval +0.03 to +1.0"),
        (-1e-9, (-1.0, 0.0), False, "0 points, 95% interval −1.0 to 0"),
        (200.0, (-1.0, 1e4), True, "over +1,000,000%, 95% interval −63% to over +1,000,000%"),
    ],
)
def test_a_number_shows_on_which_side_of_zero_it_lies(value, interval, ratio, said):
    assert value_text(value, interval, ratio=ratio) == said


@pytest.mark.parametrize(
    ("end", "ratio", "said"),
    [
        (np.log(1.104), True, "+10.4%"),
        (np.log(1.096), True, "+9.6%"),
        (np.log(1.1), True, "+10%"),
        (np.log(0.896), True, "−10.4%"),
        (0.96, False, "+0.96"),
        (1.04, False, "+1.04"),
        (1.0, False, "+1.0"),
        (-1.0001, False, "−1.0001"),
    ],
)
def test_a_number_shows_on_which_side_of_the_zone_it_lies(end, ratio, said):
    """“−5% to +10%” was no larger than 10% once, and once it could not tell."""
    zone = Design().sigma if ratio else Design().accuracy
    assert number_text(float(end), ratio=ratio, zone=zone) == said


def test_another_sign_is_not_what_the_paired_analysis_says(planted, tmp_path):
    planted(tmp_path)
    found = answer_study(load_study(tmp_path))
    row = found.verdicts.find("corruption", CREDIT)
    assert row.word == "more accurate"
    model = HierarchicalEffect("", -0.2, None, None, 5, "", points=-4.0, points_interval=(-6.0, -2.0))
    assert model_findings(found, model, None)[0].endswith(
        ": yes, where the paired analysis says yes, more accurate."
    )
    model = HierarchicalEffect("", 0.2, None, None, 5, "", points=4.0, points_interval=(2.0, 6.0))
    assert model_findings(found, model, None)[0].endswith(": yes, as the paired analysis does.")
    model = HierarchicalEffect("", 0.0, None, None, 5, "", points=0.0, points_interval=(-0.5, 0.5))
    assert ": no larger than 1 point, where the paired" in model_findings(found, model, None)[0]
    failed = HierarchicalEffect("", None, None, None, 1, "", note="the fit failed (singular)")
    assert model_findings(found, failed, None) == [
        "The hierarchical model (C-SimCLR − SimCLR ×(1+β)): the fit failed (singular)."
    ]


def test_all_models_are_tabled_at_the_common_concentrations():
    names = {"residual_information": "residual", "residual_excess": "excess", "i_yz": "i_yz"}
    records = [
        Record(
            f"compression.{name}",
            value,
            subject={"run": "a", "objective": "CSimCLR"},
            settings={"kappa": kappa},
        )
        for name in names
        for kappa, value in (("common", 1.0), ("own", 2.0))
    ]
    assert models_table(to_frame(records))[[*names.values()]].iloc[0].tolist() == [1.0, 1.0, 1.0]


def test_accuracies_in_percent_are_refused(altered, planted, tmp_path):
    """Beside shares they were a difference of −2,610 points."""

    def percent(record):
        share = (
            100
            if record["subject"]["objective"] == "CSimCLR" and record["quantity"] == "accuracy.clean"
            else 1
        )
        return record | {"value": share * record["value"]}

    planted(tmp_path)
    with pytest.raises(
        ValueError, match=r"accuracy\.clean of C-SimCLR-\d is 9.*; an accuracy must be a share"
    ):
        altered(tmp_path, percent)


@pytest.mark.parametrize(
    ("looks", "told"), [((1, 2, 3, 5), False), ((1, 1, 2, 3, 4, 5), True), ((5,) * 9, False)]
)
def test_more_looks_than_the_design_plans_are_told(planted, tmp_path, looks, told):
    """Seeds added one by one: each number of seeds is a look, however often it is measured or reported."""
    planted(tmp_path)
    file = tmp_path / "records.jsonl"
    by_seed = {seed: [] for seed in range(5)}
    for line in file.read_text().splitlines():
        by_seed[json.loads(line)["subject"]["seed"]].append(line.strip())
    lines = []
    for seeds in looks:
        lines += [line for seed in range(seeds) for line in by_seed.pop(seed, [])]
        lines.append(Record("time.wall", 1.0, "s", settings={"stage": "measure"}).to_json())
    file.write_text("\n".join(lines) + "\n")
    study = load_study(tmp_path)
    assert study.looks == tuple(sorted(set(looks)))
    assert any("looked at 5 times; the design plans for 4" in c for c in answer_study(study).cautions) == told
