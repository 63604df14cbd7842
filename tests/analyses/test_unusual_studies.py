"""Studies as they should not be: damaged designs, runs that differ in more than the method, outcomes without spread."""

import json

import numpy as np
import pytest

from analyses.paired_study import drawings
from analyses.paired_study.answer import answer_study
from analyses.paired_study.associations import bits_model, through_smoothness
from analyses.paired_study.design import Design, design_text, read_design
from analyses.paired_study.drawings import build_figures
from analyses.paired_study.frames import load_study
from analyses.paired_study.methods import methods_text
from analyses.paired_study.pairs import Pairing
from analyses.paired_study.study import CREDIT, PLAIN, models_table, read_plan
from analyses.paired_study.tables import build_tables
from analyses.paired_study.words import headline, model_findings, number_text, value_text, verdict_rows
from lipcomp.records import Record, to_frame
from lipcomp.statistics._hierarchical import HierarchicalEffect
from lipcomp.statistics._verdict import Verdict


def altered(folder, change, **design):
    """The answer of a planted study with every record changed (or left out, by None), and some of its design."""
    file, plan = folder / "records.jsonl", folder / "study.json"
    changed = (change(json.loads(line)) for line in file.read_text().splitlines())
    kept = [{k: v for k, v in record.items() if k != "identity"} for record in changed if record]
    file.write_text("".join(json.dumps(record) + "\n" for record in kept))
    told = json.loads(plan.read_text())
    plan.write_text(json.dumps({**told, "design": {**told["design"], **design}}))
    study = load_study(folder)
    return study, answer_study(study)


def same(record):
    return record


def of(method):
    return lambda record: record["subject"]["objective"] == method


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


def test_a_design_written_after_the_first_value_makes_nothing_primary(planted, tmp_path):
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


def test_a_design_changed_after_measuring_makes_nothing_primary(planted, tmp_path):
    """A zone that was widened to fit the data stayed "named before the data"."""
    planted(tmp_path)
    kept = design_text(read_design(read_plan(tmp_path)))
    tried = design_text(Design(zone_accuracy=2.0))
    told = iter([kept, kept])  # at first; more seeds were measured with another, which was taken back

    def measured(record):
        return {**record, "provenance": {"design": next(told, tried)}}

    _, found = altered(tmp_path, measured)
    assert sum(r.primary for r in found.verdicts.rows) == 2
    study, found = altered(tmp_path, same, zone_accuracy=3.0)
    assert not any(r.primary for r in found.verdicts.rows)
    assert "changed after the study was measured (zone_accuracy was 1.0, is 3.0)" in found.cautions[0]
    assert methods_text(study)[0].startswith("Design. It was changed after the data.")


def test_a_beta_of_float32_is_the_same_beta(planted, tmp_path):
    def rounded(record):
        if "beta" in record["subject"] and of("CSimCLR")(record):
            record["subject"]["beta"] = float(np.float32(record["subject"]["beta"])) * (1 + 1e-8)
        return record

    planted(tmp_path, "dose-response")
    before = answer_study(load_study(tmp_path))
    study, found = altered(tmp_path, rounded)
    assert set(study.models["beta"].dropna()) == {0.1, 1.0, 10.0}
    assert found.verdicts.find("features", CREDIT) == before.verdicts.find("features", CREDIT)
    assert [a.estimate.value for a in found.associations] == [a.estimate.value for a in before.associations]


def test_a_beta_of_zero_has_no_place_on_a_logarithmic_axis(planted, tmp_path):
    def zero(record):
        if record["subject"].get("beta") == 0.1:
            record["subject"]["beta"] = 0.0
        return record

    planted(tmp_path, "dose-response")
    _, found = altered(tmp_path, zero)
    assert not any("over β" in a.level for a in found.associations)


