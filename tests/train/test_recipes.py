"""Recipes: the paper's numbers, parameter counts, pairs that differ in the objective alone, fields changed by name."""

import dataclasses
import json
from dataclasses import replace

import pytest
import torch

from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.objectives import BYOL, CBYOL, CosineClassifier, CSimCLR, SimCLR
from train.imagenet import imagenet
from train.networks import Trainee
from train.recipe import change, compress, pair, with_beta
from train.recipes import (
    RECIPES,
    find_recipe,
    mnist_byol,
    mnist_c_byol,
    mnist_c_simclr,
    mnist_ceb,
    mnist_simclr,
    mnist_supervised,
)
from train.schedules import scale_rate, total_steps


def different_fields(one, other):
    return {f.name for f in dataclasses.fields(one) if getattr(one, f.name) != getattr(other, f.name)}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_functions_name_and_survives_json(name):
    recipe = find_recipe(name)
    assert recipe.name == name
    assert json.loads(json.dumps(recipe.to_dict()))["objective"]["name"] == type(recipe.objective).__name__
    if recipe.pair and name != "imagenet_c_byol_1500":  # published without its twin
        assert find_recipe(recipe.pair).pair is None


@pytest.mark.parametrize(
    ("name", "peak", "decay", "weight_decay", "steps"),
    [
        ("imagenet_simclr_300", 4.8, None, 1e-6, 93_836),
        ("imagenet_simclr_1000", 3.2, None, 1.5e-6, 312_785),
        ("imagenet_c_simclr_300", 4.8, None, 1e-6, 93_836),
        ("imagenet_c_simclr_1000", 3.2, None, 1.5e-6, 312_785),
        ("imagenet_byol_300", 4.8, 0.99, 1e-6, 93_836),
        ("imagenet_byol_1000", 3.2, 0.996, 1.5e-6, 312_785),
        ("imagenet_c_byol_300", 5.6, 0.99, 1e-6, 93_836),
        ("imagenet_c_byol_1000", 4.0, 0.996, 1.5e-6, 312_785),
        ("imagenet_c_byol_1500", 4.0, 0.996, 1.5e-6, 469_178),
    ],
)
def test_the_papers_numbers(name, peak, decay, weight_decay, steps):
    """Flags and scripts of the official code: docs/training.md."""
    recipe = find_recipe(name)
    assert scale_rate(recipe.learning_rate, recipe.batch_size, recipe.scaling) == pytest.approx(peak)
    assert (recipe.optimizer, recipe.batch_size, recipe.warmup_epochs) == ("lars", 4096, 10)
    assert recipe.weight_decay == weight_decay
    assert total_steps(1_281_167, recipe.batch_size, recipe.epochs) == steps
    assert (recipe.initialisation, recipe.target_start) == ("paper", "independent")
    if decay is not None:
        assert recipe.target_decay == decay
        assert recipe.objective.weight == (5.0 if recipe.epochs == 300 else 2.0)
    if name.startswith("imagenet_c_"):
        expected = 16384.0 if "byol" in name else 1024.0
        objective = recipe.objective
        assert (objective.kappa_e, objective.kappa_b, objective.beta) == (expected, 10.0, 1.0)


def test_parameter_counts_of_every_part():
    """Published: ResNet-50 has 24M (23.5M without its classifier), ResNet-50 2x 94M. Heads by hand."""

    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        trainee = Trainee(imagenet("c_byol"), 0, 1000)
    online = trainee.online
    assert count(online.backbone) == 23_508_032
    assert count(online.projector) == 2048 * 4096 + 2 * 4096 + 4096 * 256
    assert count(online.predictor) == count(trainee.backward_head) == 256 * 4096 + 2 * 4096 + 4096 * 256
    assert count(online.decoder) == 256 * 256
    assert count(trainee.probe) == 2048 * 1000 + 1000
    assert count(trainee.target) == count(online.backbone) + count(online.projector)
    with torch.device("meta"):
        wide = build_encoder(imagenet("simclr", width=2).encoder)
    assert count(wide.backbone) == pytest.approx(94e6, rel=0.01)
    assert wide.backbone.out_features == 4096


