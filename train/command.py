"""The command line of a run: python -m train.pretrain RECIPE. Options come from the dataclasses and their docstrings.

A field of :class:`Settings` is an option of its name; a field of the recipe is changed by ``--set FIELD=VALUE``, and
those that people try first have a flag of their own. Help texts are the fields' descriptions, so they are written once.
"""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_type_hints

from lipcomp._commands import Parser, choose_device
from lipcomp.data import SETS, load_set
from lipcomp.encoders import register_backbone
from train.data import Report, fit_to_data
from train.pretrain import pretrain
from train.recipe import Recipe, change
from train.recipes import FAMILIES, METHODS, family_for, find_recipe, load_function, with_method
from train.settings import Settings

EPILOG = """
examples:
  python -m train.pretrain mnist_c_simclr --seed 0
  python -m train.pretrain c_simclr --data my_images --image-size 96 --epochs 100 --beta 0.3
  python -m train.pretrain cifar10_c_byol --data-root /data --precision bf16 --compile --tensorboard
  python -m train.pretrain my_recipes.py:fashion_c_simclr --backbone timm/resnet26
  torchrun --nproc-per-node 8 -m train.pretrain imagenet_c_byol_1000 --data /data/imagenet --precision bf16
"""
# Flags for fields of the recipe that people try first.
SHORT = {
    "epochs": "epochs",
    "batch-size": "batch_size",
    "lr": "learning_rate",
    "beta": "objective.beta",
    "perturb": "perturb",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one encoder from the command line."""
    parser = Parser(
        prog="python -m train.pretrain",
        description="Train one encoder; go on where a run was stopped.",
        epilog=EPILOG + "\n" + recipe_fields(),
    )
    parser.add_argument(
        "recipe",
        help=f"FAMILY_METHOD with a family of {', '.join(FAMILIES)} and a method of {', '.join(METHODS)}; "
        f"imagenet_METHOD_300 or _1000; METHOD alone with --data; or FILE.py:FUNCTION",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of weights, order, views and noise (default 0)"
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/RECIPE-SEED)")
    add_recipe_options(parser)
    add_settings(parser)
    options = parser.parse_args(arguments)
    settings = settings_of(options)
    recipe = recipe_of(options.recipe, options, settings, print)
    out = options.out or Path("runs") / f"{recipe.name.replace('/', '_')}-{options.seed}"
    print(pretrain(recipe, options.seed, out, settings))
    return 0


# The recipe.


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """``--data``, ``--set`` and the flags for fields that people try first; :func:`recipe_of` reads them."""
    group = parser.add_argument_group("the recipe")
    group.add_argument(
        "--data",
        help=f"another training set: a folder, or one of {', '.join(SETS)}. Shape, mean, std and views follow it",
    )
    group.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="side that a folder's images are brought to"
    )
    group.add_argument(
        "--backbone",
        help="another network: a name of lipcomp.encoders, timm/NAME, or FILE.py:FUNCTION(channels)",
    )
    texts = {**descriptions(Recipe), "objective.beta": "Compression, at least 0."}
    for flag, field in SHORT.items():
        group.add_argument(
            f"--{flag}", metavar="X", help=f"{_sentence(texts[field])} (default: the recipe's)"
        )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change any field of the recipe, listed below; as objective.kappa_e=512",
    )


def recipe_of(name: str, options: argparse.Namespace, settings: Settings, report: Report) -> Recipe:
    """The recipe of a name, with the options' changes.

    Raises
    ------
    ValueError
        If there is no such recipe or field, or a method alone comes without data.
    """
    if name in METHODS:
        if options.data is None:
            raise ValueError(
                f"the method {name!r} needs data: add --data FOLDER, or name a recipe such as mnist_{name}"
            )
        channels, *own = load_set(options.data, "pretrain", root=settings.data_root).image_shape
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
    """The recipe with --set and the short flags applied."""
    changes = list(options.set)
    for flag, field in SHORT.items():
        if (value := getattr(options, flag.replace("-", "_"))) is not None:
            if field == "objective.beta" and not hasattr(recipe.objective, "beta"):
                raise ValueError(
                    f"{recipe.name} minimises {type(recipe.objective).__name__}, which has no beta"
                )
            changes.append(f"{field}={value}")
    for text in changes:
        path, found, value = text.partition("=")
        if not found:
            raise ValueError(f"--set needs FIELD=VALUE, got {text!r}; for example --set objective.beta=0.3")
        recipe = change(recipe, path, value)
    return recipe


def recipe_fields() -> str:
    """The fields of a recipe with what they mean and their defaults, for --help."""
    lines = ["fields of a recipe (--set FIELD=VALUE; objective, encoder and views have fields of their own):"]
    for field in dataclasses.fields(Recipe):
        default = "" if field.default is dataclasses.MISSING else f" (default {field.default!r})"
        lines.append(f"  {field.name:16s} {_sentence(descriptions(Recipe)[field.name])}{default}")
    return "\n".join(lines)


# Settings.


def add_settings(parser: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """One option per field of :class:`Settings`."""
    group = parser.add_argument_group("how it is run")
    texts, kinds = descriptions(Settings), get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        if field.name in without:
            continue
        flag, text, kind = field.name.replace("_", "-"), _sentence(texts[field.name]), kinds[field.name]
        choices = (
            get_args(kind) if kind not in (bool,) and all(isinstance(a, str) for a in get_args(kind)) else ()
        )
        if field.name == "device":
            group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
        elif kind is bool and field.default:
            group.add_argument(f"--no-{flag}", dest=field.name, action="store_false", help=f"not: {text}")
        elif kind is bool:
            group.add_argument(f"--{flag}", action="store_true", help=text)
        else:
            single = next((k for k in (int, float, Path, str) if kind is k or k in get_args(kind)), str)
            default = "" if field.default is None else f" (default {field.default})"
            group.add_argument(
                f"--{flag}",
                type=single,
                default=field.default,
                choices=choices or None,
                metavar=None if choices else flag.rsplit("-", 1)[-1].upper(),
                help=text + default,
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
    """Field -> what its dataclass's docstring says of it under "Parameters"."""
    section = (kind.__doc__ or "").partition("----------\n")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if re.match(r"    \S", line):
            names = [name.strip() for name in line.split(",")]
        for name in names if line.startswith("        ") else ():
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def _sentence(text: str) -> str:
    """The text for argparse: its first sentence, without the docstring's marks."""
    return (
        re.split(r"(?<=[a-z)\]]{2})\.(?:\s|$)", text.replace("*", "").replace("`", ""))[0]
        .replace("%", "%%")
        .rstrip(".")
    )
