"""A study's sweep: pairs x beta x seed, resumed as a whole; runs that fail, diverge or are trained elsewhere."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lipcomp._claims import claim
from lipcomp._commands import run
from lipcomp.checkpoints._native import load_checkpoint
from lipcomp.jobs._contract import JobFailure, Outcome
from train import sweep as module
from train.command import SHORT, changed, check_set
from train.pretrain import pretrain
from train.recipe import with_beta
from train.recipes import find_recipe
from train.settings import Settings
from train.study import plan
from train.sweep import PRESETS, main, over_betas, sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(monkeypatch):
    """Jobs run in this process, so that a test costs no imports; failures become outcomes as everywhere."""

    def run_jobs(function, jobs, **engine):
        for number, job in enumerate(jobs):
            try:
                yield Outcome(number, function(*job))
            except Exception as error:
                yield Outcome(number, None, JobFailure(str(error)))

    monkeypatch.setattr(module, "run_jobs", run_jobs)


@pytest.fixture
def short(recipes):
    return [replace(recipes[name], epochs=1) for name in ("simclr", "c_simclr")]


def test_the_presets_hold_what_they_promise():
    default, quick, full = (PRESETS[name]() for name in ("default", "quick", "full"))
    assert (len(default.recipes), default.seeds) == (5, 3)
    assert (len(quick.recipes), quick.seeds) == (5, 1)
    assert "not meaningful" in quick.purpose
    assert full.seeds >= 5
    for name in ("mnist_c_simclr", "mnist_c_byol", "mnist_weighted_simclr"):
        betas = {r.objective.beta for r in full.recipes if r.name.startswith(name)}
        assert len(betas) >= 5
    for preset in (default, quick, full):
        names = [recipe.name for recipe in preset.recipes]
        assert len(set(names)) == len(names)
        for recipe in preset.recipes:  # every pair is there and alike in all but the objective
            if recipe.pair:
                twin = next(r for r in preset.recipes if r.name == recipe.pair)
                same = replace(
                    recipe, name=twin.name, objective=twin.objective, encoder=twin.encoder, pair=twin.pair
                )
                assert same == twin
                assert replace(recipe.encoder, decoder=False) == twin.encoder


def test_betas_are_for_those_that_have_one(recipes):
    names = [r.name for r in over_betas([recipes["simclr"], recipes["c_byol"]], (0.3, 1.0))]
    assert names == ["simclr", "c_byol-beta0.3", "c_byol-beta1"]


def test_a_sweep_trains_what_is_missing_adds_seeds_and_refuses_another_study(short, tmp_path, here):
    said = []
    tiny = [short[0], with_beta(short[1], 0.3)]
    assert sweep(tiny, 1, tmp_path, report=said.append) == {}
    assert sweep(tiny, "+1", tmp_path, report=said.append) == {}
    names = sorted(folder.name for folder in (tmp_path / "runs").iterdir())
    assert names == ["c_simclr-beta0.3-seed0", "c_simclr-beta0.3-seed1", "simclr-seed0", "simclr-seed1"]
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["runs"].keys() == set(names)
    assert study["seeds"] == 2
    assert (
        load_checkpoint(tmp_path / "runs" / names[0] / "model.safetensors").metadata.objective["beta"] == 0.3
    )
    assert json.loads((tmp_path / "timings.jsonl").read_text().splitlines()[0])["stage"] == "train"

    before = {name: (tmp_path / "runs" / name / "model.safetensors").read_bytes() for name in names}
    (tmp_path / "runs" / names[1] / "model.safetensors").unlink()
    said.clear()
    sweep(tiny, 1, tmp_path, report=said.append)  # the study has two seeds by now
    assert "4 runs, 3 finished before" in said[0]
    for name, data in before.items():
        assert (tmp_path / "runs" / name / "model.safetensors").read_bytes() == data
    with pytest.raises(
        ValueError, match=r"another study, a run 'simclr-seed0' of another kind: its epochs is 1"
    ):
        sweep([replace(tiny[0], epochs=2), tiny[1]], 2, tmp_path)
    with pytest.raises(ValueError, match="another study"):
        sweep(tiny[:1], 2, tmp_path)
    with pytest.raises(ValueError, match="need different names"):
        sweep([tiny[0], tiny[0]], 2, tmp_path)


def test_the_command_that_adds_seeds_can_be_repeated_until_they_are_trained(short, tmp_path, here):
    """Interrupted and run again, or run in two terminals, it added as many seeds again."""
    said = []
    with pytest.raises(ValueError, match="holds no study to add seeds to; train one first"):
        sweep(short, "+1", tmp_path, report=said.append)
    assert not list(tmp_path.iterdir())
    wild = replace(short[0], name="wild", learning_rate=1e30, warmup_epochs=0)
    recipes = [wild, short[1]]
    sweep(recipes, 1, tmp_path, report=said.append)
    assert plan(tmp_path, "a", "b", recipes, "+2", said.append) == 3  # what diverged has ended too
    for _ in range(2):
        assert plan(tmp_path, "a", "b", recipes, "+2", said.append) == 3
        assert (
            said[-1]
            == "note: runs of the study's 3 seeds have not ended, so these continue and none is added"
        )
    sweep(recipes, "+2", tmp_path, report=said.append)
    assert plan(tmp_path, "a", "b", recipes, "+2", said.append) == 5


def test_one_recipe_under_two_names_is_refused_and_the_first_name_of_a_study_stays(short, tmp_path):
    with pytest.raises(ValueError, match="a-beta1 and b-beta1 are one recipe with two names"):
        plan(tmp_path, "a", "b", [with_beta(replace(short[1], name=n), 1.0) for n in "ab"], 1)
    assert plan(tmp_path, "quick", "smoke test", short[:1], 1) == 1
    assert plan(tmp_path, "custom", "own recipes", short, 2) == 2
    assert json.loads((tmp_path / "study.json").read_text())["preset"] == "quick"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--recipes", "mnist_c_simclr", "--betas", "1,3", "--set", "objective.beta=7"],
            "ignored with --betas",
        ),
        (
            ["full", "--set", "mnist_c_simclr-beta0.1:objective.beta=7"],
            "would be trained at beta = 7, which is not",
        ),
        (["full", "--betas", "1"], "are one recipe with two names"),
        (["default", "--beta", "1"], "has no beta; leave --beta out"),
        (["quick", "--seeds", "+4"], "holds no study to add seeds to"),
    ],
)
def test_betas_that_contradict_each_other_are_refused(arguments, message, capsys, tmp_path):
    usage = message.endswith(("ignored with --betas", "leave --beta out"))  # known before any recipe is read
    assert run(main, [*arguments, "--out", str(tmp_path / "study")]) == (2 if usage else 1)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_diverging_run_fails_alone_and_is_not_tried_again(short, tmp_path, here):
    said = []
    wild = replace(short[0], name="wild", learning_rate=1e30, warmup_epochs=0)
    assert sweep([wild, *short], 1, tmp_path, report=said.append) == {}
    finished = {
        folder.name for folder in (tmp_path / "runs").glob("*") if (folder / "model.safetensors").exists()
    }
    assert finished == {"simclr-seed0", "c_simclr-seed0"}
    assert any("wild-seed0" in line and "DIVERGED" in line for line in said)
    assert "wild-seed0: diverged: wild (seed 0): " in said[-1]
    said.clear()
    sweep([wild, *short], 1, tmp_path, report=said.append)
    assert "3 runs, 2 finished before, 1 diverged before" in said[0]
    assert "wild-seed0: diverged" in said[-1]


def test_finished_and_diverged_runs_answer_for_their_settings_and_images_alone(short, bars, tmp_path, here):
    images = shutil.copytree(bars, tmp_path / "images")
    wild = replace(short[0], name="wild", learning_rate=1e30, warmup_epochs=0)
    recipes = [replace(recipe, data=str(images)) for recipe in (wild, short[0])]
    sweep(recipes, 1, tmp_path / "study", report=lambda line: None)
    for settings in (Settings(precision="bf16"), Settings(accumulate=2)):
        with pytest.raises(
            ValueError, match=r"simclr-seed0' holds a finished run of another kind: its (prec|acc)"
        ):
            sweep(recipes, 1, tmp_path / "study", settings=settings)
    (tmp_path / "study" / "runs" / "simclr-seed0" / "model.safetensors").unlink()
    said = []
    sweep(recipes, 1, tmp_path / "study", settings=Settings(accumulate=2), report=said.append)
    assert "2 runs, 0 finished before" in said[0]  # what diverged under other settings is tried under these
    image = next((images / "train").rglob("*.png"))
    kept = image.read_bytes()
    Image.new("L", Image.open(image).size, 7).save(image)
    with pytest.raises(ValueError, match="holds a finished run of another kind: its images is"):
        sweep(recipes, 1, tmp_path / "study", settings=Settings(accumulate=2))
    image.write_bytes(kept)
    images.rename(tmp_path / "moved")
    said.clear()
    sweep(recipes, 1, tmp_path / "study", settings=Settings(accumulate=2), report=said.append)
    # images that are gone cannot be compared
    assert "2 runs, 1 finished before, 1 diverged before" in said[0]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"runs": 3}', '{"seeds": "x"}', '{"runs": {"a": 1}}', '{"seeds": -1}']
)
def test_a_plan_that_is_none_is_named(short, tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(ValueError, match=r"study\.json' is not the plan of a study"):
        sweep(short, 1, tmp_path)
    assert (tmp_path / "study.json").read_text() == text


def test_a_run_that_fails_leaves_the_others_and_is_repeated_by_the_next_command(short, tmp_path, here):
    broken = replace(short[0], name="broken", data=str(tmp_path / "missing"))
    failed = sweep([broken, short[1]], 1, tmp_path / "study", report=lambda line: None)
    assert list(failed) == ["broken-seed0"]
    assert "missing" in failed["broken-seed0"].reason
    assert (tmp_path / "study" / "runs" / "c_simclr-seed0" / "model.safetensors").exists()


def test_warnings_reach_the_end_of_the_sweep(short, tmp_path, here):
    said = []
    sweep(short[1:], 1, tmp_path, settings=Settings(accumulate=2), report=said.append)
    assert any(line.startswith("  c_simclr-seed0: note: accumulating over 2 parts") for line in said[-2:])


@pytest.mark.slow
def test_two_ranks_of_torchrun_within_a_job_train_what_one_process_does(short, tmp_path, here, monkeypatch):
    monkeypatch.chdir(ROOT)
    trained = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        assert sweep(short[1:], 1, out, ranks=ranks, report=lambda line: None) == {}
        trained.append(load_checkpoint(out / "runs" / "c_simclr-seed0" / "model.safetensors"))
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    one, two = (checkpoint.encoder(images) for checkpoint in trained)
    assert (one - two).abs().max() <= 1e-4  # of unit vectors
    assert [checkpoint.metadata.seed for checkpoint in trained] == [0, 0]


@contextlib.contextmanager
def trained_elsewhere(run, act=lambda: None):
    """Another command holds a run until this one says that it waits; then that does ``act`` and lets go."""
    held, waiting, said = threading.Event(), threading.Event(), []

    def hold():
        with claim(run) as mine:
            assert mine
            held.set()
            waiting.wait(60)
            act()

    def report(line):
        said.append(line)
        if "trained by another command" in line:
            waiting.set()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    yield report
    thread.join()
    assert waiting.is_set(), said


def test_a_run_that_another_command_trains_is_waited_for(short, tmp_path, here, monkeypatch):
    monkeypatch.setattr(module, "POLL", 0.2)
    with trained_elsewhere(tmp_path / "runs" / "simclr-seed0") as report:
        assert sweep(short, 1, tmp_path, report=report) == {}
    assert (tmp_path / "runs" / "simclr-seed0" / "model.safetensors").exists()


def test_a_run_that_another_command_trained_otherwise_is_told(short, tmp_path, here, monkeypatch):
    """Two commands at the same time made one study of two precisions, in silence."""
    monkeypatch.setattr(module, "POLL", 0.2)
    run, before = tmp_path / "runs" / "simclr-seed0", tmp_path / "other"
    pretrain(short[0], 0, before, Settings(precision="bf16"), report=lambda line: None)
    with trained_elsewhere(run, lambda: shutil.copytree(before, run, dirs_exist_ok=True)) as report:
        failed = sweep(short, 1, tmp_path, report=report)
    assert list(failed) == ["simclr-seed0"]
    assert "its precision is 'bf16', not 'fp32'" in failed["simclr-seed0"].reason


def test_sigterm_reaches_the_ranks_and_ends_their_run_as_an_interrupt():
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(words) as ranks:

        def asked():
            with module._ended_by_sigterm(ranks):
                signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
                ranks.wait(30)

        with pytest.raises(KeyboardInterrupt):
            asked()
    assert ranks.returncode == -signal.SIGTERM


def test_ranks_are_started_from_any_thread():
    def started():
        with module._ended_by_sigterm(None):
            return "started"

    with ThreadPoolExecutor() as pool:
        assert pool.submit(started).result() == "started"


def test_what_the_first_rank_says_of_a_failure_is_the_reason(short, tmp_path, monkeypatch):
    """It was torchrun's own words about exit codes."""

    class Torchrun:
        def __init__(self, command, **options):
            monkeypatch.setenv("RANK", "0")
            with pytest.raises(ValueError, match="batch_size"):
                module._train_as_rank(Path(command[-1]))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def communicate(self):
            return None, "exitcode: 1"

    monkeypatch.setattr(module.subprocess, "Popen", Torchrun)
    recipe = replace(short[0], batch_size=1000)
    with pytest.raises(ValueError, match="batch_size 1000 is larger than the 36 images"):
        module.train_one((), pickle.dumps(recipe), 0, tmp_path / "run", Settings(), 2)


