"""Scores that are known give the AUROC they must; the radius of an attack is a linear classifier's distance."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from analyses.image_by_image import HEAD, RADII, SCORES, attack_radius, cells, read_rows, scores

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def rows(models=3, images=60):
    random = np.random.default_rng(0)
    ease = random.normal(size=images)
    parts = []
    for model in range(models):
        parts.append(
            pd.DataFrame(
                {
                    "run": f"m{model}",
                    "image": range(images),
                    "label": np.arange(images) % 5,
                    "flipped": ease,
                    "attack": -ease,
                    "sigma": ease + model,  # another level for each model says nothing about its images
                    "searched": random.normal(size=images),
                    "certified": np.nan,
                    "margin": -ease,
                    "relative": ease,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def test_scores_of_known_rows():
    found = scores(rows()).set_index(["changed by", "score"])["AUROC"]
    for by in ("corruptions", "PGD, L2"):
        of = {key: found.get((by, name)) for key, name in SCORES.items()}
        assert of["sigma"] == of["margin"] == 1
        assert of["relative"] == 0
        assert of["certified"] is None
        assert 0.3 < of["searched"] < 0.7
    assert [row[3] for row in cells(scores(rows(models=1)).assign(low=np.nan))] == ["-"] * 8


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv does not exist; measure a study first with --out"):
        read_rows(tmp_path / "none.csv")


def test_the_published_table_is_that_of_its_rows():
    page = (RESULTS / "index.md").read_text()
    found = cells(scores(pd.read_csv(RESULTS / "mnist-doses" / "image-by-image.csv.xz")))
    lines = [" | ".join(row) for row in (HEAD, ("---",) * len(HEAD), *found)]
    said = page.partition("<!-- image-by-image -->\n")[2].partition("<!-- /image-by-image -->")[0]
    assert said.splitlines() == [f"| {line} |" for line in lines]


def test_the_attacks_radius_is_a_linear_classifiers_distance():
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    linear = nn.Linear(16, 3)
    linear.weight.data, linear.bias.data = weight, torch.zeros(3)
    classifier = nn.Sequential(nn.Flatten(), linear).eval().requires_grad_(False)
    images = 0.3 + 0.4 * torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    logits = classifier(images)
    best = logits.argmax(1)
    apart = (weight[best][:, None] - weight[None]).norm(dim=2)
    exact = ((logits.gather(1, best[:, None]) - logits) / apart).nan_to_num(torch.inf).amin(1).numpy()
    found = attack_radius(classifier, images, best)
    radii = np.append(RADII, np.inf)
    wanted = radii[np.searchsorted(radii, exact)]
    inside = exact < 0.3  # where the pixels' range does not bind
    assert inside.sum() > 4
    assert (found >= wanted)[inside].all()
    assert (found == wanted)[inside].mean() > 0.9