def test_another_beta_is_refused_by_name_and_means_over_betas_are_told(planted, tmp_path):
    def other(record):
        if of("WeightedSimCLR")(record) and record["subject"]["beta"] == 1.0:
            return None
        return record

    planted(tmp_path, "dose-response")
    study, _ = altered(tmp_path, same, beta=0.5)
    assert any("No run has β = 0.5" in c and "0.1, 1, 10" in c for c in answer_study(study).cautions)
    study, _ = altered(tmp_path, other, beta=1.0)
    refused = Pairing(study.models, 1.0).of(CREDIT).refused
    assert len(refused) == 5
    assert all(reason.endswith("they differ in β") for reason in refused)


def test_methods_measured_on_different_machines_are_named(planted, tmp_path):
    planted(tmp_path)
    _, found = altered(
        tmp_path, lambda r: {**r, "provenance": {"device": "cuda" if of("CSimCLR")(r) else "cpu"}}
    )
    told = next(c for c in found.cautions if "not measured alike (device)" in c)
    assert "C-SimCLR: cuda" in told
    assert "SimCLR: cpu" in told


def test_equal_differences_of_counts_are_no_certainty(planted, tmp_path):
    """Two seeds with a gain of one image each: a yes with an interval of width 0 was wrong in 8% of null studies."""

    def counted(record):
        if record["quantity"] == "accuracy.clean":
            record["value"] = 0.98 if of("CBYOL")(record) else 0.97
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


def test_seeds_without_bits_do_not_take_the_images_error_from_the_others(planted, tmp_path):
    planted(tmp_path)
    whole = answer_study(load_study(tmp_path)).verdicts.find("corruption", CREDIT).effect.shared
    (tmp_path / "bits" / "C-SimCLR-0.npz").unlink()
    _, found = altered(tmp_path, same)
    assert found.verdicts.find("corruption", CREDIT).effect.shared == pytest.approx(whole, rel=0.5)
    assert any("1 run without correctness bits" in c for c in found.cautions)


def test_corruptions_that_are_all_at_chance_are_no_equivalence(planted, tmp_path):
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


def test_every_slope_is_asked_of_the_same_runs(planted, tmp_path):
    def partly(record):
        lost = record["quantity"] == "accuracy.clean" and record["subject"]["seed"] == 0
        return None if lost else record

    planted(tmp_path)
    _, found = altered(tmp_path, partly)
    assert found.verdicts.find("corruption", CREDIT).effect.n == 5
    effect = found.verdicts.find("given_clean", CREDIT).effect
    assert effect.n == 4
    assert effect.interval[0] < effect.value < effect.interval[1]
    assert any(c.startswith("Clean accuracy was not measured for SimCLR-0, ") for c in found.cautions)


def test_a_primary_outcome_that_was_not_measured_is_named(planted, tmp_path):
    planted(tmp_path)
    _, found = altered(tmp_path, lambda r: None if r["quantity"] == "accuracy.clean" else r)
    assert (
        "Not measured, so without a verdict: corruption accuracy at equal clean accuracy." in found.cautions
    )


def test_a_study_of_collapsed_runs_has_no_verdict_and_no_error(planted, tmp_path):
    planted(tmp_path, seeds=2)
    study, found = altered(tmp_path, lambda r: {**r, "value": 0.0})
    assert study.collapsed.keys() == study.plan["runs"].keys()
    assert not len(study.pairs.main)
    assert headline(found, study.design).startswith("There is no pair")


def test_a_headline_without_primary_outcomes_does_not_deny_other_pairs(planted, tmp_path):
    planted(tmp_path, seeds=1)
    study, found = altered(tmp_path, lambda r: {**r, "value": 0.0} if of("CSimCLR")(r) else r)
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


