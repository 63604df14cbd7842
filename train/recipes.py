"""Recipes: what is trained, on what, how. A recipe is a named function that returns a frozen :class:`Recipe`.

The compressed twin is the recipe with its objective replaced:

    def mnist_c_simclr():  return compress(mnist_simclr(), "mnist_c_simclr")

so a pair differs in its objective, and where C-BYOL needs a decoder behind its latent, in that one layer. Here are the
small recipes; the paper's, on ImageNet, are in :mod:`train.imagenet`.
"""

import difflib
from collections.abc import Callable
from dataclasses import replace

from lipcomp.data import DigitViews, PhotoViews
from lipcomp.encoders import EncoderSpec
from lipcomp.objectives import BYOL, CosineClassifier, NoisySimCLR, SimCLR, WeightedSimCLR
from train.imagenet import IMAGENET_RECIPES
from train.recipe import Recipe, compress

# MNIST-5k: half a minute (SimCLR) to a minute and a half (BYOL) on one CPU core.


def mnist_simclr() -> Recipe:
    """SimCLR at temperature 0.1 on MNIST-5k."""
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


def mnist_c_simclr() -> Recipe:
    """C-SimCLR: mnist_simclr, compressed."""
    return compress(mnist_simclr(), "mnist_c_simclr")


def mnist_weighted_simclr() -> Recipe:
    """The control: SimCLR whose positive pair weighs 1 + beta, which is C-SimCLR's gradient without its noise."""
    objective = WeightedSimCLR(beta=1.0, temperature=0.1)
    return replace(mnist_simclr(), name="mnist_weighted_simclr", objective=objective, pair="mnist_simclr")


def mnist_noisy_simclr() -> Recipe:
    """The other control: SimCLR with C-SimCLR's noise, at beta = 0."""
    objective = NoisySimCLR(kappa_e=1024.0, kappa_b=10.0)
    return replace(mnist_simclr(), name="mnist_noisy_simclr", objective=objective, pair="mnist_simclr")


def mnist_byol() -> Recipe:
    """BYOL on MNIST-5k: SimCLR's recipe, twice as long and at a higher rate, with a fast predictor."""
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


def mnist_c_byol() -> Recipe:
    """C-BYOL: mnist_byol, compressed."""
    return compress(mnist_byol(), "mnist_c_byol")


def mnist_supervised() -> Recipe:
    """A supervised cosine classifier on MNIST-5k."""
    return replace(mnist_simclr(), name="mnist_supervised", objective=CosineClassifier(temperature=0.1))


def mnist_ceb() -> Recipe:
    """Supervised CEB: mnist_supervised, compressed."""
    return compress(mnist_supervised(), "mnist_ceb")


# CIFAR-10 and -100: ResNet-18 with the CIFAR stem; hours on one GPU.


def cifar10_simclr() -> Recipe:
    """SimCLR on CIFAR-10, ResNet-18, LARS at SimCLR's CIFAR rate (Chen et al. 2020, B.9), no blur."""
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


def cifar10_c_simclr() -> Recipe:
    """C-SimCLR on CIFAR-10."""
    return compress(cifar10_simclr(), "cifar10_c_simclr")


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


def cifar10_c_byol() -> Recipe:
    """C-BYOL on CIFAR-10."""
    return compress(cifar10_byol(), "cifar10_c_byol")


def cifar10_supervised() -> Recipe:
    """A supervised cosine classifier on CIFAR-10."""
    objective = CosineClassifier(temperature=0.1)
    return replace(cifar10_simclr(), name="cifar10_supervised", objective=objective, epochs=200)


def cifar10_ceb() -> Recipe:
    """Supervised CEB on CIFAR-10."""
    return compress(cifar10_supervised(), "cifar10_ceb")


def _on_cifar100(recipe: Recipe) -> Recipe:
    rename = {"name": recipe.name.replace("cifar10_", "cifar100_"), "data": "cifar100"}
    twin = recipe.pair and recipe.pair.replace("cifar10_", "cifar100_")
    encoder = replace(recipe.encoder, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
    return replace(recipe, **rename, encoder=encoder, pair=twin)  # type: ignore[arg-type]


def cifar100_simclr() -> Recipe:
    """SimCLR on CIFAR-100."""
    return _on_cifar100(cifar10_simclr())


def cifar100_c_simclr() -> Recipe:
    """C-SimCLR on CIFAR-100."""
    return _on_cifar100(cifar10_c_simclr())


def cifar100_byol() -> Recipe:
    """BYOL on CIFAR-100."""
    return _on_cifar100(cifar10_byol())


def cifar100_c_byol() -> Recipe:
    """C-BYOL on CIFAR-100."""
    return _on_cifar100(cifar10_c_byol())


SMALL_RECIPES: tuple[Callable[[], Recipe], ...] = (
    mnist_simclr,
    mnist_c_simclr,
    mnist_weighted_simclr,
    mnist_noisy_simclr,
    mnist_byol,
    mnist_c_byol,
    mnist_supervised,
    mnist_ceb,
    cifar10_simclr,
    cifar10_c_simclr,
    cifar10_byol,
    cifar10_c_byol,
    cifar10_supervised,
    cifar10_ceb,
    cifar100_simclr,
    cifar100_c_simclr,
    cifar100_byol,
    cifar100_c_byol,
)
RECIPES: dict[str, Callable[[], Recipe]] = {
    **{recipe.__name__: recipe for recipe in SMALL_RECIPES},
    **IMAGENET_RECIPES,
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises
    ------
    ValueError
        If there is none; the message gives the nearest name.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"recipe {name!r} is unknown{hint} Known recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()
