"""Recipes. A recipe is a frozen :class:`Recipe` with a name.

A *family* is two functions, SimCLR's and BYOL's recipe on one data set; every other method is made from them by
replacing the objective (:func:`with_method`), so the members of a pair differ only in it, and where C-BYOL needs a
decoder behind its latent, in that one layer. ``find_recipe("cifar10_c_byol")`` is family and method; the paper's
recipes, on ImageNet, are in :mod:`train.imagenet`; yours can be in a file: ``find_recipe("my_recipes.py:fashion")``.
"""

import re
from collections.abc import Callable
from dataclasses import replace

from lipcomp._functions import call_function
from lipcomp._messages import nearest
from lipcomp.data._views import DigitViews, PhotoViews
from lipcomp.encoders import EncoderSpec
from lipcomp.objectives import BYOL, SimCLR
from lipcomp.objectives._simclr import NoisySimCLR, WeightedSimCLR
from lipcomp.objectives._supervised import CosineClassifier
from train.imagenet import IMAGENET_RECIPES, imagenet, imagenet100
from train.recipe import Recipe, compress

METHODS = ("simclr", "c_simclr", "weighted_simclr", "noisy_simclr", "byol", "c_byol", "supervised", "ceb")
GREY_SMALL, COLOUR_SMALL = 32, 64  # pixels: up to these sides a small network and its recipe are enough


def mnist_simclr() -> Recipe:
    """SimCLR at temperature 0.1 on MNIST-5k: half a minute on one CPU core."""
    return Recipe(
        name="mnist_simclr",
        objective=SimCLR(temperature=0.1),
        encoder=EncoderSpec("small_cnn", (1, 28, 28), mean=(0.131,), std=(0.308,), projector=(256, 64)),
        views=DigitViews(),
        data="mnist5k",
        epochs=6,
        batch_size=64,
        learning_rate=8e-3,
        warmup_epochs=1,
    )


def mnist_byol() -> Recipe:
    """BYOL on MNIST-5k: SimCLR's recipe, twice as long and at a higher rate, with a fast predictor; 90 seconds."""
    base = mnist_simclr()
    return replace(
        base,
        name="mnist_byol",
        objective=BYOL(weight=5.0),
        encoder=replace(base.encoder, predictor=256),
        epochs=13,
        learning_rate=12e-3,
        target_decay=0.95,
        predictor_rate=4.0,
    )


def cifar10_simclr() -> Recipe:
    """SimCLR on CIFAR-10, ResNet-18, LARS at SimCLR's CIFAR rate (Chen et al. 2020, B.9), no blur; hours on one GPU."""
    return Recipe(
        name="cifar10_simclr",
        objective=SimCLR(temperature=0.1),
        encoder=EncoderSpec(
            "resnet18_cifar",
            (3, 32, 32),
            (0.4914, 0.4822, 0.4465),
            (0.2470, 0.2435, 0.2616),
            projector=(2048, 128),
        ),
        views=PhotoViews(blur=(0.0, 0.0), solarise=(0.0, 0.0)),
        data="cifar10",
        epochs=500,
        batch_size=512,
        learning_rate=1.0,
        warmup_epochs=10,
        optimizer="lars",
        weight_decay=1e-6,
    )


def cifar10_byol() -> Recipe:
    """BYOL on CIFAR-10."""
    base = cifar10_simclr()
    return replace(
        base,
        name="cifar10_byol",
        objective=BYOL(weight=5.0),
        encoder=replace(base.encoder, predictor=2048),
        target_decay=0.99,
    )


def on(
    recipe: Recipe, data: str, mean: tuple[float, ...], std: tuple[float, ...], size: int | None = None
) -> Recipe:
    """A family's recipe on another set: its name, statistics and image size, nothing else."""
    shape = recipe.encoder.image_shape
    backbone = recipe.encoder.backbone
    encoder = replace(
        recipe.encoder,
        backbone=backbone.removesuffix("_cifar") if (size or 0) > COLOUR_SMALL else backbone,
        mean=mean,
        std=std,
        image_shape=shape if size is None else (shape[0], size, size),
    )
    return replace(recipe, name=f"{data}_{recipe.name.rsplit('_', 1)[1]}", data=data, encoder=encoder)


