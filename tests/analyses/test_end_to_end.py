"""The study from checkpoints to report on real digits: stages, resumption, and what a command says of bad input."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analyses import image_by_image
from analyses.bound_study import measure as bounds
from analyses.paired_study import measure as measuring
from analyses.paired_study.frames import load_study
from analyses.paired_study.page import make_report
from analyses.paired_study.study import RECORDS, read_plan
from analyses.runs import add_study_arguments, find_runs, read_study
from lipcomp._commands import Parser, run
from lipcomp.checkpoints import save_checkpoint
from lipcomp.checkpoints._native import Metadata, load_checkpoint
from lipcomp.data import load_set
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.jobs._contract import JobFailure, JobsError, Outcome
from lipcomp.measure import CorruptionAccuracy, Images, Plan, Source, run as measure
from lipcomp.measure._run import Outputs
from lipcomp.records import read_records, to_frame

SPEC = EncoderSpec("small_cnn", (1, 28, 28), mean=(0.131,), std=(0.308,), projector=(32, 16))
CORRUPTED = 12
OBJECTIVES = {"SimCLR": {}, "CSimCLR": {"kappa_e": 64.0, "kappa_b": 10.0, "beta": 1.0}}


@pytest.fixture(scope="module", autouse=True)
def _quick(few_digits):
    """A fifth of the digits and one refit instead of four: every stage is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "REFITS", 1)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two untrained encoders, measured in this process with few images."""
    folder = tmp_path_factory.mktemp("study")
    for seed, (name, fields) in enumerate(OBJECTIVES.items()):
        encoder = build_encoder(dataclasses.replace(SPEC), seed=seed).eval()
        metadata = Metadata(objective={"name": name, **fields}, seed=0, data={"name": "mnist5k/train"})
        save_checkpoint(folder / "runs" / f"{name}-0" / "model.safetensors", encoder, metadata=metadata)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "SIGMA_IMAGES", 8)
        patch.setattr(measuring, "CORRUPTED_PAIR_IMAGES", 2)
        patch.setattr(measuring, "PAIR_IMAGES", 64)
        assert all(done.fresh for done in measured(folder))
    return folder


def measured(folder):
    images = Images("mnist5k")
    sources = [Source(str(path), name) for name, path in find_runs(folder).items()]
    plan = measuring.study_plan(sources, images, CORRUPTED, device="cpu")
    table = measuring.StudyTable(folder, CorruptionAccuracy(limit=CORRUPTED))
    return list(measure(plan, Outputs(folder / RECORDS, table=table, keep_cells=False)))


def value(frame, run_name, quantity, **settings):
    rows = frame[(frame["subject.run"] == run_name) & (frame["quantity"] == quantity)]
    for name, wanted in settings.items():
        rows = rows[rows[f"settings.{name}"] == wanted]
    assert len(rows) == 1, (quantity, settings, len(rows))
    return rows.iloc[0]


def test_every_stage_leaves_its_records_with_provenance(study):
    frame = to_frame(read_records(study / "records.jsonl"))
    for name in ("SimCLR-0", "CSimCLR-0"):
        for quantity in ("accuracy.clean", "accuracy.knn", "accuracy.shift", "accuracy.resolution"):
            found = value(frame, name, quantity)
            assert 0.1 < found["value"] <= 1
            assert found["low"] <= found["value"] <= found["high"]
        corrupted = frame[(frame["subject.run"] == name) & (frame["quantity"] == "accuracy.corruption")]
        assert corrupted["settings.corruption"].nunique() == 15
        assert sorted(corrupted["settings.severity"].unique()) == [1, 2, 3, 4, 5]
        assert value(frame, name, "accuracy.corruption.mean")["value"] == pytest.approx(
            corrupted["value"].mean()
        )
    assert frame["subject.sha256"].notna().all()
    assert frame["provenance.torch"].notna().all()


def test_the_bounds_hold_their_order_and_the_residual_its_floor(study):
    frame = to_frame(read_records(study / "records.jsonl"))
    for source in ("views", "corruptions", "shuffled"):
        at = {"pairs": source, "kappa_e": 1024.0}
        low, mean, second, top = (
            value(frame, "CSimCLR-0", f"bound.{n}.max", **at)["value"]
            for n in ("published", "mean", "second_moment", "supremum")
        )
        assert low <= second / np.sqrt(2) * (1 + 1e-9)
        assert mean <= second <= top
        direction = value(frame, "CSimCLR-0", "bound.direction.max", **at)["value"]
        assert top == pytest.approx(1024 * direction)
    own = value(frame, "CSimCLR-0", "compression.residual_excess", kappa="own")
    whole = value(frame, "CSimCLR-0", "compression.residual_information", kappa="own")
    assert own["value"] > 0
    assert whole["value"] == pytest.approx(own["value"] + own["settings.floor"])
    assert not ((frame["subject.run"] == "SimCLR-0") & (frame.get("settings.kappa") == "own")).any()


def test_sigma_max_of_the_study_is_the_dense_jacobians(study):
    table = pd.read_csv(study / "images" / "SimCLR-0.csv")
    encoder = load_checkpoint(study / "runs" / "SimCLR-0" / "model.safetensors").encoder
    encoder = encoder.double()
    pixels = load_set("mnist5k").batch(torch.arange(2)).double()  # the sample is the first test images
    rows = [torch.autograd.functional.jacobian(lambda x: encoder(x)[0], image[None]) for image in pixels]
    dense = torch.linalg.matrix_norm(torch.stack(rows).flatten(2), 2)
    np.testing.assert_allclose(table["sigma"][:2], dense.numpy(), rtol=1e-3)
    assert table["sigma"].notna().sum() == 8
    assert table["flipped"].notna().sum() == 12


def test_what_is_measured_is_not_measured_again_but_what_was_lost_is_made_again(study, monkeypatch):
    for name, count in (("SIGMA_IMAGES", 8), ("CORRUPTED_PAIR_IMAGES", 2), ("PAIR_IMAGES", 64)):
        monkeypatch.setattr(measuring, name, count)
    before = (study / RECORDS).read_bytes()
    table = study / "images" / "SimCLR-0.csv"
    kept = table.read_text()
    table.unlink()
    (study / "bits" / "CSimCLR-0.npz").unlink()
    units = measured(study)
    again = {(done.bench.label, done.unit.label) for done in units if done.fresh}
    assert {run for run, _ in again} == {"SimCLR-0", "CSimCLR-0"}  # of each what the table or the bits hold
    assert len(again) < len(units) / 2
    assert (study / RECORDS).read_bytes() == before
    assert table.read_text() == kept
    assert (study / "bits" / "CSimCLR-0.npz").exists()


def test_the_report_of_two_real_encoders(study):
    path, page = make_report(study)
    assert "no spread can be seen with n = 1" in page.headline
    loaded = load_study(study)
    assert set(loaded.models["method"]) == {"SimCLR", "C-SimCLR"}
    assert len(loaded.images) == 16  # an image counts once it was measured in every stage
    assert path.stat().st_size > 100_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{none}"], "does not exist"),
        (["{empty}"], "holds no checkpoint"),
        (["{study}", "--data", "mnist6k"], "neither a known set nor an existing folder"),
        (["{damaged}"], "bad.safetensors"),
        (["{study}", "--data", "{unlabelled}", "--convert-channels", "--resize", "28"], "error: unlabelled/"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_1(study, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    for split in ("train", "test"):
        (tmp_path / "unlabelled" / split).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (28, 28), 80 * number).save(tmp_path / "unlabelled" / split / f"{number}.png")
    (tmp_path / "damaged" / "bad.safetensors").write_bytes(b"\x00" * 100)
    places = {
        "none": tmp_path / "none",
        "empty": tmp_path / "empty",
        "study": study,
        "damaged": tmp_path / "damaged",
        "unlabelled": tmp_path / "unlabelled",
    }
    assert run(measuring.main, [a.format(**places) for a in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert message in " ".join(error.split())


def test_corrupted_images_that_could_not_be_made_are_named(tmp_path, monkeypatch):
    lost = [Outcome(number, None, JobFailure("OSError: No space left")) for number in (1, 4)]
    monkeypatch.setattr(measuring, "run_jobs", lambda *jobs, **engine: iter(lost))
    plan = Plan((Source("a.safetensors"),), Images("mnist5k"), ())
    with pytest.raises(JobsError, match=r"2 of 15 failed \(part 2, part 5: OSError: No space left\)"):
        measuring.measure(tmp_path, plan, CorruptionAccuracy(limit=1), {})


def test_a_folder_of_checkpoints_is_a_study_too(study, tmp_path):
    source = study / "runs" / "SimCLR-0" / "model.safetensors"
    (tmp_path / "theirs.safetensors").write_bytes(source.read_bytes())
    assert find_runs(tmp_path) == {"theirs": tmp_path / "theirs.safetensors"}


@pytest.mark.parametrize("command", [measuring.main, bounds.main])
def test_the_studies_take_images_as_the_commands_do(study, tmp_path, capsys, command):
    """A flat folder with a table of labels, a file that cannot be read, and a preprocessing of one's own."""
    rows = ["file,label"]
    for number in range(40):
        Image.fromarray(np.full((40, 30), 6 * number, np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'even' if number % 2 else 'odd'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "7.png").write_bytes(b"no image")
    told = [str(study), "--data", str(tmp_path), "--labels", str(tmp_path / "labels.csv"), "--holdout", "0.5"]
    told += ["--skip-unreadable", "--resize", "32", "--crop", "28", "--interpolation", "bicubic", "--dry-run"]
    assert run(command, told) == 0
    out = capsys.readouterr().out
    assert "to measure, about" in out
    assert " on auto," not in out  # the device that "auto" was
    parser = Parser()
    add_study_arguments(parser)
    parser.add_argument("study", type=Path)
    sources, _, _, _, images = read_study(parser.parse_args(told))
    found = images.open(sources[0].load())
    assert len(found) in (19, 20)
    assert found.classes == ("even", "odd")
    assert "bicubic" in str(images.options["override"])


def test_study_json_that_is_damaged_is_named(tmp_path):
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r"study\.json is damaged"):
        read_plan(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({"preset": "quick"}))
    assert read_plan(tmp_path) == {"preset": "quick"}


