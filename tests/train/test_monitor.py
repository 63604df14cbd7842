"""What is seen of a run while it trains: ranks, collapse, and where the log goes."""

import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from train.monitor import Monitor, effective_rank, tensorboard_sink, uniformity, wandb_sink
from train.pretrain import pretrain


def test_effective_rank_and_uniformity_of_known_sets():
    assert effective_rank(torch.eye(8)).item() == pytest.approx(8.0, rel=1e-5)
    same = torch.nn.functional.normalize(torch.ones(50, 8), dim=1)
    assert effective_rank(same).item() == pytest.approx(1.0, abs=1e-2)
    assert torch.isnan(effective_rank(torch.full((4, 8), torch.inf)))
    assert uniformity(same).item() == pytest.approx(0.0, abs=1e-5)
    pair = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(pair).item() == pytest.approx(-8.0)


def test_collapse_is_warned_of_once(tmp_path):
    said = []
    monitor = Monitor(tmp_path / "metrics.jsonl", said.append)
    for step, rank in enumerate([5.0, 1.2, 1.1]):
        monitor.watch(step, {"step": step, "effective_rank": rank, "mean_resultant": 0.99, "dimensions": 64})
    monitor.flush()
    assert len(said) == 1
    assert "collapsed at step 1: effective rank 1.20 of 64" in said[0]
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["warning"] == said[0]


def test_a_run_that_collapses_says_so(recipes, tmp_path):
    """BYOL on one grey level: every image is the same."""
    for label in range(2):
        for split in ("train", "test"):
            folder = tmp_path / "data" / split / str(label)
            folder.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(np.full((16, 16), 0, np.uint8)).save(folder / f"{i}.png")
    said = []
    recipe = replace(recipes["byol"], data=str(tmp_path / "data"), epochs=1)
    pretrain(recipe, 0, tmp_path / "run", report=said.append)
    assert any("have collapsed at step 0" in line for line in said)


def test_wandb_gets_every_line_under_an_identity_that_a_resumed_run_finds_again(monkeypatch, tmp_path):
    """The package's interface, as far as it is used, stands in for the service."""
    calls = []

    class Service:
        def log(self, values, step):
            calls.append((step, values))

    def init(**options):
        calls.append(options)
        return Service()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        wandb_sink("project", "c_simclr-seed0", {"epochs": 1}, tmp_path)({"step": 3, "loss": 1.0})
    assert calls[0]["id"] == calls[2]["id"]
    assert calls[0]["resume"] == "allow"
    assert calls[1] == (3, {"loss": 1.0})
    wandb_sink("project", "c_simclr-seed1", {}, tmp_path)
    assert calls[-1]["id"] != calls[0]["id"]


def test_sinks_that_are_not_installed_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"--wandb needs wandb.*lipcomp\[wandb\]"):
        wandb_sink("project", "name", {}, tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"--tensorboard needs.*lipcomp\[train\]"):
        tensorboard_sink(tmp_path)