def test_what_is_no_larger_without_a_control_is_not_called_beyond_it(planted, tmp_path):
    planted(tmp_path, "negligible", seeds=8)
    study, found = altered(tmp_path, lambda r: None if of("WeightedSimCLR")(r) else r)
    row = found.verdicts.find("features", PLAIN)
    assert row.verdict is Verdict.NO_LARGER
    said = headline(found, study.design)
    assert "eyond its control" not in said
    assert said.startswith("C-SimCLR − SimCLR in the smoothness of the probed features: no larger than 10%")


def test_an_association_is_judged_and_drawn_by_the_zone_of_the_design(planted, tmp_path):
    planted(tmp_path)
    _, found = altered(tmp_path, same, zone_accuracy=50.0)
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


def test_bits_of_other_images_are_not_joined_in_one_model(planted, tmp_path):
    planted(tmp_path, seeds=2)
    assert bits_model(load_study(tmp_path)) is not None
    file = tmp_path / "bits" / "C-SimCLR-0.npz"
    held = dict(np.load(file))
    np.savez(file, **held | {"labels": held["labels"][::-1]})
    assert bits_model(load_study(tmp_path)) is None


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


def test_what_was_measured_again_on_other_images_is_not_mixed_with_what_it_was(planted, tmp_path):
    """Measured on 300 images, then on 1000: a gain of 4.5 points became a loss of 5.5."""
    planted(tmp_path)
    before = answer_study(load_study(tmp_path)).verdicts
    file = tmp_path / "records.jsonl"
    now = file.read_text().splitlines()
    first = [json.loads(line) for line in now if '"accuracy.corruption' in line]
    for record in first:
        record["settings"]["images"] = 300
        record["value"] *= 0.5 if of("CSimCLR")(record) else 1.0
        del record["identity"]
    file.write_text("\n".join([*map(json.dumps, first), *now]) + "\n")
    study = load_study(tmp_path)
    found = answer_study(study)
    for key in ("corruption", "clean", "given_clean"):
        assert found.verdicts.find(key, CREDIT) == before.find(key, CREDIT)
    assert (
        f"Measured again, with other images or settings, and changed: {study.again} of" in found.cautions[0]
    )
    assert study.again == 85  # of 5 seeds: 16 conditions and their mean


def test_methods_measured_on_other_numbers_of_images_are_named(planted, tmp_path):
    def fewer(record):
        few = of("CSimCLR")(record) and record["quantity"] == "sigma_max.median"
        return record | {"n": 30} if few else record

    planted(tmp_path)
    _, found = altered(tmp_path, fewer)
    told = next(c for c in found.cautions if "not measured alike (images)" in c)
    assert "C-SimCLR: sigma_max.median of 30" in told


@pytest.mark.parametrize(
    ("name", "told"),
    [("device", "cpu, cuda"), ("test images", "0, 1"), ("unit", "0, 1")],
)
def test_what_differs_within_a_seed_is_named_though_each_method_has_both(planted, tmp_path, name, told):
    def crossed(record):
        odd = (record["subject"]["seed"] + of("CSimCLR")(record)) % 2
        changes = {
            "device": {"provenance": {"device": ("cpu", "cuda")[odd]}},
            "test images": {"settings": {**record["settings"], "data_hash": str(odd)}},
            "unit": {"unit": str(odd)},
        }
        return record | changes[name]

    planted(tmp_path)
    _, found = altered(tmp_path, crossed)
    assert any(f"not measured alike ({name})" in c and f"C-SimCLR: {told}" in c for c in found.cautions)


def test_two_data_sets_were_not_measured_unlike_and_each_has_its_own_chance(planted, tmp_path):
    def of_hundred(record):
        record["settings"]["data_hash"] = record["subject"]["data_hash"]
        if record["subject"]["data_hash"] == "B" and record["quantity"].startswith("accuracy"):
            record["value"] *= 0.13  # 12% of a hundred classes
        return record

    planted(tmp_path, "mixed data")
    for file in (tmp_path / "bits").glob("*B.npz"):
        held = dict(np.load(file))
        np.savez(file, **held | {"labels": np.arange(1000) % 100})
    study, found = altered(tmp_path, of_hundred)
    assert not study.collapsed
    assert "fog" not in study.informative  # 10% of ten classes, 1.3% of a hundred
    assert not any("not measured alike" in c for c in found.cautions)