# Measures a study's folder in a fork for every line it reads: a process that has imported everything starts at once.
MEASURE = """
from pathlib import Path
import os, sys
from analyses.paired_study import measure as measuring
from analyses.paired_study.study import RECORDS
from analyses.runs import find_runs
from lipcomp.measure import CorruptionAccuracy, Images, Source, run
from lipcomp.measure._run import Outputs

measuring.REFITS, measuring.SIGMA_IMAGES, measuring.CORRUPTED_PAIR_IMAGES, measuring.PAIR_IMAGES = 1, 8, 2, 64
limit = int(sys.argv[1])
for line in sys.stdin:
    if child := os.fork():
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    code, folder = 1, Path(line.strip())
    try:
        sources = [Source(str(path), name) for name, path in find_runs(folder).items()]
        plan = measuring.study_plan(sources, Images("mnist5k"), limit, device="cpu")
        table = measuring.StudyTable(folder, CorruptionAccuracy(limit=limit))
        list(run(plan, Outputs(folder / RECORDS, table=table, keep_cells=False)))
        code = 0
    finally:
        os._exit(code)
"""


@pytest.mark.slow
def test_image_by_image_is_of_this_encoder_and_these_images(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(image_by_image, "RADII", (0.5, 2.0))
    words = [
        str(study),
        "--data",
        "mnist5k",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "rows.csv"),
        "--images",
        "4",
    ]
    assert run(image_by_image.main, words) == 0
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows.groupby("run")["image"].apply(list).tolist() == [[0, 1, 2, 3]] * 2
    assert (rows["searched"] >= rows["sigma"] * (1 - 1e-5)).all()
    assert "PGD, L2" in capsys.readouterr().out
    with monkeypatch.context() as patch:  # the same: nothing is measured
        patch.setattr(image_by_image, "measure_run", None)
        assert run(image_by_image.main, words) == 0
    assert run(image_by_image.main, [*words[:-1], "3", "--runs", "SimCLR-*", "--certified", "1"]) == 0
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows.groupby("run").size().to_dict() == {"CSimCLR-0": 4, "SimCLR-0": 3}
    assert rows["certified"].notna().sum() == 1
    changed = tmp_path / "changed"
    shutil.copytree(study, changed)
    shutil.copy(changed / "runs/SimCLR-0/model.safetensors", changed / "runs/CSimCLR-0/model.safetensors")
    for wrong, message in (
        ([str(changed), "--data", "mnist5k"], "no measurement of CSimCLR-0 with this encoder"),
        ([str(study), "--data", "mnist5k", "--runs", "none-*"], "names no run"),
        (["--table", str(study / "records.jsonl")], "is no table of this command"),
    ):
        assert run(image_by_image.main, wrong) == 1
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_twenty_kills_end_in_the_records_and_tables_of_an_undisturbed_study(study, few_digits, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        shutil.copytree(study / "runs", folder / "runs")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", few_digits + MEASURE, str(CORRUPTED)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(words, env=environment, **pipes) as server:

        def start(folder):
            server.stdin.write(f"{folder}\n")
            return int(server.stdout.readline())

        start(whole)
        started = time.monotonic()
        assert server.stdout.readline() == "0\n"
        seconds = time.monotonic() - started
        rng, ends, lengths, patience = random.Random(0), [], [0], seconds / 4
        for _ in range(20):
            child = start(cut)
            time.sleep(rng.uniform(0, patience))
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(child, signal.SIGKILL)
            ends.append(server.stdout.readline())
            lengths.append(len(read_records(cut / RECORDS)) if (cut / RECORDS).exists() else 0)
            if lengths[-1] == lengths[-2]:
                patience *= 1.2  # so that it gets on where starting takes most of the time
        start(cut)
        assert server.stdout.readline() == "0\n"
    assert ends.count("-9\n") > 5
    assert len(set(lengths)) > 3  # some fell between the results of one run
    assert told_by(cut) == told_by(whole)
    for file in sorted([*whole.glob("images/*.csv"), *whole.glob("bits/*.npz")]):
        other = cut / file.relative_to(whole)
        if file.suffix == ".csv":
            assert other.read_text() == file.read_text()
        else:
            one, two = (dict(np.load(path)) for path in (file, other))
            assert one.keys() == two.keys()
            assert all((one[name] == two[name]).all() for name in one)


def told_by(folder):
    """What the records say, without when and how long."""
    records = read_records(folder / RECORDS)
    found = {(r.subject["run"], r.identity): (r.quantity, r.value, r.interval, r.n) for r in records}
    assert len(found) == len(records), "something was written twice"
    return found
