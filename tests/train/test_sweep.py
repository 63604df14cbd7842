"""A study's sweep: pairs x beta x seed, resumed as a whole, another study refused."""

import json
from dataclasses import replace

import pytest

from lipcomp.checkpoints import load_checkpoint
from lipcomp.jobs import Outcome
from train import sweep as module
from train.recipe import with_beta
from train.sweep import PRESETS, Preset, sweep


def test_the_presets_hold_what_they_promise():
    default, quick, full = (PRESETS[name]() for name in ("default", "quick", "full"))
    assert (len(default.recipes), default.seeds) == (5, 3)
    assert (len(quick.recipes), quick.seeds) == (5, 1)
    assert "proves nothing" in quick.purpose
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


def test_a_sweep_trains_what_is_missing_and_refuses_another_study(recipes, tmp_path, monkeypatch, capsys):
    short = [replace(recipes[name], epochs=1) for name in ("simclr", "c_simclr")]
    tiny = Preset((short[0], with_beta(short[1], 0.3)), 2, "a test")
    monkeypatch.setitem(PRESETS, "tiny", lambda: tiny)
    sweep("tiny", tmp_path, 1)
    names = sorted(folder.name for folder in (tmp_path / "runs").iterdir())
    assert names == ["c_simclr-beta0.3-seed0", "c_simclr-beta0.3-seed1", "simclr-seed0", "simclr-seed1"]
    assert json.loads((tmp_path / "study.json").read_text())["runs"].keys() == set(names)
    checkpoint = load_checkpoint(tmp_path / "runs" / names[0] / "model.safetensors")
    assert checkpoint.metadata.objective["beta"] == 0.3
    assert json.loads((tmp_path / "timings.jsonl").read_text())["stage"] == "train"

    before = {name: (tmp_path / "runs" / name / "model.safetensors").read_bytes() for name in names}
    (tmp_path / "runs" / names[1] / "model.safetensors").unlink()
    in_process = lambda f, jobs, workers: (Outcome(i, f(*job)) for i, job in enumerate(jobs))  # noqa: E731
    monkeypatch.setattr(module, "run_jobs", in_process)
    capsys.readouterr()
    sweep("tiny", tmp_path, 1)
    assert "4 runs, 3 finished before" in capsys.readouterr().out
    for name, data in before.items():
        assert (tmp_path / "runs" / name / "model.safetensors").read_bytes() == data
    monkeypatch.setitem(PRESETS, "tiny", lambda: replace(tiny, seeds=3))
    with pytest.raises(ValueError, match="holds another study"):
        sweep("tiny", tmp_path, 1)
