"""Folders that hold a part of a study: runs that were removed or diverged, bounds of a few models."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest

from analyses.bound_study.page import RADII, answer, load, make_page, without_gap
from analyses.paired_study.answer import answer_study
from analyses.paired_study.frames import load_study
from analyses.paired_study.study import CREDIT
from analyses.runs import read_measured, write_roll
from lipcomp.records import Record, append_records


def finished(folder, *runs):
    for run in runs:
        (folder / "runs" / run).mkdir(parents=True)
        (folder / "runs" / run / "model.safetensors").write_text(run)


def content(run):
    """The hash of such a checkpoint."""
    return hashlib.sha256(run.encode()).hexdigest()


def test_a_run_that_was_removed_does_not_count_and_one_that_diverged_is_called_so(planted, tmp_path):
    planted(tmp_path)
    plan = json.loads((tmp_path / "study.json").read_text())
    plan["runs"] |= {"C-SimCLR-5": {}, "SimCLR-5": {}}
    (tmp_path / "study.json").write_text(json.dumps(plan))
    everything = answer_study(load_study(tmp_path))
    assert everything.verdicts.find("features", CREDIT).effect.n == 5
    finished(tmp_path, *[run for run in plan["runs"] if run not in ("C-SimCLR-4", "C-SimCLR-5", "SimCLR-5")])
    (tmp_path / "runs" / "C-SimCLR-5").mkdir()
    reason = "c_simclr (seed 5): the loss became nan at step 4 of 9; the last good state is kept: '/home/x'. Lower it"
    (tmp_path / "runs" / "C-SimCLR-5" / "diverged.json").write_text(json.dumps({"reason": reason}))
    study = load_study(tmp_path)
    found = answer_study(study)
    assert found.verdicts.find("features", CREDIT).effect.units == ("0", "1", "2", "3")
    assert not {"C-SimCLR-4"} & {*study.bits, *study.images["run"], *study.corruptions["run"]}
    told = "\n".join(found.cautions)
    assert "Left out: C-SimCLR-4, measured before, but no longer among the checkpoints" in told
    assert "without an encoder: C-SimCLR-5 (the loss became nan at step 4 of 9)." in told
    assert "1 planned run not measured: SimCLR-5." in told
    write_roll(tmp_path, {})
    shutil.rmtree(tmp_path / "runs")  # as it is published
    again = answer_study(load_study(tmp_path))
    assert again.cautions == found.cautions
    assert again.verdicts == found.verdicts
    (tmp_path / "runs.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"runs\.json is damaged"):
        load_study(tmp_path)


def test_a_run_trained_anew_counts_once_it_is_measured_again(tmp_path):
    """It counted with the values of the encoder that it had before."""

    def measured(text, value, encoder):
        subject = {"run": "a", "sha256": content(text), "encoder": encoder}
        append_records(tmp_path / "records.jsonl", [Record("accuracy.clean", value, subject=subject)])
        write_roll(tmp_path, {"a": {"sha256": content(text), "encoder": encoder}})

    def values():
        found = read_measured(tmp_path / "records.jsonl", "analyses.paired_study.measure")
        return list(found.frame["value"]), found.replaced

    finished(tmp_path, "a", "b")
    other = Record("accuracy.clean", 0.7, subject={"run": "b", "sha256": content("b")})
    append_records(tmp_path / "records.jsonl", [other])
    measured("a", 0.1, "A")
    assert values() == ([0.7, 0.1], ())
    checkpoint = tmp_path / "runs" / "a" / "model.safetensors"
    checkpoint.write_text("anew")
    assert values() == ([0.7], ("a",))
    (told,) = read_measured(tmp_path / "records.jsonl", "analyses.paired_study.measure").cautions()
    assert told.startswith("Left out: a, whose checkpoints are not those that were measured")
    measured("anew", 0.2, "B")
    assert values() == ([0.7, 0.2], ())
    # the first encoder again, in a file that says otherwise how it was made: its values are there already
    checkpoint.write_text("as before")
    assert values() == ([0.7], ("a",))
    write_roll(tmp_path, {"a": {"sha256": content("as before"), "encoder": "A"}})
    assert values() == ([0.7, 0.1], ())
    shutil.rmtree(tmp_path / "runs")  # as it is published
    assert values() == ([0.7, 0.1], ())


def test_records_of_runs_that_are_all_gone_are_named(planted, tmp_path):
    planted(tmp_path, seeds=1)
    finished(tmp_path, "another")
    with pytest.raises(ValueError, match="holds records of other runs alone; measure the study: python -m "):
        load_study(tmp_path)


def bounds(run, factor=1.0, **settings):
    """What the bound study needs of a model."""
    views, ball = {"pairs": "views", "kappa_e": 1024.0}, [{"radius": r} for r in RADII]
    told = [(f"sigma_max.{q}", 2.0 * factor, {"layer": "latent"}) for q in ("max", "median")]
    told += [(f"bound.{q}.max", 0.1, views) for q in ("published", "supremum", "direction")]
    told += [("bound.direction.max", 0.5, {"pairs": "all", "kappa_e": 1024.0})]
    told += [(f"ball.{q}.median", 2.0, place) for q in ("lower", "searched", "certified") for place in ball]
    subject = {"run": run, "sha256": content(run), "objective": None}
    return [Record(name, v, subject=subject, settings=place | settings) for name, v, place in told]


def test_the_page_of_the_bounds_needs_no_table_and_takes_the_last_of_what_was_measured_again(tmp_path):
    append_records(tmp_path / "bounds.jsonl", [*bounds("a"), *bounds("b"), *bounds("b", 2.0, images=7)])
    append_records(tmp_path / "bounds.jsonl", [Record("sigma_max.max", 1.0, subject={"run": "unfinished"})])
    path, headline = make_page(tmp_path)
    assert "30720 (20480 to 40960) times" in headline
    assert "median over 2 models" in headline
    assert "<td>None" not in path.read_text()
    finished(tmp_path, "a")
    (caution,) = load(tmp_path).cautions()
    assert caution.startswith("Left out: b, unfinished, measured before")
    assert set(load(tmp_path).frame["subject.run"]) == {"a"}


def test_a_collapsed_model_has_no_gap_and_is_named(tmp_path):
    """The headline said inf (inf to inf) and nan (nan to nan)."""
    nothing = [replace(r, value=0.0, identity="") for r in bounds("b")]
    flat = [replace(r, value=0.0, identity="") if "bound" in r.quantity else r for r in bounds("c")]
    append_records(tmp_path / "bounds.jsonl", [*nothing, *flat])
    with pytest.raises(
        ValueError, match="no model with bounds of positive pairs at κ = 1024 and a σ_max above 0"
    ):
        load(tmp_path)
    append_records(tmp_path / "bounds.jsonl", bounds("a"))
    frame = load(tmp_path).frame
    headline, findings = answer(frame)
    assert "20480 (20480 to 20480) times" in headline
    assert not any(word in " ".join([headline, *findings]) for word in ("inf ", "nan"))
    assert without_gap(frame) == ["Not counted, since a bound or σ_max is 0 or was not measured: b, c."]


@pytest.mark.parametrize("name", ["sigma_max", "bound", "ball"])
def test_bounds_that_were_not_measured_to_the_end_are_named(tmp_path, name):
    parts = [r for r in bounds("a") if not r.quantity.startswith(name)]
    append_records(tmp_path / "bounds.jsonl", parts)
    with pytest.raises(
        ValueError, match=rf"bounds\.jsonl holds no value of {name}\..*; measure it to the end"
    ):
        make_page(tmp_path)
