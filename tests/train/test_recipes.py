"""Recipes: the paper's numbers, parameter counts, pairs that differ in the objective alone, fields changed by name."""

import dataclasses
import json
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from lipcomp._functions import load_function
from lipcomp.encoders import EncoderSpec, build_encoder, register_backbone
from lipcomp.encoders._backbones import BACKBONES
from lipcomp.objectives import BYOL, CBYOL, CSimCLR, Objective, SimCLR
from lipcomp.objectives._supervised import CosineClassifier
from train.imagenet import imagenet
from train.networks import Trainee
from train.optimizers import scale_rate, total_steps
from train.recipe import change, compress, pair, with_beta
from train.recipes import FAMILIES, METHODS, RECIPES, family_for, find_recipe, mnist_byol


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


@pytest.mark.parametrize("method", ["simclr", "byol", "c_simclr", "c_byol", "supervised", "ceb"])
def test_a_pair_differs_in_its_objective_and_nothing_else(method):
    plain, compressed = pair(replace(find_recipe(f"mnist_{method}"), epochs=3))
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
    swept = with_beta(find_recipe("mnist_c_simclr"), 0.3)
    assert (swept.name, swept.objective.beta, swept.pair) == ("mnist_c_simclr-beta0.3", 0.3, "mnist_simclr")


def test_fields_are_changed_by_name():
    recipe = change(find_recipe("mnist_c_simclr"), {"objective.beta": "0.3"})
    assert recipe.objective.beta == 0.3
    assert change(recipe, {"epochs": "20"}).epochs == 20
    whole = change(recipe, {"objective.kappa_e": "512"})
    assert whole.objective.kappa_e == 512
    # as a recipe of one's own may have it
    written = replace(recipe, objective=replace(recipe.objective, kappa_e=512))
    assert change(written, {"objective.kappa_e": "512.5"}).objective.kappa_e == 512.5
    assert change(recipe, {"views.scale": "(0.5, 2.0)"}).views.scale == (0.5, 2.0)
    assert change(recipe, {"probe": "None"}).probe is None
    assert change(recipe, {"data": "/data/x y"}).data == "/data/x y"
    few = change(
        recipe, {"images": "20", "batch_size": "10", "objective.beta": "2", "objective.kappa_e": "9"}
    )
    assert (few.images, few.batch_size, few.objective.beta, few.objective.kappa_e) == (20, 10, 2.0, 9.0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("learning_rates", "1", "did you mean 'learning_rate'"),
        ("objective.bета", "1", "not a field of CSimCLR"),
        ("objective.kappa", "1", "did you mean 'kappa_b'|did you mean 'kappa_e'"),
        ("objective", "1", "objective.NAME=VALUE"),
        ("batch_size", "'many'", "batch_size must be of type int"),
        ("objective.kappa_e", "'a'", "kappa_e must be a number"),
        ("epochs", "True", "epochs must be a number"),
        ("epochs", "nan", "epochs must be a number"),
        ("batch_size", "True", "batch_size must be of type int"),
        ("name", "a/b", "name must be a name for a folder"),
        ("name", "..", "name must be a name for a folder"),
        ("encoder.projector", "(16,)", "projector"),  # a type check of the tests may come first
        ("encoder.projector", "(16, -4)", "must be positive integers"),
        ("encoder.projector", "(16, 'a')", "projector"),
        ("epochs.x", "1", "has no fields"),
        ("objective.beta", "-1", "beta"),
        ("objective.kappa_e", "0", "kappa_e"),
        ("images", "800.5", "images must be a whole number or None, got float 800.5"),
        ("images", "True", "images must be a whole number or None, got bool True"),
        ("encoder.predictor", "True", r"encoder\.predictor must be a whole number or None, got bool True"),
        ("encoder.projector", "(True, 4)", "encoder.projector must be .* or None, got tuple"),
        ("encoder.mean", "(True,)", "encoder.mean must be a sequence"),
        ("encoder.std", "(1e999,)", r"std must be finite, got \(inf,\)"),
        ("objective.bidirectional", "None", r"objective\.bidirectional must be True or False, got NoneType"),
        ("objective.sampling", "2", "objective.sampling must be of type bool"),
        ("views.scale", "(1,)", "scale"),  # as above
        ("views.scale", "(0.0, 1.0)", r"scale must be in \[0.01, 100\]"),
        ("views.contrast", "(1.0, 0.5)", r"contrast must be \(lowest, highest\)"),
        ("views.degrees", "1e999", "degrees must be finite and at least 0"),
        ("objective.kappa_e", "1e13", r"kappa_e must be at most 1e\+12"),
        ("batch_size", "1", "batch_size must be at least 2"),
        ("learning_rate", "1e999", "learning_rate must be positive and finite"),
        ("optimizer", "lamb", "optimizer must be one of"),
        ("target_decay", "1.0", r"target_decay must be in \[0, 1\)"),
    ],
)
def test_bad_fields_are_refused_and_named(path, value, message):
    with pytest.raises(ValueError, match=message):
        change(find_recipe("mnist_c_simclr"), {path: value})


