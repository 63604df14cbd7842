"""The engine's loop: routes, batches, streaming, dry runs, what is measured again, and what it refuses beforehand."""

import json
import math
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from lipcomp.data._folders import FolderImages
from lipcomp.measure import (
    CleanAccuracy,
    CorruptionAccuracy,
    Images,
    Pairs,
    Plan,
    Sigma,
    Source,
    _bench as benching,
    _run as running,
    run,
)
from lipcomp.measure._accuracy import RobustAccuracy
from lipcomp.measure._beyond import OutOfDistribution
from lipcomp.measure._compression import Compression
from lipcomp.measure._local import Ball
from lipcomp.measure._parallel import measure_source
from lipcomp.measure._run import Outputs, dry_run, open_benches, units_of
from lipcomp.records import read_records


@pytest.mark.parametrize(
    ("trained", "told"),
    [
        ({"views": {"kind": "DigitViews"}}, None),
        ({"views": {"kind": "Mine"}, "views_code": "0"}, "lipcomp's DigitViews, not Mine of the training"),
    ],
)
def test_views_of_ones_own_are_not_taken_for_lipcomps(save_small, folder, tmp_path, trained, told):
    source = Source(save_small(tmp_path / "a.safetensors", recipe=trained))
    quantities = (Pairs("views", limit=3), Compression(pairs=3, draws=1))
    for done in run(Plan((source,), Images(str(folder)), quantities, device="cpu")):
        assert {record.settings.get("views") for record in done.records if record.quantity != "seconds"} == {
            told
        }


def test_every_route_ends_in_the_same_records(plan, tmp_path, values):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    assert all(done.fresh for done in run(plan, whole))
    for source in plan.sources:
        for shard in range(3):
            measure_source(plan.of(source), Outputs(parts), (shard, 3))
        assert parts.exists() is (source is not plan.sources[0])  # a shard writes cells, no record
        found = measure_source(plan.of(source), Outputs(parts))
        assert found.fresh
    assert values(parts) == values(whole)
    again = list(run(plan, whole))
    assert not any(done.fresh for done in again)
    assert {(d.bench.source.name, r.identity) for d in again for r in d.records} == set(values(whole))


def test_a_plan_is_measured_in_inference_mode_too(plan):
    short = replace(
        plan, sources=plan.sources[:1], quantities=(CleanAccuracy(), Pairs("views"), Sigma(limit=2))
    )
    with torch.inference_mode():
        inside = [record.value for done in run(short) for record in done.records if record.unit != "s"]
    assert inside == pytest.approx([r.value for done in run(short) for r in done.records if r.unit != "s"])


@pytest.mark.parametrize("size", [1, 5, 7])
def test_the_batch_size_changes_no_number(plan, tmp_path, size):
    """Twelve images by five or seven leave a last batch of two or five, by one each is alone."""
    plan = plan.of(plan.sources[0])
    one = [r for d in run(replace(plan, batch_size=12)) for r in d.records]
    other = [r for d in run(replace(plan, batch_size=size)) for r in d.records]
    for a, b in zip(one, other, strict=True):
        assert a.identity == b.identity
        if a.value is not None and "iterations" not in a.quantity and "residual" not in a.quantity:
            assert b.value == pytest.approx(a.value, rel=1e-4), a.quantity


def test_images_stream(plan, monkeypatch):
    """No more images are decoded than are measured, and never many at once."""
    asked, seen = [], set()
    original = FolderImages.batch

    def batch(self, indices, pool=None):
        asked.append(len(indices))
        seen.update(self.files[i] for i in indices.tolist())
        return original(self, indices, pool)

    monkeypatch.setattr(FolderImages, "batch", batch)
    monkeypatch.setattr("lipcomp.measure._cells.BLOCK", 4)
    images = replace(plan.images, limit=5)
    list(run(replace(plan.of(plan.sources[0]), images=images, quantities=(Sigma(), Pairs("views")))))
    assert len(seen) <= 5
    assert max(asked) <= 5
    asked.clear()
    list(run(replace(plan.of(plan.sources[0]), batch_size=4, quantities=(CleanAccuracy(), Sigma()))))
    assert max(asked) <= 4