# Statistics of the training images, each channel over all pixels.
CIFAR100 = ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
SVHN = ("svhn", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
STL10 = ("stl10", (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713), 96)
FASHION = ("fashion_mnist", (0.2860,), (0.3530,))

FAMILIES: dict[str, tuple[Callable[[], Recipe], Callable[[], Recipe]]] = {
    "mnist": (mnist_simclr, mnist_byol),
    "fashion_mnist": (lambda: on(mnist_simclr(), *FASHION), lambda: on(mnist_byol(), *FASHION)),
    "cifar10": (cifar10_simclr, cifar10_byol),
    "cifar100": (lambda: on(cifar10_simclr(), *CIFAR100), lambda: on(cifar10_byol(), *CIFAR100)),
    "svhn": (lambda: _digits(on(cifar10_simclr(), *SVHN)), lambda: _digits(on(cifar10_byol(), *SVHN))),
    "stl10": (lambda: on(cifar10_simclr(), *STL10), lambda: on(cifar10_byol(), *STL10)),
    "imagenet100": (lambda: imagenet100("simclr"), lambda: imagenet100("byol")),
}


def _digits(recipe: Recipe) -> Recipe:
    """House numbers have no mirror image."""
    assert isinstance(recipe.views, PhotoViews)
    return replace(recipe, views=replace(recipe.views, flip=0.0))


def with_method(family: str, method: str) -> Recipe:
    """A family's recipe with the objective of a method.

    ``weighted_simclr`` and ``noisy_simclr`` are the controls: C-SimCLR's gradient without its noise (the positive pair
    weighs 1 + beta), and its noise at beta = 0.
    """
    simclr, byol = (make() for make in FAMILIES[family])
    name = f"{family}_{method}"
    assert isinstance(simclr.objective, SimCLR)
    temperature = simclr.objective.temperature
    if method == "simclr":
        return simclr
    if method == "byol":
        return byol
    if method == "c_simclr":
        return compress(simclr, name)
    if method == "c_byol":
        return compress(byol, name)
    if method == "weighted_simclr":
        objective = WeightedSimCLR(beta=1.0, temperature=temperature)
        return replace(simclr, name=name, objective=objective, pair=simclr.name)
    if method == "noisy_simclr":
        noisy = NoisySimCLR(kappa_e=1024.0, kappa_b=1 / temperature)
        return replace(simclr, name=name, objective=noisy, pair=simclr.name)
    supervised = replace(
        simclr,
        name=f"{family}_supervised",
        objective=CosineClassifier(temperature),
        epochs=min(simclr.epochs, 200),
    )
    return supervised if method == "supervised" else compress(supervised, name)


RECIPES: dict[str, Callable[[], Recipe]] = {
    **{
        f"{family}_{method}": lambda family=family, method=method: with_method(family, method)  # type: ignore[misc]
        for family in FAMILIES
        for method in METHODS
    },
    **IMAGENET_RECIPES,
}


def family_for(image_shape: tuple[int, int, int]) -> str:
    """The family whose network and schedule suit images of that shape."""
    channels, side = image_shape[0], max(image_shape[1:])
    if channels == 1 and side <= GREY_SMALL:
        return "mnist"
    return "cifar10" if side <= COLOUR_SMALL else "imagenet100"


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, or what your own function returns: ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``.

    Raises
    ------
    ValueError
        If there is none; the message gives the nearest name.
    ImportError
        If the file or module cannot be imported.
    """
    if ":" in name:
        recipe = call_function(name)
        if not isinstance(recipe, Recipe):
            raise ValueError(
                f"{name!r} must return a train.recipe.Recipe, it returned {type(recipe).__name__}; start from a known "
                f"one and change its fields with dataclasses.replace"
            )
        return recipe
    if paper := re.fullmatch(r"imagenet_(c_simclr|simclr|c_byol|byol)_(\d+)(?:_r(\d+))?(_2x)?", name):
        method, epochs, depth, wide = paper.groups()
        return imagenet(method, int(epochs), int(depth or 50), 2 if wide else 1)  # type: ignore[arg-type]
    if name not in RECIPES:
        families = ", ".join(FAMILIES)
        raise ValueError(
            f"recipe {name!r} is unknown{nearest(name, [*RECIPES, *METHODS])} Known: FAMILY_METHOD with a family of "
            f"{families} and a method of {', '.join(METHODS)}; {', '.join(IMAGENET_RECIPES)}; or FILE.py:FUNCTION"
        )
    return RECIPES[name]()