def test_unknown_recipes_get_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'mnist_c_simclr'"):
        find_recipe("mnist_csimclr")
    with pytest.raises(ValueError, match="did you mean 'c_simclr'"):
        find_recipe("csimclr")
    with pytest.raises(ValueError, match="the paper has ResNet-50"):
        imagenet("byol", depth=18)
    with pytest.raises(ValueError, match="no compressed twin"):
        compress(find_recipe("mnist_c_simclr"), "twice")
    with pytest.raises(ValueError, match="through a predictor"):
        replace(mnist_byol(), encoder=EncoderSpec("small_cnn", (1, 28, 28)))


def test_every_family_has_every_method_on_its_own_data():
    assert {f"{family}_{method}" for family in FAMILIES for method in METHODS} < RECIPES.keys()
    fashion, stl, svhn = (find_recipe(f"{family}_c_simclr") for family in ("fashion_mnist", "stl10", "svhn"))
    assert (fashion.data, fashion.encoder.image_shape, fashion.encoder.mean) == (
        "fashion_mnist",
        (1, 28, 28),
        (0.286,),
    )
    assert (stl.encoder.image_shape, stl.encoder.backbone) == ((3, 96, 96), "resnet18")
    assert (svhn.views.flip, find_recipe("cifar100_byol").views.flip) == (0.0, 0.5)
    assert [family_for(shape) for shape in ((1, 28, 28), (3, 32, 32), (1, 64, 64), (3, 224, 224))] == [
        "mnist",
        "cifar10",
        "cifar10",
        "imagenet100",
    ]


def test_a_recipe_of_ones_own_comes_from_a_file_or_a_module(tmp_path, monkeypatch):
    file = tmp_path / "own_recipes.py"
    file.write_text(
        "from dataclasses import replace\nfrom train.recipes import find_recipe\n\n"
        "def long():\n    return replace(find_recipe('mnist_simclr'), name='long', epochs=60)\n\n"
        "def wrong():\n    return 3\n\n"
        "def lost():\n    raise KeyError('here')\n"
    )
    assert find_recipe(f"{file}:long").epochs == 60
    monkeypatch.syspath_prepend(tmp_path)
    assert find_recipe("own_recipes:long").name == "long"
    with pytest.raises(ImportError, match=r"no function 'longer'; did you mean 'long'"):
        find_recipe(f"{file}:longer")
    with pytest.raises(ValueError, match=r"must return a train\.recipe\.Recipe, it returned int"):
        find_recipe(f"{file}:wrong")
    with pytest.raises(
        ValueError, match=r"own_recipes.py:lost' failed, called with no arguments \(KeyError: 'here'"
    ):
        find_recipe(f"{file}:lost")
    with pytest.raises(ImportError, match=r"cannot be imported \(FileNotFoundError"):
        find_recipe(f"{tmp_path / 'none.py'}:long")
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    with pytest.raises(ImportError, match="No module named 'no_such_package'"):
        find_recipe(f"{tmp_path / 'broken.py'}:long")


def test_texts_that_read_as_numbers_are_names_and_lists_are_tuples():
    changed = change(mnist_byol(), {"data": "2024", "name": "007", "encoder.projector": "[8, 4]"})
    assert (changed.data, changed.name, changed.encoder.projector) == ("2024", "007", (8, 4))


