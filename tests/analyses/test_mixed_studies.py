"""Studies whose runs differ in more than the method: other data, images, recipes, machines, betas."""

import json

import numpy as np
import pytest

from analyses.paired_study import drawings
from analyses.paired_study.answer import answer_study
from analyses.paired_study.associations import bits_model, through_smoothness
from analyses.paired_study.drawings import build_figures
from analyses.paired_study.frames import load_study
from analyses.paired_study.pairs import Pairing
from analyses.paired_study.study import CREDIT
from analyses.paired_study.tables import build_tables


def test_another_beta_is_refused_by_name_and_means_over_betas_are_told(altered, planted, tmp_path):
    def other(record):
        if record["subject"]["objective"] == "WeightedSimCLR" and record["subject"]["beta"] == 1.0:
            return None
        return record

    planted(tmp_path, "dose-response")
    study, _ = altered(tmp_path, beta=0.5)
    assert any("No run has β = 0.5" in c and "0.1, 1, 10" in c for c in answer_study(study).cautions)
    study, _ = altered(tmp_path, other, beta=1.0)
    refused = Pairing(study.models, 1.0).of(CREDIT).refused
    assert len(refused) == 5
    assert all(reason.endswith("they differ in β") for reason in refused)


def test_methods_measured_on_different_machines_are_named(altered, planted, tmp_path):
    planted(tmp_path)
    _, found = altered(
        tmp_path,
        lambda r: {
            **r,
            "provenance": {"device": "cuda" if r["subject"]["objective"] == "CSimCLR" else "cpu"},
        },
    )
    told = next(c for c in found.cautions if "not measured alike (device)" in c)
    assert "C-SimCLR: cuda" in told
    assert "SimCLR: cpu" in told


def test_every_slope_is_asked_of_the_same_runs(altered, planted, tmp_path):
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


def test_bits_of_other_images_are_not_joined_in_one_model(planted, tmp_path):
    planted(tmp_path, seeds=2)
    assert bits_model(load_study(tmp_path)) is not None
    file = tmp_path / "bits" / "C-SimCLR-0.npz"
    held = dict(np.load(file))
    np.savez(file, **held | {"labels": held["labels"][::-1]})
    assert bits_model(load_study(tmp_path)) is None


def test_what_was_measured_again_on_other_images_is_not_mixed_with_what_it_was(planted, tmp_path):
    """Measured on 300 images, then on 1000: a gain of 4.5 points became a loss of 5.5."""
    planted(tmp_path)
    before = answer_study(load_study(tmp_path)).verdicts
    file = tmp_path / "records.jsonl"
    now = file.read_text().splitlines()
    first = [json.loads(line) for line in now if '"accuracy.corruption' in line]
    for record in first:
        record["settings"]["images"] = 300
        record["value"] *= 0.5 if record["subject"]["objective"] == "CSimCLR" else 1.0
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


def test_methods_measured_on_other_numbers_of_images_are_named(altered, planted, tmp_path):
    def fewer(record):
        few = record["subject"]["objective"] == "CSimCLR" and record["quantity"] == "sigma_max.median"
        return record | {"n": 30} if few else record

    planted(tmp_path)
    _, found = altered(tmp_path, fewer)
    told = next(c for c in found.cautions if "not measured alike (images)" in c)
    assert "C-SimCLR: sigma_max.median of 30" in told


@pytest.mark.parametrize(
    ("name", "told"),
    [("device", "cpu, cuda"), ("test images", "0, 1"), ("unit", "0, 1")],
)
def test_what_differs_within_a_seed_is_named_though_each_method_has_both(
    altered, planted, tmp_path, name, told
):
    def crossed(record):
        odd = (record["subject"]["seed"] + (record["subject"]["objective"] == "CSimCLR")) % 2
        changes = {
            "device": {"provenance": {"device": ("cpu", "cuda")[odd]}},
            "test images": {"settings": {**record["settings"], "data_hash": str(odd)}},
            "unit": {"unit": str(odd)},
        }
        return record | changes[name]

    planted(tmp_path)
    _, found = altered(tmp_path, crossed)
    assert any(f"not measured alike ({name})" in c and f"C-SimCLR: {told}" in c for c in found.cautions)


def test_two_data_sets_were_not_measured_unlike_and_each_has_its_own_chance(altered, planted, tmp_path):
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


def test_all_that_is_said_beside_the_headline_is_on_its_data(altered, planted, tmp_path):
    """An effect was credited for a control in one data set and a plain twin in the other."""

    def parted(record):
        subject, plain = record["subject"], record["subject"]["objective"] == "SimCLR"
        return None if plain and subject["data_hash"] == "A" and subject["seed"] < 3 else record

    planted(tmp_path, "mixed data")
    _, found = altered(tmp_path, parted)
    for credit in found.credits:
        assert credit.row.stratum == credit.plain.stratum == "data set A, training images A"
        assert credit.plain.effect.n == 2
    assert any("C-SimCLR-0 is not paired with SimCLR-0B" in c for c in found.cautions)
    _, found = altered(
        tmp_path,
        lambda r: None if r["subject"]["data_hash"] == "A" and r["subject"]["objective"] == "SimCLR" else r,
    )
    assert found.verdicts.strata == ("data set A, training images A", "data set B, training images B")
    assert [c.plain for c in found.credits] == [None, None]


@pytest.mark.parametrize(
    "other", [{}, {"data": "set A", "data_hash": "A", "recipe_hash": "simclr, longer", "epochs": 50}]
)
def test_figures_tables_and_associations_mix_no_data_sets_and_no_recipes(
    altered, planted, tmp_path, monkeypatch, other
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


def test_an_outcome_that_one_data_set_lacks_is_not_taken_from_another(altered, planted, tmp_path):
    def lost(record):
        features = record["settings"].get("layer") == "backbone" and record["subject"]["data_hash"] == "A"
        return None if features else record

    planted(tmp_path, "mixed data")
    _, found = altered(tmp_path, lost)
    assert [c.row.outcome.key for c in found.credits] == ["given_clean"]
    assert "Not measured, so without a verdict: σ of the probed features." in found.cautions


def test_a_run_without_any_partner_of_its_seed_is_named(altered, planted, tmp_path):
    def lone(record):
        return (
            None
            if record["subject"]["objective"] == "WeightedSimCLR" and record["subject"]["seed"] == 4
            else record
        )

    planted(tmp_path)
    _, found = altered(tmp_path, lone)
    told = (
        "1 run without a matching partner: C-SimCLR-4 is not paired: there is no SimCLR ×(1+β) of its seed."
    )
    assert told in found.cautions