def test_accuracies_in_percent_are_refused(planted, tmp_path):
    """Beside shares they were a difference of −2,610 points."""

    def percent(record):
        share = 100 if of("CSimCLR")(record) and record["quantity"] == "accuracy.clean" else 1
        return record | {"value": share * record["value"]}

    planted(tmp_path)
    with pytest.raises(
        ValueError, match=r"accuracy\.clean of C-SimCLR-\d is 9.*; an accuracy must be a share"
    ):
        altered(tmp_path, percent)


def test_all_that_is_said_beside_the_headline_is_on_its_data(planted, tmp_path):
    """An effect was credited for a control in one data set and a plain twin in the other."""

    def parted(record):
        subject, plain = record["subject"], of("SimCLR")(record)
        return None if plain and subject["data_hash"] == "A" and subject["seed"] < 3 else record

    planted(tmp_path, "mixed data")
    _, found = altered(tmp_path, parted)
    for credit in found.credits:
        assert credit.row.stratum == credit.plain.stratum == "data set A, training images A"
        assert credit.plain.effect.n == 2
    assert any("C-SimCLR-0 is not paired with SimCLR-0B" in c for c in found.cautions)
    _, found = altered(
        tmp_path, lambda r: None if r["subject"]["data_hash"] == "A" and of("SimCLR")(r) else r
    )
    assert found.verdicts.strata == ("data set A, training images A", "data set B, training images B")
    assert [c.plain for c in found.credits] == [None, None]


@pytest.mark.parametrize(
    "other", [{}, {"data": "set A", "data_hash": "A", "recipe_hash": "simclr, longer", "epochs": 50}]
)
def test_figures_tables_and_associations_mix_no_data_sets_and_no_recipes(
    planted, tmp_path, monkeypatch, other
):
    """The lines of seeds and the columns beside “difference” were means over both."""

    def drawn(study, found):
        texts = [alt for _, _, _, alt, *_ in build_figures(study, found)]
        rows = [table.rows for table in build_tables(study, found) if table.name == "corruptions"]
        whole = [f for f in found.images if f.run == "all models"]
        return texts, rows, whole, found.associations, through_smoothness(study)

    monkeypatch.setattr(drawings, "draw", lambda *given, **_: given)
    planted(tmp_path, "mixed data", seeds=2)
    study, found = altered(
        tmp_path,
        lambda r: r | {"subject": r["subject"] | (other if r["subject"]["data_hash"] == "B" else {})},
    )
    assert len(found.verdicts.strata) == 2
    together = drawn(study, found)
    alone = altered(tmp_path, lambda r: r if r["subject"]["run"][-1] != "B" else None)
    assert together == drawn(*alone)


def test_an_outcome_that_one_data_set_lacks_is_not_taken_from_another(planted, tmp_path):
    def lost(record):
        features = record["settings"].get("layer") == "backbone" and record["subject"]["data_hash"] == "A"
        return None if features else record

    planted(tmp_path, "mixed data")
    _, found = altered(tmp_path, lost)
    assert [c.row.outcome.key for c in found.credits] == ["given_clean"]
    assert "Not measured, so without a verdict: σ of the probed features." in found.cautions


def test_a_run_without_any_partner_of_its_seed_is_named(planted, tmp_path):
    def lone(record):
        return None if of("WeightedSimCLR")(record) and record["subject"]["seed"] == 4 else record

    planted(tmp_path)
    _, found = altered(tmp_path, lone)
    told = (
        "1 run without a matching partner: C-SimCLR-4 is not paired: there is no SimCLR ×(1+β) of its seed."
    )
    assert told in found.cautions


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
