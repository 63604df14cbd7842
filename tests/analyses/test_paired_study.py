"""The study's answer on made-up models whose truth is known, and its report drawn from records alone."""

import re

import numpy as np
import pandas as pd
import pytest

from analyses.paired_study import answer as a
from analyses.paired_study.frames import load_study
from analyses.paired_study.report import make_report
from analyses.paired_study.study import CONTRASTS, find_runs, models_table, pair_table
from analyses.paired_study.words import answer
from lipcomp.records import Record, append_records


def effect(effects, contrast, column):
    (found,) = [e for e in effects if e.contrast == contrast and e.column == column]
    return found


def test_pairs_are_runs_of_one_seed(models):
    table = models()
    contrast = CONTRASTS[0]
    pairs = pair_table(table, contrast, "sigma")
    assert list(pairs["seed"]) == [0, 1, 2, 3]
    for _, pair in pairs.iterrows():
        assert pair["treated"] == table.loc[f"CSimCLR-{pair['seed']}", "sigma"]
        assert pair["control"] == table.loc[f"SimCLR-{pair['seed']}", "sigma"]
    # a missing twin leaves the pair out, and the weighted control pairs by beta
    assert len(pair_table(table.drop("SimCLR-2"), contrast, "sigma")) == 3
    control = CONTRASTS[3]
    assert control.control == "SimCLR ×(1+β)"
    other = table.copy()
    other.loc["CSimCLR-1", "beta"] = 0.1
    assert list(pair_table(other, control, "sigma")["seed"]) == [0, 2, 3]


def test_a_real_effect_is_found_and_a_null_is_called_not_enough_evidence(models):
    effects = a.paired_effects(models(seeds=4, smoother=0.5))
    pooled = effect(effects, "all: compressed − not", "sigma")
    assert pooled.present
    assert pooled.value == pytest.approx(np.log(0.5), abs=0.05)
    assert pooled.estimate.n == 8
    assert not effect(effects, "all: compressed − not", "corruption").present
    told = answer(effects, [], [])
    assert told.headline.startswith("Compression made these encoders smoother (σ_max -5")
    assert "8 pairs" in told.headline
    assert "not enough evidence that compression made them more accurate under corruptions" in told.headline
    assert "not enough evidence that it changes accuracy under corruptions" in " ".join(told.findings)


def test_three_pairs_prove_nothing_and_the_answer_says_why(models):
    table = models(seeds=3)
    table = table[table["method"].isin(["SimCLR", "C-SimCLR"])]
    told = " ".join(answer(a.paired_effects(table), [], []).findings)
    assert "not enough evidence that compression changes smoothness" in told
    assert "no p below 0.25 is possible" in told


def test_models_without_pairs_say_so(models):
    table = models().loc[["SimCLR-0", "BYOL-1"]]
    told = answer(a.paired_effects(table), a.associations(table), [])
    assert told.headline == (
        "There is no compressed-uncompressed pair among these models, so no paired effect."
    )


def test_a_sweep_of_beta_is_estimated_beta_by_beta_and_a_seed_counts_once(models):
    parts = []
    for beta in (0.1, 1.0, 10.0):
        table = models(seeds=4, smoother=beta**-0.2)
        table = table[table["method"] == "C-SimCLR"].assign(beta=beta)
        parts.append(table.rename(index=lambda run, beta=beta: f"{run}-{beta}"))
    swept = pd.concat([models().query("method == 'SimCLR'"), *parts])
    effects = a.paired_effects(swept)
    assert effect(effects, "C-SimCLR − SimCLR, β = 10", "sigma").value == pytest.approx(
        np.log(10**-0.2), abs=0.05
    )
    pooled = effect(effects, a.ALL_PAIRS, "sigma")
    assert pooled.estimate.n == 4
    assert pooled.value == pytest.approx(0.0, abs=0.05)  # the mean of log 10^{-0.2 (-1, 0, 1)}
    (dose,) = [d for d in a.dose_response(swept) if d.y.startswith("σ")]
    assert dose.estimate.value < -0.95


def test_association_has_the_sign_of_its_truth(models):
    table = models(seeds=8, smoother=0.5, more_robust=0.1)
    table["corruption"] -= 0.05 * np.log(table["sigma"])
    found = {
        x.level: x.estimate for x in a.associations(table) if x.x.startswith("median σ") and "corr" in x.y
    }
    assert set(found) == {
        "across models",
        "across models, clean accuracy held fixed",
        "within pairs",
        "between pairs (their means)",
    }
    assert all(e.value < 0 for e in found.values())