def test_dry_run_measures_nothing(plan, tmp_path, monkeypatch):
    """Class scores are computed once: the mean of the corruptions was counted as much as all of them, a fit not."""
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(running, "seconds_per_image", lambda bench: 1.0)
    told = list(dry_run(plan, Outputs(out)))
    assert not out.exists()
    assert not any(estimate.there for estimate in told)
    passes = [24 + 12, 12, 12, 0, 2 * 12, 25 * 12, 25 * 3]
    assert [estimate.seconds for estimate in told] == 2 * passes
    list(run(plan.of(plan.sources[0]), out))
    there = [estimate.there for estimate in dry_run(plan, Outputs(out))]
    assert there == [True] * (len(told) // 2) + [False] * (len(told) // 2)


def test_an_encoder_that_gives_other_numbers_is_measured_again(plan, tmp_path, monkeypatch):
    """The second guard: equal identity, and yet another function (a library that changed below)."""
    out, plan = tmp_path / "out.jsonl", replace(plan.of(plan.sources[0]), quantities=(Sigma(limit=3),))
    list(run(plan, out))
    assert not any(done.fresh for done in run(plan, out))
    monkeypatch.setattr(benching.Bench, "guard", property(lambda self: [9.0] * 8))
    assert all(done.fresh for done in run(plan, out))


def test_a_damaged_cell_is_computed_again(plan, tmp_path):
    plan, out = replace(plan.of(plan.sources[0]), quantities=(Sigma(limit=3),)), tmp_path / "out.jsonl"
    before = [r.value for d in run(plan, out) for r in d.records]
    for cell in (tmp_path / "out.jsonl.cells").glob("*.npz"):
        cell.write_bytes(cell.read_bytes()[:50])
    out.unlink()
    assert [r.value for d in run(plan, out) for r in d.records] == before


def test_what_is_asked_for_twice_is_measured_once(plan, tmp_path, values):
    out, asked = (
        tmp_path / "out.jsonl",
        replace(plan, sources=plan.sources[:1] * 2, quantities=(Sigma(limit=3),) * 2),
    )
    foretold = [not estimate.there for estimate in dry_run(asked, Outputs(out))]
    done = list(run(asked, out))
    assert [unit.fresh for unit in done] == foretold == [True, False, False, False]
    assert all(unit.records == done[0].records for unit in done)
    assert len(values(out)) == len(done[0].records)


def test_rows_that_are_missing_are_foretold_and_those_of_a_killed_run_replaced(
    plan, tmp_path, monkeypatch, values
):
    """A kill between the table and the records doubled the rows, and a dry run said "done" of missing ones."""
    out, table = tmp_path / "out.jsonl", tmp_path / "t.csv"
    asked = replace(plan, sources=plan.sources[:1], quantities=(Sigma(limit=3),))
    outputs = Outputs(out, table=table)
    with monkeypatch.context() as patch:
        patch.setattr(running, "append_records", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            list(run(asked, outputs))
    before = table.read_bytes()
    for _ in range(2):
        assert [e.there for e in dry_run(asked, outputs)] == [False]
        assert [done.fresh for done in run(asked, outputs)] == [True]  # "already in" was said of it
        assert table.read_bytes() == before
        assert [e.there for e in dry_run(asked, outputs)] == [True]
        table.unlink()
    values(out)


def test_encoders_of_one_name_are_told_apart(save_small, tmp_path):
    """Their rows of --compare were one row, with values of both."""
    for seed, place in enumerate("ab"):
        (tmp_path / place).mkdir()
        save_small(tmp_path / place / "mine.safetensors", seed)
    sources = tuple(Source(tmp_path / place / "mine.safetensors") for place in "ab")
    plan = Plan(sources, Images("mnist5k", limit=2), (Sigma(),), device="cpu")
    found = [bench.label for bench in open_benches(plan, Outputs())]
    assert found == [(tmp_path / place / "mine").as_posix() for place in "ab"]
    assert [bench.label for bench in open_benches(plan.of(sources[0]), Outputs())] == ["mine"]


def test_a_record_that_was_lost_is_measured_again(plan, tmp_path):
    out, asked = tmp_path / "out.jsonl", replace(plan, sources=plan.sources[:1], quantities=(Sigma(limit=3),))
    first = list(run(asked, out))
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[1:]))  # as if that line had been damaged and the others salvaged
    again = list(run(asked, out))
    assert again[0].fresh
    assert {r.identity for r in read_records(out)} == {r.identity for r in first[0].records}
    last = list(run(asked, out))
    assert not last[0].fresh
    assert len(last[0].records) == len(lines)


