"""Recipes: what is trained, on what, how. A recipe is a named function that returns a frozen :class:`Recipe`.

The compressed twin of a recipe is that recipe with one field replaced:

    def mnist_c_simclr():  return replace(mnist_simclr(), name="mnist_c_simclr", objective=CSimCLR(...))

so a pair differs in its objective, and where C-BYOL needs a decoder behind its latent, in that one layer.

Learning rates follow the linear rule: ``learning_rate`` is for a batch of 256.
"""

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from lipcomp.data import DigitViews, PhotoViews, Views
from lipcomp.encoders import EncoderSpec
from lipcomp.objectives import BYOL, CBYOL, CSimCLR, NoisySimCLR, Objective, SimCLR, WeightedSimCLR


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a training run, except the seed.

    Parameters
    ----------
    name
        Name of the recipe: the function that made it.
    objective
        What is minimised.
    encoder
        The network.
    views
        The augmentation.
    data
        Training set: a name that ``lipcomp.data.load_set`` knows, or a folder.
    epochs, batch_size
        Length, and images in a step (two views of each; the last incomplete batch of an epoch is dropped).
    learning_rate
        Peak rate at batch 256, scaled linearly with the batch; linear warm-up, then a cosine to zero.
    warmup_epochs
        Length of the warm-up.
    weight_decay
        Decoupled, on weight matrices and kernels alone (AdamW).
    target_decay
        BYOL: the moving average's coefficient at the start; it rises to 1 along a cosine.
    """

    name: str
    objective: Objective
    encoder: EncoderSpec
    views: Views
    data: str
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_epochs: float
    weight_decay: float = 1e-2
    target_decay: float = 0.99

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(
                "batch_size must be at least 2: a contrastive loss and batch norm need other images"
            )
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        if not 0 <= self.target_decay < 1:
            raise ValueError(f"target_decay must be in [0, 1), got {self.target_decay}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary, for checkpoints and records."""
        fields = asdict(self)
        fields["objective"] = self.objective.to_dict()
        fields["views"] = {"kind": type(self.views).__name__, **asdict(self.views)}  # type: ignore[call-overload]
        return fields


# MNIST-5k: half a minute on two CPU cores.


def mnist_simclr() -> Recipe:
    """SimCLR at temperature 1/kappa_b = 0.1 on MNIST-5k."""
    return Recipe(
        name="mnist_simclr",
        objective=SimCLR(temperature=0.1),
        encoder=EncoderSpec("small_cnn", (1, 28, 28), mean=(0.131,), std=(0.308,), projector=(256, 64)),
        views=DigitViews(),
        data="mnist5k",
        epochs=5,
        batch_size=128,
        learning_rate=4e-3,
        warmup_epochs=1,
    )


def mnist_c_simclr() -> Recipe:
    """C-SimCLR: mnist_simclr, compressed."""
    return replace(
        mnist_simclr(), name="mnist_c_simclr", objective=CSimCLR(kappa_e=1024.0, kappa_b=10.0, beta=1.0)
    )


def mnist_weighted_simclr() -> Recipe:
    """The control: SimCLR whose positive pair weighs 1 + beta, which is C-SimCLR's gradient without its noise."""
    return replace(
        mnist_simclr(), name="mnist_weighted_simclr", objective=WeightedSimCLR(beta=1.0, temperature=0.1)
    )


def mnist_noisy_simclr() -> Recipe:
    """The other control: SimCLR with C-SimCLR's noise, at beta = 0."""
    return replace(
        mnist_simclr(), name="mnist_noisy_simclr", objective=NoisySimCLR(kappa_e=1024.0, kappa_b=10.0)
    )


def mnist_byol() -> Recipe:
    """BYOL on MNIST-5k."""
    base = mnist_simclr()
    return replace(
        base,
        name="mnist_byol",
        objective=BYOL(weight=5.0),
        encoder=replace(base.encoder, predictor=256),
        epochs=9,
        target_decay=0.9,
    )


def mnist_c_byol() -> Recipe:
    """C-BYOL: mnist_byol, compressed; its latent is decoded by one linear layer."""
    base = mnist_byol()
    return replace(
        base,
        name="mnist_c_byol",
        objective=CBYOL(kappa_e=16384.0, kappa_b=10.0, beta=1.0, weight=5.0),
        encoder=replace(base.encoder, decoder=True),
    )


# CIFAR-10 and -100: ResNet-18 with the CIFAR stem; hours on one GPU.


def cifar10_simclr() -> Recipe:
    """SimCLR on CIFAR-10, ResNet-18."""
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
        views=PhotoViews(blur=(0.0, 0.0)),
        data="cifar10",
        epochs=200,
        batch_size=512,
        learning_rate=1e-3,
        warmup_epochs=10,
    )


def cifar10_c_simclr() -> Recipe:
    """C-SimCLR on CIFAR-10."""
    return replace(
        cifar10_simclr(), name="cifar10_c_simclr", objective=CSimCLR(kappa_e=1024.0, kappa_b=10.0, beta=1.0)
    )


def cifar10_byol() -> Recipe:
    """BYOL on CIFAR-10."""
    base = cifar10_simclr()
    return replace(
        base, name="cifar10_byol", objective=BYOL(weight=5.0), encoder=replace(base.encoder, predictor=2048)
    )


def cifar10_c_byol() -> Recipe:
    """C-BYOL on CIFAR-10."""
    base = cifar10_byol()
    return replace(
        base,
        name="cifar10_c_byol",
        objective=CBYOL(kappa_e=16384.0, kappa_b=10.0, beta=1.0, weight=5.0),
        encoder=replace(base.encoder, decoder=True),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        mnist_simclr,
        mnist_c_simclr,
        mnist_weighted_simclr,
        mnist_noisy_simclr,
        mnist_byol,
        mnist_c_byol,
        cifar10_simclr,
        cifar10_c_simclr,
        cifar10_byol,
        cifar10_c_byol,
    )
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
