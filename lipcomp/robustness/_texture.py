"""Shape against texture: what a classifier follows when the two say different classes (Geirhos et al. 2019).

Cue-conflict images have the shape of one class and the texture of another, of sixteen entry-level classes. A 1000-class
model answers by the largest *mean* probability over the ImageNet classes of each; a 16-class model by its own. Of the
images whose shape and texture differ,

    shape bias = shape answers / (shape answers + texture answers);

images answered by neither do not count, so the share of images answered by one of the two belongs beside it.

Layout, as published: ``<shape class>/<shape><number>-<texture><number>.png``, 16 folders of 80 images, 1,200 of them in
conflict. The sixteen classes' ImageNet classes come with this package.

>>> conflict = load_cue_conflict("cue-conflict")  # doctest: +SKIP
>>> conflict.shape_bias(logits), conflict.decided(logits)  # doctest: +SKIP
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lipcomp.data._sets import ImageSet
from lipcomp.robustness._arrays import list_classes
from lipcomp.robustness._estimates import Estimate, proportion
from lipcomp.robustness._shifted import WebImages, class_table

CONFLICTS = 1200
WHERE = "https://github.com/rgeirhos/texture-vs-shape (stimuli/style-transfer-preprocessed-512)"


@dataclass(frozen=True)
class CueConflict:
    """Images whose shape and texture are of different classes.

    Attributes
    ----------
    images
        Their labels are the shape's class.
    textures
        The texture's class of each.
    """

    images: ImageSet = field(repr=False)
    textures: Int64[Tensor, " n"] = field(repr=False)

    def decisions(self, logits: Float[Tensor, "n classes"]) -> Int64[np.ndarray, " n"]:
        """The answered class, of the sixteen, for the logits of all images in order.

        Raises
        ------
        ValueError
            If the logits are not of 1000 or 16 classes, or not one row per image.
        """
        if len(logits) != len(self.images) or logits.shape[1] not in (16, 1000):
            raise ValueError(
                f"logits must be ({len(self.images)}, 1000), or 16 classes in alphabetical order, got "
                f"{tuple(logits.shape)}"
            )
        if logits.shape[1] == 16:
            return logits.argmax(1).cpu().numpy()
        p = torch.softmax(logits.double(), 1)
        means = [p[:, members].mean(1) for members in class_table("sixteen_classes").values()]
        return torch.stack(means, 1).argmax(1).cpu().numpy()

    def shape_bias(self, logits: Float[Tensor, "n classes"]) -> Estimate:
        """Shape answers among shape and texture answers; n counts these.

        Raises
        ------
        ValueError
            If no image is answered by its shape or its texture.
        """
        answers = self.decisions(logits)
        shape, texture = answers == self.images.labels.numpy(), answers == self.textures.numpy()
        if not (shape | texture).any():
            raise ValueError("no image was answered by its shape or its texture, so there is no shape bias")
        return proportion(shape[shape | texture])

    def decided(self, logits: Float[Tensor, "n classes"]) -> Estimate:
        """Share of the images answered by their shape or their texture."""
        answers = self.decisions(logits)
        return proportion((answers == self.images.labels.numpy()) | (answers == self.textures.numpy()))


def load_cue_conflict(
    folder: Path | str, *, image_shape: tuple[int, int, int] = (3, 224, 224), partial: bool = False
) -> CueConflict:
    """Open the cue-conflict images; those whose shape and texture agree are left out, as published.

    Raises
    ------
    FileNotFoundError
        If the folder or a class of it is missing.
    ValueError
        If a file's name does not contain its texture, or the count is not the published one (unless ``partial``).
    """
    folder, names = Path(folder), tuple(class_table("sixteen_classes"))
    lost = [name for name in names if not (folder / name).is_dir()]
    if len(lost) == len(names) or (lost and not partial):
        raise FileNotFoundError(
            f"cue conflict: {str(folder)!r} lacks {len(lost)} of the 16 class folders ({', '.join(lost[:3])}); get "
            f"them from {WHERE}"
        )
    listed = list_classes(folder, names, "cue-conflict", image_shape)
    textures = []
    for file in listed.files:
        found = re.fullmatch(r".*-([a-z]+)\d*", file.stem)
        if not found or found[1] not in names:
            raise ValueError(
                f"{str(file)!r} does not tell its texture; names are <shape><number>-<texture><number>.png"
            )
        textures.append(names.index(found[1]))
    of_texture = torch.tensor(textures, dtype=torch.long)
    chosen = (of_texture != listed.labels).nonzero()[:, 0]
    if len(chosen) != CONFLICTS and not partial:
        raise ValueError(
            f"cue conflict: {str(folder)!r} holds {len(chosen)} images in conflict, published are {CONFLICTS}; it is "
            f"half unpacked (or give partial=True for a subset of your own)"
        )
    kept = tuple(listed.files[k] for k in chosen.tolist())
    images = WebImages("cue-conflict", kept, listed.labels[chosen], names, image_shape)
    return CueConflict(images, of_texture[chosen])