def test_other_sets_are_prepared_as_the_plans_own(save_small, tmp_path):
    """Outside images equal to the test images cannot be told from them, however both are resized and converted."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 4), ("test", 3)):
        for label in ("cat", "dog"):
            for i in range(n):
                pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
                for name, kind in (("set", "png"), ("outside", "bmp")):  # the same images in other files
                    place = tmp_path / name / split / label / f"{i}.{kind}"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(place)
    for severity in range(1, 6):
        for file in (tmp_path / "set" / "test").rglob("*.png"):
            place = tmp_path / "C" / "fog" / str(severity) / file.parent.name / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            turned = np.roll(np.asarray(Image.open(file)), 60 - severity, 1)
            Image.fromarray(turned if severity > 1 else np.asarray(Image.open(file))).save(place)
    data = str(tmp_path / "set")
    told = {"convert_channels": True, "override": {"resize": (31, 33), "crop": (28, 28)}}
    corrupted = CorruptionAccuracy(folder=str(tmp_path / "C"), severities=(1, 3))
    quantities = (CleanAccuracy(), OutOfDistribution(str(tmp_path / "outside")), corrupted)
    plan = Plan((Source(save_small(tmp_path / "a.safetensors")),), Images(data, options=told), quantities)
    found = [record for done in run(plan) for record in done.records]
    assert {r.value for r in found if r.quantity == "ood.auroc"} == {0.5}
    clean = next(r.value for r in found if r.quantity == "accuracy.clean")
    by_severity = {r.settings["severity"]: r.value for r in found if r.quantity == "accuracy.corruption"}
    assert set(by_severity) == {1, 3}  # only what was asked for
    assert by_severity[1] == clean
    assert all(
        "squashed to 31 x 33" in r.settings["preprocessing"] for r in found if "preprocessing" in r.settings
    )


def test_training_images_that_change_leave_nothing_behind(save_small, folder, tmp_path):
    """Neither a record nor a cell holds what was computed from images that are not those of the identity."""
    copy = shutil.copytree(folder, tmp_path / "images")
    plan = Plan(
        (Source(save_small(tmp_path / "a.safetensors"), "a"),),
        Images(str(copy)),
        (CleanAccuracy(),),
        device="cpu",
    )
    out, outputs = tmp_path / "out.jsonl", Outputs(tmp_path / "out.jsonl")
    benches = open_benches(plan, outputs)
    units_of(benches[0])  # their identities are known
    first = copy / "train" / "cat" / "0.png"
    kept = first.read_bytes()
    Image.new("L", (28, 28), 7).save(first)
    with pytest.raises(ValueError, match=r"1 of the 24 images of .*/train changed"):
        list(run(plan, outputs, benches=benches))
    assert not out.exists()
    first.write_bytes(kept)
    fresh = [record.value for done in run(plan, out) for record in done.records]
    assert fresh == [record.value for done in run(plan) for record in done.records]


def test_what_cannot_be_written_is_found_before_the_work(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(Source, "load", lambda self: pytest.fail("something was loaded"))
    (tmp_path / "file").write_text("x")
    (tmp_path / "settings.json").write_text('{"lr": 0.1}\n')
    (tmp_path / "mine.csv").write_text("name,grade\nAda,1\n")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for outputs in (
        Outputs(Path(os.devnull)),
        Outputs(tmp_path / "loop"),
        Outputs(tmp_path / ("x" * 300)),
        Outputs(tmp_path / "settings.json"),
        Outputs(tmp_path / "out.csv", table=tmp_path / "out.csv"),
        Outputs(tmp_path / "out.jsonl", tmp_path / "file"),
        Outputs(tmp_path),
        Outputs(tmp_path / "file" / "out.jsonl"),
        Outputs(None, table=tmp_path / "file" / "t.csv"),
        Outputs(None, table=tmp_path / "mine.csv"),
        Outputs(None, witnesses=tmp_path / "file"),
    ):
        with pytest.raises((OSError, ValueError), match=r"out|table|witnesses|cache") as told:
            list(run(plan, outputs))
        assert "Errno" not in str(told.value)
    assert (tmp_path / "settings.json").read_text() == '{"lr": 0.1}\n'


def test_a_folder_that_changes_meanwhile_is_told(save_small, tmp_path):
    for i in range(4):
        Image.new("L", (28, 28), 40 * i).save(tmp_path / f"{i}.png")
    path = save_small(tmp_path / "a.safetensors")
    plan = Plan((Source(path),), Images(str(tmp_path)), (Sigma(), Pairs("views")), device="cpu")
    benches = open_benches(plan)
    loop = run(plan, tmp_path / "out.jsonl", benches=benches)
    next(loop)
    Image.new("L", (28, 28), 7).save(tmp_path / "2.png")
    with pytest.raises(ValueError, match="changed or vanished"):
        next(loop)
    assert {r.quantity.split(".")[0] for r in read_records(tmp_path / "out.jsonl")} == {"sigma_max"}


def test_records_tell_what_they_are_of(plan, tmp_path):
    (first, *_) = run(replace(plan.of(plan.sources[0]), quantities=(Sigma(limit=3),)), tmp_path / "o.jsonl")
    record = json.loads(first.records[0].to_json())
    assert record["schema"] == 2
    assert {"run", "checkpoint", "sha256", "encoder", "guard", "image_shape", "architecture"} <= set(
        record["subject"]
    )
    told = record["settings"]
    assert {"data", "data_hash", "images", "classes", "layer", "normalised", "rtol", "method", "seed"} <= set(
        told
    )
    assert {"device", "precision", "torch", "numpy", "scipy", "torchvision", "command", "time"} <= set(
        record["provenance"]
    )
    assert torch.__version__ == record["provenance"]["torch"]
    time.strptime(record["provenance"]["time"][:19], "%Y-%m-%dT%H:%M:%S")


@pytest.mark.parametrize(
    ("quantity", "said"),
    [
        (Sigma(limit=0), "limit of Sigma must be at least 1 image, got 0"),
        (Sigma(limit=-1), "limit of Sigma must be at least 1 image, got -1"),
        (RobustAccuracy("pgd", "l2", 0.5, limit=0), "limit of RobustAccuracy must be at least 1"),
        (Sigma, r"such as Sigma\(\)"),
        ("sigma", r"such as Sigma\(\)"),
    ],
)
def test_a_quantity_that_cannot_be_measured_is_refused_in_the_plan(quantity, said):
    """A negative limit left the last images out, and 0 meant all of them."""
    with pytest.raises(ValueError, match=said):
        Plan((Source("m.safetensors"),), Images("mnist5k", limit=2), (quantity,))


@pytest.mark.parametrize(
    ("quantity", "said"),
    [
        (Ball(radii=()), "names nothing to measure"),
        (Pairs("corruptions", severities=()), "corruptions and severities must name at least one"),
        (Pairs("random", radius=-1.0), "radius must be a positive length"),
        (Pairs("random", radius=math.nan), "radius must be a positive length"),
    ],
)
def test_a_quantity_without_anything_to_measure_is_refused(quantity, said, save_small, tmp_path):
    save_small(tmp_path / "m.safetensors")
    plan = Plan((Source(tmp_path / "m.safetensors"),), Images("mnist5k", limit=2), (quantity,))
    with pytest.raises(ValueError, match=said):
        next(run(plan))


def test_an_empty_plan_is_refused(save_small, tmp_path, untyped):
    save_small(tmp_path / "m.safetensors")
    for sources, quantities in (((), (Sigma(),)), ((Source(tmp_path / "m.safetensors"),), ())):
        with pytest.raises(ValueError, match="names no sources or no quantities"):
            next(run(Plan(sources, Images("mnist5k", limit=2), quantities)))
    with pytest.raises(
        ValueError, match="baseline must be one of 'random', 'pixels' or None, got str 'none'"
    ):
        Source(tmp_path / "m.safetensors", baseline="none")
