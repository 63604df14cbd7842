"""A run killed at any moment goes on bitwise: the same weights, the same metrics, to the last byte."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lipcomp.encoders._backbones import BACKBONES
from train.command import main
from train.folder import find_states, load_state, save_state
from train.pretrain import pretrain
from train.settings import Settings

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(save_steps=3, keep_epochs=1, evaluate_epochs=1, log_steps=2)


def quiet(line):
    pass


def outcome(run):
    """Every file that a finished run leaves."""
    files = [p for p in sorted(run.rglob("*")) if p.is_file()]
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(long_runs, tmp_path):
    """SIGKILL on a forked process that trains, so often over several runs, from start-up to the last write."""
    expected, duration = [], 0.0
    for number, recipe in enumerate(long_runs):
        started = time.monotonic()
        pretrain(recipe, 5, tmp_path / f"whole{number}", SETTINGS, report=quiet)
        duration = max(duration, time.monotonic() - started)
        expected.append(outcome(tmp_path / f"whole{number}"))
    assert {"model.safetensors", "best.safetensors", "metrics.jsonl"} < expected[0].keys()
    moments, kills, rounds = random.Random(0), 0, 0
    while kills < 24 or rounds < len(long_runs):
        which = rounds % len(long_runs)
        out, patience = tmp_path / f"killed{rounds}", 0.5 * duration
        while True:
            child = os.fork()
            if child == 0:
                try:
                    pretrain(long_runs[which], 5, out, SETTINGS, report=quiet)
                    os._exit(0)
                finally:
                    os._exit(1)
            deadline = time.monotonic() + moments.uniform(0.0, patience)
            status = 0
            while time.monotonic() < deadline and (status := os.waitpid(child, os.WNOHANG)[1]) == 0:
                if not Path(f"/proc/{child}").exists() and sys.platform == "linux":
                    break
                time.sleep(0.002)
            try:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # it had ended
            if os.WIFSIGNALED(status):
                kills += 1
                patience *= 1.1  # so that the run gets on, on a slow machine too
                continue
            assert os.waitstatus_to_exitcode(status) == 0
            if (out / "model.safetensors").exists():
                break
        found = outcome(out)
        assert found.keys() == expected[which].keys()
        for name, data in expected[which].items():
            assert found[name] == data, f"{name} differs after {kills} kills"
        rounds += 1
    assert kills >= 24


@pytest.mark.slow
def test_the_command_killed_and_called_again_goes_on(long_runs, tmp_path, capsys):
    """The real command, on the real digits' recipe shrunk to the bars; interrupted, then finished in this process."""
    recipe = long_runs[0]
    command = ["mnist_c_byol", "--seed", "5", "--out", str(tmp_path / "run")]
    for change in (
        f"data={recipe.data}",
        "encoder.image_shape=(1, 16, 16)",
        "batch_size=8",
        "epochs=30",
        "encoder.projector=(32, 16)",
    ):
        command += ["--set", change]
    command += ["--save-steps", "2", "--device", "cpu", "--evaluate-epochs", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "train.pretrain", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not find_states(tmp_path / "run"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.terminate()
    said = process.communicate()
    assert process.returncode == 130, said
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "going on after step" in said
    assert said.splitlines()[-1] == str(tmp_path / "run" / "model.safetensors")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 36 * 30 // 8 + 1


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_keeps_the_states_of_a_sweeps_runs(long_runs, tmp_path):
    """There it reaches the whole group: the workers must wait for their parent's word, then save, and say nothing."""
    code = (
        "import signal, sys; from lipcomp._commands import run; from train.sweep import main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(run(main))"
    )
    options = ["--recipes", "mnist_simclr", "--data", long_runs[0].data, "--seeds", "2", "--epochs", "3000"]
    options += ["--batch-size", "8", "--workers", "2", "--device", "cpu", "--save-steps", "1000000"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options, "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    runs = [tmp_path / "runs" / f"mnist_simclr-seed{seed}" for seed in (0, 1)]
    while not all((run / "metrics.jsonl").exists() for run in runs):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "Error" not in said
    assert all(find_states(run) for run in runs)


def test_a_corrupt_last_state_costs_some_steps_and_nothing_else(long_runs, tmp_path):
    recipe = replace(long_runs[0], epochs=3)
    pretrain(recipe, 0, tmp_path / "whole", SETTINGS, report=quiet)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, 0, tmp_path / "run", SETTINGS, report=interrupt_at(10))
    last = find_states(tmp_path / "run")[0]
    last.write_bytes(last.read_bytes()[:-5])
    said = []
    pretrain(recipe, 0, tmp_path / "run", SETTINGS, report=said.append)
    assert "is damaged" in said[0]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_whole_states_of_another_version_are_told(long_runs, tmp_path):
    """They ended in a KeyError, or in PyTorch's list of weights."""
    recipe = replace(long_runs[0], epochs=1)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, 0, tmp_path, SETTINGS, report=interrupt_at(2))
    state = load_state(find_states(tmp_path)[0])
    lacking = {name: value for name, value in state.items() if name != "scaler"}
    fewer = dict(list(state["trainee"].items())[1:])
    for other in (lacking, state | {"trainee": fewer}, state | {"run": "{"}):
        save_state(tmp_path, state["step"], other)
        with pytest.raises(ValueError, match=r"written by another version .* continue .* or remove"):
            pretrain(recipe, 0, tmp_path, SETTINGS, report=quiet)


def interrupt_at(step):
    """Ask for the end, as a scheduler does, once the run is under way; :func:`pretrain` reports its last step."""
    import train.pretrain as module

    before = module.Run.step

    def stepping(self, network, batch):
        if batch.step == step:
            module.Run.step = before
            os.kill(os.getpid(), signal.SIGTERM)
        return before(self, network, batch)

    module.Run.step = stepping
    return quiet


@pytest.mark.parametrize(
    ("precision", "epochs", "step"), [("bf16", 3, 6), pytest.param("fp16", 0.5, 1, marks=pytest.mark.slow)]
)
def test_low_precision_and_accumulation_resume_bitwise_too(long_runs, tmp_path, precision, epochs, step):
    """The shorter one because a CPU multiplies halves slowly."""
    recipe = replace(long_runs[1], epochs=epochs, warmup_epochs=0.25)
    settings = replace(SETTINGS, precision=precision, accumulate=2)
    pretrain(recipe, 0, tmp_path / "whole", settings, report=quiet)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, 0, tmp_path / "run", settings, report=interrupt_at(step))
    assert find_states(tmp_path / "run")[0].name == f"step-{step + 1:08d}.state"
    pretrain(recipe, 0, tmp_path / "run", settings, report=quiet)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