@pytest.mark.parametrize("number", [np.int64, np.float32, np.float64])
def test_numbers_of_numpy_are_numbers_and_what_is_none_is_refused(number):
    recipe = replace(find_recipe("mnist_simclr"), epochs=number(3))
    json.dumps(recipe.to_dict())
    with pytest.raises(ValueError, match="epochs"):
        replace(recipe, epochs="3")


@dataclass(frozen=True)
class Own(Objective, family="simclr"):
    """An objective of one's own, whose arguments nothing checks."""

    hard: bool = True
    width: int | None = None
    known: "Unknown" = 3  # noqa: F821

    __call__ = None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hard", "None", "objective.hard must be True or False"),
        ("width", "True", "objective.width must be a whole number or None"),
        ("width", "4", None),
    ],
)
def test_fields_of_ones_own_are_of_their_kind(monkeypatch, field, value, message):
    """None was taken for False, True for a width of 1."""
    own = replace(find_recipe("mnist_simclr"), objective=Own())
    assert change(own, {"objective.known": "4"}).objective.known == 4  # what cannot be read is not looked at
    monkeypatch.delitem(Own.__annotations__, "known")
    if message is None:
        assert change(own, {f"objective.{field}": value}).objective.width == 4
        return
    with pytest.raises(ValueError, match=message):
        change(own, {f"objective.{field}": value})


class Undescribed:
    """Views or an objective without fields."""

    family, numbers, draw, apply = "simclr", 1, None, None

    def __call__(self):
        pass


def test_parts_of_ones_own_are_dataclasses_and_their_code_is_a_part_of_the_recipe(tmp_path, monkeypatch):
    recipe = find_recipe("mnist_simclr")
    assert not [name for name in recipe.to_dict() if name.endswith("_code")]
    with pytest.raises(
        ValueError, match=r"views must be a dataclass.* @dataclass\(frozen=True\) before Undescribed"
    ):
        replace(recipe, views=Undescribed())
    told = []
    for edit in ("1)", "1)  # the same", "0)"):
        code = (
            f"import torch\n\ndef net(channels):\n    return torch.nn.Conv2d(channels, 8, 3, padding={edit}\n"
        )
        (tmp_path / "own_net.py").write_text(code)
        monkeypatch.delitem(sys.modules, "own_net", raising=False)
        register_backbone("mine:net", load_function(f"{tmp_path}/own_net.py:net"))
        own = replace(recipe, encoder=EncoderSpec("mine:net", (1, 28, 28)))
        told.append(own.to_dict()["backbone_code"])
    assert told[0] == told[1] != told[2]
    monkeypatch.delitem(BACKBONES, "mine:net")


CACHE, WIDTH = {}, 3


def cached(channels):
    """A network whose file keeps something while it runs."""
    return CACHE.setdefault(channels, torch.nn.Conv2d(channels, WIDTH, 3))


def test_a_cache_that_fills_is_no_edit_and_a_constant_is_one(monkeypatch):
    """The second run of a sweep in one process was refused when it was repeated."""
    monkeypatch.setitem(BACKBONES, "mine:cached", cached)
    recipe = replace(find_recipe("mnist_simclr"), encoder=EncoderSpec("mine:cached", (1, 28, 28)))
    before = recipe.to_dict()["backbone_code"]
    monkeypatch.setitem(CACHE, 1, "filled")
    assert recipe.to_dict()["backbone_code"] == before
    monkeypatch.setitem(globals(), "WIDTH", 4)
    assert recipe.to_dict()["backbone_code"] != before
    monkeypatch.undo()
    monkeypatch.setitem(globals(), "CACHE", {2: "another"})
    monkeypatch.setitem(BACKBONES, "mine:cached", cached)
    assert recipe.to_dict()["backbone_code"] != before


def test_a_perturbation_is_relative_recorded_and_keeps_copies_copies():
    recipe = replace(mnist_byol(), perturb=1e-3)
    plain, moved = Trainee(mnist_byol(), 0, 10), Trainee(recipe, 0, 10)
    for name, weight in plain.named_parameters():
        other = moved.get_parameter(name)
        torch.testing.assert_close(other, weight, rtol=6e-3, atol=0)
        assert weight.count_nonzero() == 0 or not torch.equal(other, weight)
    assert torch.equal(moved.online.backbone.layers[0].weight, moved.target.backbone.layers[0].weight)
    assert recipe.to_dict()["perturb"] == 1e-3
