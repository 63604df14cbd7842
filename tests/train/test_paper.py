"""The paper kit: every row of the table has a recipe, and the script goes the whole way on a tiny ImageNet."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipcomp.records import read_records
from lipcomp.robustness._shifted import imagenet_wnids
from train.recipes import find_recipe

ROOT = Path(__file__).parents[2]


def test_every_row_of_the_table_is_a_recipe():
    page = (ROOT / "docs" / "reproduce.md").read_text()
    rows = re.findall(r"\| `sbatch train/paper\.sh (\S+) /data` \|", page)
    assert len(rows) == 11
    names = [find_recipe(row).name for row in rows]
    assert names == rows
    assert find_recipe("imagenet_c_byol_1000_r152").encoder.backbone == "resnet152_tf"
    assert find_recipe("imagenet_simclr_1000_2x").encoder.backbone == "resnet50_2x_tf"


@pytest.fixture
def tiny(tmp_path):
    """Two classes of ImageNet and of ImageNet-C in their published layouts, JPEGs of 48 x 40."""
    both = imagenet_wnids()[:2]
    rng = np.random.default_rng(0)

    def write(place, count):
        for name, colour in zip(both, ((200, 60, 60), (60, 60, 200)), strict=True):
            folder = tmp_path / place.format(wnid=name)
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = np.clip(np.array(colour) + rng.normal(0, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.JPEG", quality=90)

    write("imagenet/train/{wnid}", 8)
    write("imagenet/val/{wnid}", 4)
    for corruption in ("fog", "contrast"):
        for severity in range(1, 6):
            write(f"imagenet-c/{corruption}/{severity}/{{wnid}}", 4)
    return tmp_path


@pytest.mark.slow
def test_the_script_trains_and_evaluates_a_tiny_imagenet(tiny):
    """The real script and commands: training, clean accuracy, ImageNet-C; sets that are missing are named.

    The shifts are refused unless they hold every published image, so they are not part of this rehearsal.
    """
    out = tiny / "run"
    changes = [
        "--image-size=32",
        "--batch-size=8",
        "--epochs=1",
        "--backbone=resnet18_tf",
        "--set=warmup_epochs=0",
    ]
    changes += ["--set", "encoder.projector=(16, 8)", "--set", "encoder.predictor=16"]
    done = subprocess.run(
        ["bash", "train/paper.sh", "imagenet_c_byol_300", str(tiny), str(out), *changes],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "GPUS": "0",
            "DEVICE": "cpu",
            "PRECISION": "fp32",
            "PROBE": "linear",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert f"not there: {tiny}/objectnet" in done.stdout
    measured = str(read_records(out / "robustness.jsonl"))
    assert "fog" in measured
    assert "contrast" in measured