@pytest.mark.slow
def test_two_commands_share_one_study(bars, tmp_path):
    """Two real commands at once: each run is trained once, both end well."""
    command = [
        sys.executable,
        "-m",
        "train.sweep",
        "--methods",
        "simclr,c_simclr",
        "--data",
        str(bars),
        "--seeds",
        "2",
    ]
    command += [
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--workers",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    poll = "import train.sweep as s, sys; s.POLL = 1.0; sys.exit(s.run(s.main, sys.argv[1:]))"
    command[1:3] = ["-c", poll]
    both = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=180)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(list((tmp_path / "runs").glob("*/model.safetensors"))) == 4
    trained = [line for text in said for line in text.splitlines() if "s left" in line]
    assert len(trained) >= 4
    assert "fitted to" in said[0]


def test_the_command_says_what_is_missing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, message in [
        ([], "give exactly one of PRESET"),
        (["nothing"], "preset 'nothing' is unknown"),
        (["--methods", "simclr"], "method 'simclr' needs data"),
        (["quick", "--epochs", "1", "--set", "epochs=3"], "is given twice"),
    ]:
        assert run(main, arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    for wrong in (
        ["--seeds", "many"],
        ["--seeds", "+0"],
        ["--seeds", "²"],
        ["--betas", ".3,x"],
        ["--ranks", "0"],
        ["--workers", "0"],
        ["--cores", "-1"],
        ["--data", "my_images"],  # a preset has its own
        ["--backbone", "resnet18"],
        ["--beta", "1", "--betas", "1,3"],
    ):
        with pytest.raises(SystemExit) as end:
            main(["quick", *wrong])
        assert end.value.code == 2
    assert not list(tmp_path.iterdir())


def test_a_field_of_one_recipe_alone():
    flags = dict.fromkeys(flag.replace("-", "_") for flag in SHORT)
    options = Namespace(set=["b:epochs=3", "batch_size=8", "b:objective.kappa_e=64"], **flags)
    recipes = [
        replace(find_recipe(f"mnist_{method}"), name=name)
        for name, method in zip("ab", ("simclr", "c_simclr"), strict=True)
    ]
    check_set(recipes, options)
    a, b = (changed(recipe, options) for recipe in recipes)
    assert (a.epochs, a.batch_size) == (recipes[0].epochs, 8)
    assert (b.epochs, b.batch_size, b.objective.kappa_e) == (3, 8, 64.0)
    with pytest.raises(ValueError, match="no recipe is called 'c'"):
        check_set(recipes, Namespace(set=["c:epochs=3"]))


def test_a_study_s_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"out '.*study.json' cannot be written: '.*file' is not a folder"):
        plan(tmp_path / "file", "quick", "test", [], 1)
    assert (tmp_path / "file").read_text() == "mine"