class Drawing(nn.Module):
    """Layers that draw while they are trained, and share a weight."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 9, 3), nn.Conv2d(9, 9, 1)
        self.third = nn.Conv2d(9, 9, 1)
        self.third.weight = self.second.weight

    def forward(self, images):
        return self.third(nn.functional.dropout(self.second(self.first(images)), 0.5, self.training))


def test_dropout_in_a_backbone_of_ones_own_resumes_bitwise_too(long_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "mine:drawing", Drawing)
    encoder = replace(long_runs[1].encoder, backbone="mine:drawing")
    recipe = replace(long_runs[1], encoder=encoder, epochs=2)
    pretrain(recipe, 0, tmp_path / "whole", SETTINGS, report=quiet)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, 0, tmp_path / "run", SETTINGS, report=interrupt_at(4))
    torch.rand(3)
    pretrain(recipe, 0, tmp_path / "run", SETTINGS, report=quiet)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again_and_another_recipe_is_refused(long_runs, tmp_path):
    recipe = replace(long_runs[1], epochs=1)
    path = pretrain(recipe, 0, tmp_path, SETTINGS, report=quiet)
    before = path.stat().st_mtime_ns
    # by a kill after the last write
    left = (tmp_path / "states" / "step-00000003.state", tmp_path / "diverged.json")
    left[0].parent.mkdir()
    for file in left:
        file.write_bytes(b"{}")
    assert pretrain(recipe, 0, tmp_path, SETTINGS, report=quiet) == path
    assert path.stat().st_mtime_ns == before
    assert not left[0].parent.exists()
    assert not left[1].exists()
    with pytest.raises(
        ValueError, match=r"holds a finished run of another kind: its weight_decay is 0\.01, not 0\.02"
    ):
        pretrain(replace(recipe, weight_decay=0.02), 0, tmp_path, SETTINGS, report=quiet)


def test_whatever_defines_a_run_is_compared_finished_or_not(long_runs, bars, write_images, tmp_path):
    """The seed, the recipe to its objective, precision, parts and images by content; names and places are not."""
    recipe = replace(long_runs[1], epochs=1)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, 0, tmp_path / "half", SETTINGS, report=interrupt_at(3))
    pretrain(recipe, 0, tmp_path / "whole", SETTINGS, report=quiet)
    others = write_images(tmp_path / "others", seed=1)
    changes = [
        ("seed is 0, not 1", recipe, 1, SETTINGS),
        ("precision is 'fp32', not 'bf16'", recipe, 0, replace(SETTINGS, precision="bf16")),
        ("accumulate is 1, not 2", recipe, 0, replace(SETTINGS, accumulate=2)),
        ("images is '", replace(recipe, data=str(others)), 0, SETTINGS),
        ("perturb is 0.0, not 0.1", replace(recipe, perturb=0.1), 0, SETTINGS),
        (
            "objective.beta is 1.0, not 0.3",
            replace(recipe, objective=replace(recipe.objective, beta=0.3)),
            0,
            SETTINGS,
        ),
    ]
    for kind in ("half", "whole"):
        for message, other, seed, settings in changes:
            with pytest.raises(ValueError, match=re.escape(message)):
                pretrain(other, seed, tmp_path / kind, settings, report=quiet)
    moved = shutil.copytree(bars, tmp_path / "moved")
    same = replace(recipe, name="another", data=str(moved))
    for kind in ("half", "whole"):
        pretrain(same, 0, tmp_path / kind, SETTINGS, report=quiet)


def test_a_loss_that_is_not_finite_stops_names_its_step_and_keeps_the_last_state(
    long_runs, tmp_path, monkeypatch
):
    import train.networks as networks

    real = networks.Trainee.forward
    count = iter(range(1000))

    def poisoned(self, *arguments, **options):
        result = real(self, *arguments, **options)
        if next(count) == 11:
            bad = torch.tensor(float("nan"))
            return networks.Step(result.value * bad, {**result.metrics, "loss": bad}, result.embeddings)
        return result

    monkeypatch.setattr(networks.Trainee, "forward", poisoned)
    with pytest.raises(
        FloatingPointError, match=r"became nan at step 11 of 46.*last good state.*learning_rate"
    ):
        pretrain(long_runs[0], 0, tmp_path, replace(SETTINGS, log_steps=20), report=quiet)
    assert find_states(tmp_path)[0].name == "step-00000009.state"
    monkeypatch.undo()
    pretrain(long_runs[0], 0, tmp_path, replace(SETTINGS, log_steps=20), report=quiet)
    assert (tmp_path / "model.safetensors").exists()


def test_a_loss_that_is_not_finite_before_the_first_state_does_not_speak_of_one(long_runs, tmp_path):
    recipe = replace(long_runs[1], learning_rate=1e30, warmup_epochs=0)
    with pytest.raises(FloatingPointError, match=r"at step \d of \d+; no state had been written"):
        pretrain(recipe, 0, tmp_path, replace(SETTINGS, save_steps=100), report=quiet)
    assert json.loads((tmp_path / "diverged.json").read_text())["identity"]["seed"] == 0


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, r"the disk of .*is full \(No space left on device\); make room"),
        (errno.EFBIG, r"a file of .*is full \(File too large\); raise the limit \(ulimit -f\)"),
    ],
)
def test_a_full_disk_at_the_start_names_the_path(long_runs, tmp_path, monkeypatch, number, said):
    import train.pretrain as module

    def full(file, steps):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, "keep_lines", full)
    with pytest.raises(OSError, match=said + " and run the same command") as raised:
        pretrain(long_runs[0], 0, tmp_path / "run", SETTINGS, report=quiet)
    assert str(tmp_path / "run") in str(raised.value)