def test_what_methods_differ_in_is_found_across_models(models):
    """An association between methods: exchanging seeds inside a family could never see it."""
    table = models(seeds=3)
    order = {method: k for k, method in enumerate(table["method"].unique())}
    rank = table["method"].map(order) + 0.01 * table["seed"].astype(float)
    table["sigma"], table["corruption"] = np.exp(rank), 0.9 - 0.1 * rank
    (found,) = [
        x.estimate
        for x in a.associations(table)
        if x.level == "across models" and x.x.startswith("median σ") and "corr" in x.y
    ]
    assert found.p_value == found.smallest_p
    assert f"whole groups ({len(order)})" in found.method


def test_images_with_a_larger_constant_that_flip_more_are_seen():
    rng = np.random.default_rng(0)
    sigma = rng.lognormal(size=400)
    images = pd.DataFrame(
        {
            "run": ["r0"] * 200 + ["r1"] * 200,
            "method": "SimCLR",
            "image": [*range(200), *range(200)],
            "sigma": sigma,
            "flipped": np.clip(np.log(sigma) + 0.5 * rng.normal(size=400), -1, 1),
        }
    )
    whole, *single = a.image_findings(images)
    assert whole.run == a.ALL_MODELS
    assert whole.estimate.interval[0] > 0.6
    assert [f.run for f in single] == ["r0", "r1"]
    assert "tells that corruptions change its prediction" in answer([], [], [whole, *single]).findings[-1]


def test_the_report_is_one_file_that_needs_nothing_else(tmp_path, models, make_records):
    make_records(tmp_path, models())
    path, said = make_report(tmp_path)
    html = path.read_text()
    headline = said.headline.replace("&", "&amp;")
    assert html.index(headline) < html.index("<figure") < html.index("<table") < html.index('id="methods"')
    assert not re.findall(r'(?:src|srcset|href)="(?!data:|#)', html)
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 7
    assert all(re.search(r'alt="[^"]{10,}"', image) for image in images)
    assert "<b>&snow" not in html  # names from records are escaped
    assert "&lt;b&gt;&amp;snow" in html
    markdown = (tmp_path / "report.md").read_text()
    assert said.headline in markdown
    assert all(sentence in markdown for sentence in said.findings)
    for name in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (tmp_path / name).stat().st_size > 1000
    again, _ = make_report(tmp_path)
    assert again.read_text() == html


def test_a_run_trained_anew_counts_with_its_last_measurement(tmp_path, models, make_records):
    table = models(seeds=1)
    make_records(tmp_path, table)
    subject = {"run": "SimCLR-0", "objective": "SimCLR", "seed": 0, "sha256": "new"}
    append_records(tmp_path / "records.jsonl", [Record("accuracy.clean", 0.5, subject=subject)])
    study = load_study(tmp_path)
    assert study.models.loc["SimCLR-0", "clean"] == 0.5
    assert np.isnan(study.models.loc["SimCLR-0", "sigma"])
    assert len(study.models) == len(table)


def test_folders_without_a_study_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_runs(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        find_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no records\.jsonl: measure it first"):
        make_report(tmp_path)


def test_models_of_unknown_objective_keep_their_name():
    frame = pd.DataFrame(
        {
            "quantity": ["accuracy.clean"],
            "value": [0.9],
            "subject.run": ["theirs"],
            "subject.objective": ["MoCo"],
        }
    )
    table = models_table(frame)
    assert table.loc["theirs", "method"] == "MoCo"
    assert table.loc["theirs", "clean"] == 0.9


def test_models_of_others_are_drawn_too(tmp_path, models, make_records):
    make_records(tmp_path, models(seeds=1))
    file = tmp_path / "records.jsonl"
    text = file.read_text()
    for name in ("WeightedSimCLR", "CSimCLR", "SimCLR", "CBYOL", "BYOL"):
        text = text.replace(f'"objective": "{name}", "seed": 0', f'"architecture": "resnet-{name}"')
    assert '"seed"' not in text
    file.write_text(text)
    path, said = make_report(tmp_path)
    assert said.headline.startswith("There is no compressed-uncompressed pair among these models")
    html = path.read_text()
    assert "resnet-CBYOL" in html
    assert html.count("<figure") >= 5
