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
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from lipcomp.data._sets import TensorImages
from lipcomp.data._views import DigitViews
from lipcomp.encoders._backbones import BACKBONES
from train.command import main
from train.data import check_views, global_generators, seed_globals
from train.folder import find_states, load_state, save_state
from train.networks import Trainee
from train.parallel import Ranks
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


@pytest.fixture(scope="module")
def long_runs(recipes):
    """The compressed methods, 46 steps each; one with AdamW, one with LARS."""
    return [
        replace(recipes["c_byol"], epochs=10, predictor_rate=4.0),
        replace(recipes["c_simclr"], epochs=10, optimizer="lars", learning_rate=1.0),
    ]


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


@pytest.mark.parametrize(("precision", "epochs", "step"), [("bf16", 3, 6), ("fp16", 0.5, 1)])
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


class Skipping(nn.Module):
    """Skips a layer at random while it is trained."""

    def __init__(self, channels, number):
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 9, 3), nn.Conv2d(9, 9, 1)
        self.number = number

    def forward(self, images):
        found = self.first(images)
        skip = self.training and self.number() < 0.5
        return (found if skip else found + self.second(found)).mean((2, 3))


@pytest.mark.parametrize(
    ("number", "one", "two"),
    [
        (random.random, False, True),
        (lambda: np.random.rand(), False, True),  # noqa: NPY002
        (lambda: torch.rand(()).item(), False, "decide with Python's random"),
        (random.Random(0).random, "no run could be repeated or continued", "no run could be repeated"),
    ],
    ids=["python", "numpy", "torch", "own"],
)
def test_layers_that_are_skipped_at_random_are_skipped_alike_or_refused(
    long_runs, monkeypatch, number, one, two
):
    monkeypatch.setitem(BACKBONES, "mine:skipping", lambda channels: Skipping(channels, number))
    encoder = replace(long_runs[1].encoder, backbone="mine:skipping")
    trainee = Trainee(replace(long_runs[1], encoder=encoder), 0, 2).train()
    for size, told in enumerate((one, two), 1):
        with global_generators(torch.device("cpu")):
            if isinstance(told, bool):
                assert trainee.check_draws(Ranks(0, size), 8) is told
            else:
                with pytest.raises(ValueError, match=told):
                    trainee.check_draws(Ranks(0, size), 8)


class Exacting(nn.Module):
    """Takes its batch in four parts, keeps what it saw, moves a weight, calls a layer without weights or does not."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.norm, self.act = nn.Conv2d(channels, 9, 3), nn.BatchNorm2d(9), nn.ReLU()
        self.register_buffer("seen", torch.zeros(0, 9))

    def forward(self, images):
        found = self.first(images)
        if self.training:
            found = torch.cat([self.norm(part) for part in found.unflatten(0, (4, -1))])
            self.seen = torch.cat([self.seen, found.mean((2, 3))])
            if not hasattr(self, "count"):
                self.register_buffer("count", torch.zeros(()))
            self.first.weight.data.add_(0.1)
            found = self.act(found) if torch.rand(()) < 0.5 else found
        return found.mean((2, 3)) * torch.tensor([1] * 8 + [torch.nan])


def test_the_look_at_a_network_refuses_no_more_than_it_must_and_leaves_it_as_it_was(long_runs, monkeypatch):
    monkeypatch.setitem(BACKBONES, "mine:exacting", Exacting)
    encoder = replace(long_runs[1].encoder, backbone="mine:exacting")
    trainee = Trainee(replace(long_runs[1], encoder=encoder), 0, 2).train()
    before = {name: value.clone() for name, value in trainee.state_dict().items()}
    with global_generators(torch.device("cpu")):
        assert trainee.check_draws(Ranks(0, 2), 8) is False
    after = trainee.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_global_generators_belong_to_the_step_and_are_left_as_they_were():
    def drawn():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    expected = drawn()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    found = []
    with global_generators(torch.device("cpu")):
        for rank, step in ((0, 5), (0, 5), (1, 5), (0, 6)):
            seed_globals(0, rank, step)
            found.append(drawn())
    assert drawn() == expected
    assert found[0] == found[1]
    assert found[2][:2] == found[0][:2]  # alike on all ranks, but for torch's
    assert found[2][2] != found[0][2]
    assert found[3] != found[0]


@dataclass(frozen=True)
class MyViews(DigitViews):
    """Views that draw from some generator."""

    where: str = "apply"
    number: ClassVar = staticmethod(random.random)

    def draw(self, n, generator):
        numbers = super().draw(n, generator) * (self.number() if self.where == "draw" else 1)
        return numbers[1:] if self.where == "rows" else numbers

    def apply(self, images, numbers):
        return super().apply(images * (self.number() if self.where == "apply" else 1), numbers)


@pytest.mark.parametrize(
    ("where", "number", "said"),
    [
        ("apply", random.random, None),
        ("draw", random.random, r"MyViews\.draw must take all its random numbers from the generator"),
        ("rows", random.random, r"a tensor with 4 rows, one per image; it returned \(3, \d+\)"),
        ("apply", random.Random(0).random, r"MyViews\.apply makes other views"),
    ],
)
def test_views_of_ones_own_that_no_run_could_repeat_are_refused(where, number, said, monkeypatch):
    monkeypatch.setattr(MyViews, "number", staticmethod(number))
    images = TensorImages(
        "x", torch.full((4, 1, 8, 8), 200, dtype=torch.uint8), torch.arange(4), tuple("abcd")
    )
    with (
        global_generators(torch.device("cpu")),
        nullcontext() if said is None else pytest.raises(ValueError, match=said),
    ):
        check_views(MyViews(where=where), images, torch.device("cpu"))


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
    left = (
        tmp_path / "states" / "step-00000003.state",
        tmp_path / "diverged.json",
    )  # by a kill after the last write
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


def test_a_full_disk_at_the_start_names_the_path(long_runs, tmp_path, monkeypatch):
    import train.pretrain as module

    def full(file, steps):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "keep_lines", full)
    with pytest.raises(OSError, match=rf"{tmp_path / 'run'}' is full \(No space left.*run the same command"):
        pretrain(long_runs[0], 0, tmp_path / "run", SETTINGS, report=quiet)