@pytest.mark.parametrize("depth", [50, 101, 152])
@pytest.mark.parametrize("width", [1, 2])
def test_every_depth_and_width_of_the_paper_can_be_named(depth, width):
    recipe = imagenet("c_byol", 1000, depth, width)
    assert recipe.encoder.backbone == f"resnet{depth}{'_2x' * (width == 2)}_tf"
    assert recipe.pair == imagenet("byol", 1000, depth, width).name


@pytest.mark.parametrize(
    "make", [mnist_simclr, mnist_byol, mnist_c_simclr, mnist_c_byol, mnist_supervised, mnist_ceb]
)
def test_a_pair_differs_in_its_objective_and_nothing_else(make):
    plain, compressed = pair(replace(make(), epochs=3))
    differing = different_fields(plain, compressed) - {"name", "pair"}
    if isinstance(compressed.objective, CBYOL):
        assert differing == {"objective", "encoder"}
        assert replace(compressed.encoder, decoder=False) == plain.encoder
        assert plain.objective == BYOL(compressed.objective.weight)
    else:
        assert differing == {"objective"}
        temperature = 1 / compressed.objective.kappa_b
        twin = SimCLR if isinstance(compressed.objective, CSimCLR) else CosineClassifier
        assert plain.objective == twin(temperature)
    assert compressed.pair == plain.name
    assert plain.epochs == compressed.epochs == 3


def test_the_published_c_byol_is_no_pair_of_the_published_byol_but_pair_makes_one():
    published = imagenet("c_byol")
    assert different_fields(published, imagenet("byol")) == {
        "name",
        "objective",
        "encoder",
        "pair",
        "learning_rate",
    }
    plain, compressed = pair(published)
    assert compressed == published
    assert plain.learning_rate == 0.35


def test_beta_is_replaced_and_named():
    swept = with_beta(mnist_c_simclr(), 0.3)
    assert (swept.name, swept.objective.beta, swept.pair) == ("mnist_c_simclr-beta0.3", 0.3, "mnist_simclr")


def test_fields_are_changed_by_name():
    recipe = change(mnist_c_simclr(), "objective.beta", "0.3")
    assert recipe.objective.beta == 0.3
    assert change(recipe, "epochs", "20").epochs == 20
    assert change(recipe, "views.scale", "(0.5, 2.0)").views.scale == (0.5, 2.0)
    assert change(recipe, "probe", "None").probe is None
    assert change(recipe, "data", "/data/x y").data == "/data/x y"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("learning_rates", "1", "did you mean 'learning_rate'"),
        ("objective.bета", "1", "no field of CSimCLR"),
        ("objective.kappa", "1", "did you mean 'kappa_b'|did you mean 'kappa_e'"),
        ("objective", "1", "objective.NAME=VALUE"),
        ("batch_size", "'many'", "batch_size is a int"),
        ("epochs.x", "1", "no fields of its own"),
        ("objective.beta", "-1", "beta"),
        ("objective.kappa_e", "0", "kappa_e"),
        ("batch_size", "1", "batch_size must be at least 2"),
        ("learning_rate", "1e999", "learning_rate must be positive and finite"),
        ("optimizer", "lamb", "optimizer must be one of"),
        ("target_decay", "1.0", r"target_decay must be in \[0, 1\)"),
    ],
)
def test_bad_fields_are_refused_and_named(path, value, message):
    with pytest.raises(ValueError, match=message):
        change(mnist_c_simclr(), path, value)


def test_unknown_recipes_get_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'mnist_c_simclr'"):
        find_recipe("mnist_csimclr")
    with pytest.raises(ValueError, match="the paper has ResNet-50"):
        imagenet("byol", depth=18)
    with pytest.raises(ValueError, match="no compressed twin"):
        compress(mnist_c_simclr(), "twice")
    with pytest.raises(ValueError, match="through a predictor"):
        replace(mnist_byol(), encoder=EncoderSpec("small_cnn", (1, 28, 28)))
