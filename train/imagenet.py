"""The paper's recipes on ImageNet (Lee et al. 2021), read from the official flags, scripts and code.

    imagenet_{simclr,c_simclr,byol,c_byol}_{300,1000}, imagenet_c_byol_1500: ResNet-50 by name

and by :func:`imagenet` any depth (50, 101, 152), width (1, 2) and length. ImageNet is a folder: give it with
``--data FOLDER`` (FOLDER/train/CLASS/*, FOLDER/val/CLASS/*).

==========================  ==================================================================================
batch                       4096; batch norm and negatives over all replicas
optimiser                   LARS, momentum 0.9, trust coefficient 0.001; batch norm, biases and the linear head
                            are neither adapted nor (but for the head's kernel) decayed
peak learning rate          base * 4096/256. Base 0.3 at 300 epochs and 0.2 beyond; C-BYOL 0.35 and 0.25
weight decay                1e-6 at 300 epochs, 1.5e-6 beyond
schedule                    10 epochs of linear warm-up, cosine to 0
heads                       projector 2048-4096-256, predictor 256-4096-256, backward head 256-4096-256, C-BYOL's
                            decoder 256-256: batch norm and ReLU between, no bias, no batch norm at the end
SimCLR, C-SimCLR            temperature 0.1; kappa_e 1024, kappa_b 10, beta 1
BYOL, C-BYOL                weight 5 at 300 epochs, 2 beyond; kappa_e 16384, kappa_b 10, beta 1; target decay
                            0.99 and 0.996, rising to 1; the target network starts from weights of its own
initialisation              truncated normal of variance 1/fan-in; last batch norm of a residual block at 0
max-pool                    TensorFlow's padding (0, 1)
==========================  ==================================================================================

Where the official code is defective we follow the recipe; docs/training.md lists each place. C-BYOL's rate differs
from BYOL's, so the published models are no matched pair: ``pair(imagenet_c_byol_300())`` makes one.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

from lipcomp.data._views import PhotoViews
from lipcomp.encoders import EncoderSpec
from lipcomp.objectives import BYOL, SimCLR
from train.recipe import Recipe, compress

Method = Literal["simclr", "c_simclr", "byol", "c_byol"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REPLICA = 128  # images that share one sigma of the blur


def imagenet(method: Method, epochs: int = 300, depth: int = 50, width: int = 1) -> Recipe:
    """The paper's recipe of a method, at a length, depth and width.

    Raises
    ------
    ValueError
        If the method is unknown, or the depth or width not in the paper.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of simclr, c_simclr, byol, c_byol; got {method!r}")
    if depth not in (50, 101, 152) or width not in (1, 2):
        raise ValueError(
            f"the paper has ResNet-50, 101 and 152 at width 1 and 2, got depth={depth}, width={width}; for another "
            f"network replace the recipe's encoder"
        )
    size = f"_r{depth}" * (depth != 50) + "_2x" * (width == 2)
    long = epochs > 300
    byol = method.endswith("byol")
    backbone = f"resnet{depth}{'_2x' if width == 2 else ''}_tf"
    recipe = Recipe(
        name=f"imagenet_{method.removeprefix('c_')}_{epochs}{size}",
        objective=BYOL(weight=2.0 if long else 5.0) if byol else SimCLR(temperature=0.1),
        encoder=EncoderSpec(
            backbone, (3, 224, 224), MEAN, STD, projector=(4096, 256), predictor=4096 if byol else None
        ),
        views=PhotoViews(sigma_group=REPLICA),
        data="imagenet",
        epochs=epochs,
        batch_size=4096,
        learning_rate=0.2 if long else 0.3,
        warmup_epochs=10,
        optimizer="lars",
        weight_decay=1.5e-6 if long else 1e-6,
        target_decay=0.996 if long else 0.99,
        target_start="independent",
        initialisation="paper",
    )
    if not method.startswith("c_"):
        return recipe
    twin = compress(recipe, f"imagenet_{method}_{epochs}{size}")
    return replace(twin, learning_rate=0.25 if long else 0.35) if byol else twin


def imagenet100(method: Method) -> Recipe:
    """A method on a hundred classes of ImageNet (a folder): ResNet-50, 200 epochs, batch 512, LARS."""
    name = f"imagenet100_{method}"
    return replace(imagenet(method, 300), name=name, epochs=200, batch_size=512, views=PhotoViews())


# Published top-1 of a linear classifier (the official README): simclr_1000 70.8, c_simclr_1000 71.7, byol_1000 74.3,
# c_byol_1000 75.8, c_byol_1500 76.0.
IMAGENET_RECIPES: dict[str, Callable[[], Recipe]] = {
    f"imagenet_{method}_{epochs}": lambda method=method, epochs=epochs: imagenet(method, epochs)  # type: ignore[misc]
    for method, epochs in (
        *((method, epochs) for method in get_args(Method) for epochs in (300, 1000)),
        ("c_byol", 1500),
    )
}
