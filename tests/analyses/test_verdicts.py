"""The paired study's verdicts: which runs are pairs, what is credited, what is left out, and what is said of it."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analyses.paired_study.answer import answer_study
from analyses.paired_study.associations import ALL_MODELS, RUNS, image_findings
from analyses.paired_study.comparison import Comparison
from analyses.paired_study.design import Design, read_design, write_design
from analyses.paired_study.figures import forest
from analyses.paired_study.frames import load_study, read_bits
from analyses.paired_study.page import make_report
from analyses.paired_study.pairs import Pairing
from analyses.paired_study.study import CREDIT, PLAIN, models_table
from analyses.paired_study.verdicts import OUTCOMES, judge_one
from analyses.paired_study.words import headline, value_text, verdict_rows
from analyses.runs import find_runs
from lipcomp.records import Record, append_records
from lipcomp.statistics import decide
from lipcomp.statistics._verdict import Verdict


def answered(folder):
    study = load_study(folder)
    return study, answer_study(study)


def credit(found, key):
    return next(c for c in found.credits if c.row.outcome.key == key)


def models(seeds=2, **columns):
    rows = [
        {"run": f"{m}-{s}", "method": m, "beta": None if m == "SimCLR" else 1.0, "seed": s, "data": "A",
         "data_hash": "a", "recipe_hash": "r", "architecture": "cnn", "epochs": 12, "perturb": None, **columns}
        for m in ("SimCLR", "SimCLR ×(1+β)", "C-SimCLR") for s in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("run")


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("data", "B", "data"),
        ("data_hash", "b", "training images"),
        ("recipe_hash", "q", "recipe"),
        ("architecture", "vit", "architecture"),
        ("epochs", 99, "schedule"),
        ("data_hash", None, "training images"),
    ],
)
def test_runs_that_differ_in_anything_else_are_refused_by_name(field, value, name):
    table = models()
    table[field] = table[field].astype(object)
    table.loc["SimCLR-1", field] = value
    found = Pairing(table).of(PLAIN)
    assert set(found.main["seed"]) == {0}
    assert found.refused == (f"C-SimCLR-1 is not paired with SimCLR-1: they differ in {name}",)


def test_another_seed_is_no_partner_and_the_control_has_the_beta_of_its_twin():
    table = models()
    assert len(Pairing(table.drop("SimCLR-1")).of(PLAIN).main) == 2
    table.loc["SimCLR ×(1+β)-1", "beta"] = 10.0
    assert set(Pairing(table).of(CREDIT).main["seed"]) == {0}


def test_two_data_sets_in_one_folder_are_two_strata_whatever_the_order(planted, tmp_path):
    planted(tmp_path, "mixed data")
    study, found = answered(tmp_path)
    assert found.verdicts.strata == ("data set A, training images A", "data set B, training images B")
    values = [
        r.effect.value for r in found.verdicts.rows if r.outcome.key == "features" and r.contrast == CREDIT
    ]
    assert values == pytest.approx([np.log(0.65)] * 2, abs=0.15)
    assert any("several kinds of runs" in c for c in found.cautions)
    assert study.design.written


def test_seeds_are_the_unit_whatever_the_betas(planted, tmp_path):
    planted(tmp_path, "dose-response")
    study, found = answered(tmp_path)
    assert {r.effect.n for r in found.verdicts.rows} == {5}
    assert len(study.models) == 5 * (1 + 3 + 3)
    dose = next(a for a in found.associations if a.level == "C-SimCLR, over β" and a.y.startswith("log"))
    assert dose.verdict is Verdict.YES
    assert dose.estimate.n == 5
    row = credit(found, "features").row
    assert row.contrast == CREDIT  # a sweep does not lose its control
    for low, high, ticks in ((-0.02, 0.03, ["−10%", "0", "+10%"]), (-1.0, 0.05, ["−50%", "−25%", "0"])):
        effect = replace(row.effect, value=high, interval=None, differences=(low, *[high] * 4))
        (axis,) = forest([replace(row, effect=effect)], "change").axes
        # more than the zero, whatever the scale
        assert [label.get_text() for label in axis.get_xticklabels()] == ticks


def test_what_the_control_does_too_is_not_credited(planted, tmp_path):
    planted(tmp_path, "explained by the control")
    study, found = answered(tmp_path)
    for key in study.design.primary:
        assert found.verdicts.find(key, PLAIN).direction != 0
        assert not credit(found, key).credited
    said = headline(found, study.design)
    assert "Compression makes" not in said
    assert "its control are both smoother than SimCLR" in said


def test_without_the_control_nothing_is_credited_and_the_page_says_so(planted, tmp_path):
    planted(tmp_path)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    (tmp_path / "records.jsonl").write_text("\n".join(x for x in lines if "WeightedSimCLR" not in x) + "\n")
    study, found = answered(tmp_path)
    assert credit(found, "features").row.contrast == PLAIN
    assert not any(c.credited for c in found.credits)
    assert "without that control nothing is credited" in headline(found, study.design)
    assert not any(r.primary for r in found.verdicts.rows)


def test_clean_accuracy_that_explains_it_is_named(planted, tmp_path):
    planted(tmp_path, "explained by clean accuracy", noise=0.3)
    study, found = answered(tmp_path)
    assert found.verdicts.find("corruption", CREDIT).word == "less accurate"
    assert found.verdicts.find("clean", CREDIT).word == "less accurate"
    row = credit(found, "given_clean").row
    assert row.verdict is Verdict.CANNOT_TELL
    assert "clean accuracy differs" in row.note
    assert row.needed is None
    assert "clean accuracy differs" in headline(found, study.design)


def gained(noise, points, clean, spread):
    """A comparison: ``clean`` points of clean accuracy, and ``points`` of corruption accuracy more than these."""
    table = models(len(noise)).query("method != 'SimCLR'")
    treated = np.repeat([0.0, 1.0], len(noise))
    shift = clean + 0.3 * noise[:, 1]
    table["clean"] = 0.9 + treated * np.tile(shift, 2) / 100
    table["corruption"] = 0.6 + treated * np.tile(points + shift + spread * noise[:, 0], 2) / 100
    return Comparison(CREDIT, table, {}, Design().clean_slope)


@pytest.mark.slow
@pytest.mark.parametrize(("points", "clean", "spread"), [(0.0, 0.4, 1.0), (2.0, 0.5, 2.5)])
def test_the_seeds_that_are_said_to_decide_at_every_slope_do(points, clean, spread):
    """What the range of slopes adds at any number of seeds was left out: 15 were said, with which 8% decided."""
    rng, outcome = np.random.default_rng(0), next(o for o in OUTCOMES if o.key == "given_clean")
    noise = rng.normal(size=(6, 2))
    exact = np.linalg.qr(noise - noise.mean(0))[0] * np.sqrt(5)  # estimated to be exactly that
    row = judge_one(gained(exact, points, clean, spread), outcome, "", Design(), main=True)
    assert row.verdict is Verdict.CANNOT_TELL

    def share(seeds):
        effects = [
            gained(rng.normal(size=(seeds, 2)), points, clean, spread).effect(outcome.key, 0.975)
            for _ in range(100)
        ]
        return np.mean([decide(e.interval, row.zone) is not Verdict.CANNOT_TELL for e in effects])

    assert 0.65 < share(row.needed) < 0.95
    assert share(row.needed // 2) < 0.6


def test_collapsed_and_missing_runs_are_left_out_by_name(planted, tmp_path):
    planted(tmp_path / "a", "collapsed run")
    study, found = answered(tmp_path / "a")
    assert set(study.collapsed) == {"C-SimCLR-0"}
    assert credit(found, "features").credited
    assert any("C-SimCLR-0 (σ of its features is 0)" in c for c in found.cautions)
    assert any("was not measured for SimCLR ×(1+β)-1" in c for c in found.cautions)
    planted(tmp_path / "b", "missing runs")
    _, found = answered(tmp_path / "b")
    assert any("2 planned runs not measured: C-SimCLR-0, SimCLR-1." in c for c in found.cautions)


def test_corruptions_at_chance_do_not_dilute_the_mean(planted, tmp_path):
    planted(tmp_path, "floor")
    study, found = answered(tmp_path)
    assert set(study.informative) == {"spatter", "shear", "rotate"}
    assert found.verdicts.find("corruption", CREDIT).effect.value == pytest.approx(4.0, abs=1.5)
    assert any("fog" in c and "at chance for every run" in c for c in found.cautions)


def test_a_design_is_written_once_and_never_after_the_data(planted, tmp_path):
    first = write_design(tmp_path)
    assert write_design(tmp_path) == first
    assert read_design(json.loads((tmp_path / "study.json").read_text())) == first
    planted(tmp_path / "x")
    plan = json.loads((tmp_path / "x" / "study.json").read_text())
    del plan["design"]
    (tmp_path / "x" / "study.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match="measured already"):
        write_design(tmp_path / "x")
    study, found = answered(tmp_path / "x")
    assert not any(r.primary for r in found.verdicts.rows)
    assert "No design was written before the data" in found.cautions[0]
    with pytest.raises(ValueError, match="unknown fields alpha"):
        read_design({"design": {"alpha": 0.1}})
    assert study.design == Design()


def test_exploratory_p_values_are_adjusted_and_primary_ones_are_not(planted, tmp_path):
    planted(tmp_path)
    _, found = answered(tmp_path)
    primary, others = found.verdicts.rows[:2], found.verdicts.rows[2:]
    assert all(r.primary and r.adjusted_p is None and r.effect.level == 0.975 for r in primary)
    assert all(not r.primary and r.adjusted_p >= r.effect.p_value for r in others)


def test_hard_digits_do_not_pass_for_a_relation_of_images(planted, tmp_path):
    planted(tmp_path, "confounded by class")
    _, found = answered(tmp_path)
    whole = found.images[0]
    assert whole.run == ALL_MODELS
    assert whole.pooled.interval[0] > 0.6
    low, high = whole.within_class.interval
    assert low < 0.5 < high
    assert whole.images == 200  # not 200 times the number of runs


def test_images_with_a_larger_constant_that_flip_more_are_seen():
    rng = np.random.default_rng(0)
    sigma = rng.lognormal(size=400)
    images = pd.DataFrame({
        "run": ["r0"] * 200 + ["r1"] * 200, "method": "SimCLR", "image": [*range(200), *range(200)],
        "sigma": sigma, "flipped": np.log(sigma) + 0.5 * rng.normal(size=400),
    })  # fmt: skip
    whole, *single = image_findings(images)
    assert whole.within_class.interval[0] > 0.6
    assert [f.run for f in single] == ["r0", "r1"]


def test_seeds_that_differ_do_not_pass_for_a_relation(planted, tmp_path):
    """Simpson: seeds with a larger constant are the more accurate ones; inside a seed there is no such law."""
    planted(tmp_path, "Simpson", sigma={}, corruption={})
    study, found = answered(tmp_path)
    assert np.corrcoef(np.log(study.models["features"]), study.models["corruption"])[0, 1] > 0.3
    inside = next(a for a in found.associations if a.level == RUNS and a.y == "corruption accuracy")
    assert inside.verdict is not Verdict.YES


def test_a_run_trained_anew_counts_with_its_last_measurement(planted, tmp_path):
    planted(tmp_path)
    subject = {"run": "SimCLR-0", "objective": "SimCLR", "seed": 0, "sha256": "new"}
    append_records(tmp_path / "records.jsonl", [Record("accuracy.clean", 0.5, subject=subject)])
    study = load_study(tmp_path)
    assert study.models.loc["SimCLR-0", "clean"] == 0.5
    assert np.isnan(study.models.loc["SimCLR-0", "features"])


def test_refits_of_the_probe_enter_the_accuracy():
    records = [("accuracy.clean", 0.9), ("accuracy.clean.refit", 0.8), ("accuracy.clean.refit", 0.7)]
    frame = pd.DataFrame([{"quantity": q, "value": v, "subject.run": "r"} for q, v in records])
    table = models_table(frame)
    assert table.loc["r", "clean"] == pytest.approx(0.8)
    assert table.loc["r", "refit"] == pytest.approx(np.std([0.8, 0.7], ddof=1))


def test_folders_without_a_study_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_runs(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        find_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no records\.jsonl: measure it first"):
        make_report(tmp_path)
    (tmp_path / "bits.npz").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"bits\.npz is damaged"):
        read_bits(tmp_path / "bits.npz")


def test_models_of_others_are_drawn_too(planted, tmp_path):
    planted(tmp_path, seeds=1)
    file = tmp_path / "records.jsonl"
    text = re.sub(r'"objective": "(\w+)", "seed": 0, ', r'"network": "\1", ', file.read_text())
    file.write_text(text.replace('"small_cnn"', '"resnet18"'))
    path, page = make_report(tmp_path)
    assert page.headline.startswith("There is no pair of a compressed and an uncompressed run here")
    assert "resnet18" in path.read_text()


def test_the_page_is_one_file_that_answers_first(planted, tmp_path):
    planted(tmp_path)
    file = tmp_path / "records.jsonl"
    file.write_text(file.read_text().replace('"snow"', '"<b>&snow"'))
    path, page = make_report(tmp_path)
    html = path.read_text()
    assert 4 <= len(page.verdicts) <= 6
    assert page.headline.count(". ") <= 1
    order = [
        html.index(s)
        for s in (
            'class="cautions"',
            'id="answer"',
            'class="chip',
            "<figure",
            '<table class="sort',
            'id="methods"',
        )
    ]
    assert order == sorted(order)
    assert not re.findall(r'(?:src|srcset|href)="(?!data:|#)', html)
    assert all(re.search(r'alt="[^"]{40,}"', image) for image in re.findall(r"<img [^>]*>", html))
    assert "<b>&snow" not in html  # names from records are escaped
    assert "&lt;b&gt;&amp;snow" in html
    markdown = (tmp_path / "report.md").read_text()
    assert all(text in markdown for text in (page.headline, *page.findings, *page.cautions))
    for name in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (tmp_path / name).stat().st_size > 1000
    assert path.read_text() == make_report(tmp_path)[0].read_text()


def test_every_row_names_its_contrast_and_role(planted, tmp_path):
    planted(tmp_path)
    _, found = answered(tmp_path)
    rows = verdict_rows(found)
    assert [r.role.split(" · ")[-1] for r in rows][:2] == ["primary", "primary"]
    assert rows[0].role.startswith("C-SimCLR − SimCLR ×(1+β)")
    assert all(r.estimate and r.n and r.meaning for r in rows)
    assert value_text(None, None, ratio=True) == "not measured"
    assert value_text(0.5, None, ratio=False) == "+0.5 points, no interval"
