"""The command line of python -m train.pretrain. Options come from the dataclasses and their docstrings.

Each field of :class:`Settings` is an option of the same name. ``--set FIELD=VALUE`` changes any field of the recipe;
common fields have their own flag. The help texts are the first sentences of the fields' descriptions.
"""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_type_hints

from lipcomp._commands import Parser, UsageError, choose_device
from lipcomp._functions import load_function
from lipcomp._messages import nearest
from lipcomp.data._known import SETS
from lipcomp.encoders import register_backbone
from lipcomp.measure._options import positive, seed
from train.data import Report, first_look, fit_to_data
from train.pretrain import pretrain
from train.recipe import Recipe, change
from train.recipes import FAMILIES, METHODS, family_for, find_recipe, with_method
from train.settings import Settings

EPILOG = """
examples:
  python -m train.pretrain mnist_c_simclr --seed 0
  python -m train.pretrain c_simclr --data my_images --image-size 96 --epochs 100 --beta 0.3
  python -m train.pretrain cifar10_c_byol --data-root /data --precision bf16 --compile --tensorboard
  python -m train.pretrain my_recipes.py:fashion_c_simclr --backbone timm/resnet26
  torchrun --nproc-per-node 8 -m train.pretrain imagenet_c_byol_1000 --data /data/imagenet --precision bf16
"""
# Flags for common fields of the recipe.
SHORT = {
    "epochs": "epochs",
    "batch-size": "batch_size",
    "lr": "learning_rate",
    "beta": "objective.beta",
    "perturb": "perturb",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one encoder."""
    parser = Parser(
        prog="python -m train.pretrain",
        description="Train one encoder. Run the same command again to continue after an interruption.",
        epilog=EPILOG + "\n" + recipe_fields(),
    )
    # fmt: off
    parser.add_argument("recipe",
        help=f"FAMILY_METHOD, where FAMILY is one of {', '.join(FAMILIES)} and METHOD one of {', '.join(METHODS)}; "
        "or imagenet_METHOD_300, imagenet_METHOD_1000, METHOD alone (with --data), or FILE.py:FUNCTION")
    parser.add_argument("--seed", type=seed, default=0, help="random seed of weights, data order, views and noise")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE-SEED)")
    # fmt: on
    add_recipe_options(parser)
    add_settings(parser)
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    recipe = recipe_of(options.recipe, options, settings, print)
    check_set([recipe], options)
    out = options.out or Path("runs") / f"{recipe.name.replace('/', '_')}-{options.seed}"
    print(pretrain(recipe, options.seed, out, settings))
    return 0


# The recipe.


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """``--data``, ``--set`` and the flags for common fields; :func:`recipe_of` reads them."""
    group = parser.add_argument_group("recipe")
    # fmt: off
    group.add_argument("--data", help=f"training set: a folder, or one of {', '.join(SETS)}; shape, mean, std and "
        "views are adapted to it (default: the recipe's)")
    group.add_argument("--image-size", type=positive(int),
        help="side in pixels that images are resized to (default: the recipe's)")
    group.add_argument("--backbone", help="network: a name of lipcomp.encoders, timm/NAME, or FILE.py:FUNCTION, "
        "which is called with the number of channels (default: the recipe's)")
    # fmt: on
    texts = {**descriptions(Recipe), "objective.beta": "Strength of the compression, at least 0."}
    for flag, field in SHORT.items():
        kind = "INT" if field == "batch_size" else "FLOAT"
        group.add_argument(
            f"--{flag}", metavar=kind, help=f"{_sentence(texts[field])} (default: the recipe's)"
        )
    # fmt: off
    group.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
        help="change any field of the recipe, as in objective.kappa_e=512, or of one recipe of a sweep alone, as in "
        "c_simclr:objective.kappa_e=512; repeatable; fields are listed below")
    # fmt: on


def recipe_of(name: str, options: argparse.Namespace, settings: Settings, report: Report) -> Recipe:
    """The named recipe with the changes that the options ask for.

    Raises
    ------
    ValueError
        If there is no such recipe or field.
    UsageError
        If a method is given without data, or options contradict each other.
    """
    if name in METHODS:
        if options.data is None:
            raise UsageError(
                f"method {name!r} needs data: add --data FOLDER, or choose a recipe such as mnist_{name}"
            )
        channels, *own = first_look(options.data, settings).image_shape
        side = options.image_size or max(own)
        recipe = dataclasses.replace(with_method(family_for((channels, side, side)), name), name=name)
    else:
        recipe = find_recipe(name)
    if options.data is not None:
        recipe = fit_to_data(recipe, options.data, settings, report, options.image_size)
    elif options.image_size is not None:
        shape = (recipe.encoder.image_shape[0], options.image_size, options.image_size)
        recipe = dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, image_shape=shape))
    if options.backbone is not None:
        if ":" in options.backbone:
            register_backbone(options.backbone, load_function(options.backbone))
        recipe = dataclasses.replace(
            recipe, encoder=dataclasses.replace(recipe.encoder, backbone=options.backbone)
        )
    return changed(recipe, options)


def changed(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """The recipe with --set and the short flags applied; what is set for one recipe of a sweep outranks the rest."""
    everywhere: dict[str, tuple[str, str]] = {}  # field -> (value, how it was given)
    here: dict[str, tuple[str, str]] = {}
    for text in options.set:
        path, found, value = text.partition("=")
        if not found:
            raise UsageError(f"--set needs FIELD=VALUE, got {text!r}; for example --set objective.beta=0.3")
        only, _, path = path.rpartition(":")
        if only in ("", recipe.name):
            _note(here if only else everywhere, path, value, f"--set {text}")
    for flag, field in SHORT.items():
        if (value := getattr(options, flag.replace("-", "_"))) is not None:
            if field == "objective.beta" and not hasattr(recipe.objective, "beta"):
                raise UsageError(
                    f"{recipe.name} minimises {type(recipe.objective).__name__}, which has no beta; leave --beta out "
                    f"(the --betas of a sweep leave such methods as they are)"
                )
            _note(everywhere, field, str(value), f"--{flag} {value}")
    return change(recipe, {path: value for path, (value, _) in (everywhere | here).items()})


def _note(values: dict[str, tuple[str, str]], path: str, value: str, given: str) -> None:
    before = values.setdefault(path, (value, given))
    if before[0] != value:
        raise UsageError(f"{path} is given twice: {before[1]} and {given}; leave one of them out")


def check_set(recipes: Sequence[Recipe], options: argparse.Namespace) -> None:
    """Raise unless every recipe that ``--set RECIPE:FIELD=VALUE`` names is trained."""
    names = [recipe.name for recipe in recipes]
    for text in options.set:
        only, colon, _ = text.partition("=")[0].rpartition(":")
        if colon and only not in names:
            raise ValueError(
                f"--set {text}: no recipe is called {only!r}{nearest(only, names)} Recipes: {', '.join(names)}"
            )


def recipe_fields() -> str:
    """The fields of a recipe with their meanings and defaults, for --help."""
    lines = [
        "fields of a recipe (--set FIELD=VALUE; set fields of objective, encoder and views as in objective.beta=1):"
    ]
    for field in dataclasses.fields(Recipe):
        default = "" if field.default is dataclasses.MISSING else f" (default: {field.default!r})"
        lines.append(f"  {field.name:16s} {_sentence(descriptions(Recipe)[field.name])}{default}")
    return "\n".join(lines)


# Settings.


def add_settings(parser: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """One option per field of :class:`Settings`."""
    group = parser.add_argument_group("training settings")
    texts, kinds = descriptions(Settings), get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        if field.name in without:
            continue
        flag, text, kind = field.name.replace("_", "-"), _sentence(texts[field.name]), kinds[field.name]
        choices = (
            get_args(kind) if kind not in (bool,) and all(isinstance(a, str) for a in get_args(kind)) else ()
        )
        if field.name == "device":
            group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
        elif kind is bool and field.default:
            group.add_argument(f"--no-{flag}", dest=field.name, action="store_false", help=f"do not {text}")
        elif kind is bool:
            group.add_argument(f"--{flag}", action="store_true", help=text)
        else:
            single = next((k for k in (int, float, Path, str) if kind is k or k in get_args(kind)), str)
            group.add_argument(
                f"--{flag}", type=single, default=field.default, choices=choices or None, help=text
            )


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that :func:`add_settings` asked for."""
    names = [
        field.name
        for field in dataclasses.fields(Settings)
        if field.name != "workers" or not hasattr(options, "engine")
    ]
    given = {name: getattr(options, name) for name in names}
    return Settings(**{**given, "device": choose_device(options.device)})


# Texts.


def descriptions(kind: type) -> dict[str, str]:
    """The description of each field, from the section "Parameters" of the dataclass's docstring."""
    section = (inspect.getdoc(kind) or "").partition("----------\n")[2]
    found = dict.fromkeys((field.name for field in dataclasses.fields(kind)), "")  # what python -OO leaves
    names: list[str] = []
    for line in section.splitlines():
        if re.match(r"\S", line):
            names = [name.strip() for name in line.split(",")]
        for name in names if line.startswith(" ") else ():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _sentence(text: str) -> str:
    """The first sentence of a description, without markup, for argparse."""
    plain = text.replace("*", "").replace("`", "").replace("%", "%%")
    plain = re.split(r"(?<=[a-z)\]]{2})\.(?:\s|$)", plain)[0].rstrip(".")
    return plain[:1].lower() + plain[1:] if plain[1:2].islower() else plain
