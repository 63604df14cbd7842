"""Shape against texture: what a classifier follows when the two say different classes (Geirhos et al. 2019).

Cue-conflict images have the shape of one class and the texture of another. Of those whose shape and texture differ,

    shape bias = shape answers / (shape answers + texture answers);

images answered by neither do not count, so the share of images answered by one of the two belongs beside it.

The published images have sixteen entry-level classes: 16 folders of 80 images, 1,200 of them in conflict. A 1000-class
model answers by the largest *mean* probability over the ImageNet classes of each; these come with this package. Images
of other classes, those of the model, have the same layout, ``<shape class>/<shape><number>-<texture><number>.png``
(with an underscore before the number where the class ends in a digit). For any set at all, :func:`recombine` makes
conflicts: the phase of one image's Fourier transform, which carries its shape, with the amplitude of another's, which
carries its texture (Chen et al. 2021, Amplitude-Phase Recombination).

>>> conflict = load_cue_conflict("cue-conflict")  # doctest: +SKIP
>>> shape_bias(conflict.decisions(logits), conflict.images.labels, conflict.textures)  # doctest: +SKIP
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lipcomp.data._sets import ImageSet
from lipcomp.robustness._arrays import list_classes
from lipcomp.robustness._estimates import Estimate, proportion
from lipcomp.robustness._shifted import WebImages, answers, class_table

Classes = Int64[np.ndarray, " n"]
CONFLICTS = 1200
WHERE = "https://github.com/rgeirhos/texture-vs-shape (stimuli/style-transfer-preprocessed-512)"


@dataclass(frozen=True)
class CueConflict:
    """Images whose shape and texture are of different classes."""

    images: ImageSet = field(repr=False)  # their labels are the shape's class
    textures: Int64[Tensor, " n"] = field(repr=False)  # the texture's class of each

    def decisions(self, logits: Float[Tensor, "n classes"]) -> Classes:
        """The answered class, of the images' classes, for the logits of all images in order; -1 if all are alike.

        Raises
        ------
        ValueError
            If the logits are not one row per image, of its classes or, for the sixteen, of ImageNet's 1000.
        """
        names = self.images.classes
        sixteen = class_table("sixteen_classes")
        allowed = {len(names), 1000} if names == tuple(sixteen) else {len(names)}
        if len(logits) != len(self.images) or logits.shape[1] not in allowed:
            raise ValueError(
                f"logits must have {len(self.images)} rows and {' or '.join(map(str, sorted(allowed)))} classes, got "
                f"{tuple(logits.shape)}"
            )
        if logits.shape[1] == len(names):
            return logits.argmax(1).cpu().numpy()
        p = torch.softmax(logits.double(), 1)
        return answers(torch.stack([p[:, members].mean(1) for members in sixteen.values()], 1)).numpy()


def shape_bias(answers: Classes, shapes: Int64[Tensor, " n"], textures: Int64[Tensor, " n"]) -> Estimate:
    """Shape answers among shape and texture answers, which n counts; a ValueError if there are none."""
    shape, texture = answers == shapes.numpy(), answers == textures.numpy()
    if not (shape | texture).any():
        raise ValueError("no image was answered by its shape or its texture, so there is no shape bias")
    return proportion(shape[shape | texture])


def decided(answers: Classes, shapes: Int64[Tensor, " n"], textures: Int64[Tensor, " n"]) -> Estimate:
    """Share of the images answered by their shape or their texture."""
    return proportion((answers == shapes.numpy()) | (answers == textures.numpy()))


def recombine(
    shapes: Float[Tensor, "batch channels height width"],
    textures: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels height width"]:
    """Images with the Fourier phase of ``shapes`` and the amplitude of ``textures``, clipped to [0, 1]."""
    phase = torch.fft.rfft2(shapes).angle()
    spectrum = torch.polar(torch.fft.rfft2(textures).abs(), phase)
    return torch.fft.irfft2(spectrum, s=shapes.shape[-2:]).clamp(0, 1)


def conflicting(labels: Int64[Tensor, " n"], seed: int = 0) -> Int64[Tensor, " n"]:
    """For every image the place of a random other one, of another class.

    Raises
    ------
    ValueError
        If all images are of one class.
    """
    if len(labels.unique()) < 2:
        raise ValueError("cue conflict needs images of at least two classes; take more images")
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(labels), labels.shape, generator=generator)
    while (same := labels[places] == labels).any():
        places[same] = torch.randint(len(labels), (int(same.sum()),), generator=generator)
    return places


def load_cue_conflict(
    folder: Path | str,
    *,
    image_shape: tuple[int, int, int] = (3, 224, 224),
    classes: Sequence[str] | None = None,
    partial: bool = False,
) -> CueConflict:
    """Open the cue-conflict images; those whose shape and texture agree are left out, as published.

    Parameters
    ----------
    folder
        One sub-folder per class of the shape.
    image_shape
        Channels, height and width that the encoder takes.
    classes
        Names of the model's classes, in its order; the published sixteen if not given.
    partial
        Take any part of the published images.

    Raises
    ------
    FileNotFoundError
        If the folder or a class of it is missing.
    ValueError
        If a file's name does not tell its shape and texture, or the count is not the published one (unless
        ``partial``).
    """
    folder, names = Path(folder), tuple(classes or class_table("sixteen_classes"))
    partial = partial or classes is not None
    lost = [name for name in names if not (folder / name).is_dir()]
    if len(lost) == len(names) or (lost and not partial):
        raise FileNotFoundError(
            f"cue conflict: {str(folder)!r} lacks {len(lost)} of the {len(names)} class folders "
            f"({', '.join(lost[:3])})" + (f"; get them from {WHERE}" if classes is None else "")
        )
    listed = list_classes(folder, names, "cue-conflict", image_shape)
    of_texture = torch.tensor(
        [
            _texture(file, names, names[k])
            for file, k in zip(listed.files, listed.labels.tolist(), strict=True)
        ],
        dtype=torch.long,
    )
    chosen = (of_texture != listed.labels).nonzero()[:, 0]
    if len(chosen) != CONFLICTS and not partial:
        raise ValueError(
            f"cue conflict: {str(folder)!r} holds {len(chosen)} images in conflict, published are {CONFLICTS}; it is "
            f"half unpacked (in Python, partial=True takes a subset of your own)"
        )
    if not len(chosen):
        raise ValueError(
            f"cue conflict: in {str(folder)!r} every image has the shape and texture of one class"
        )
    kept = tuple(listed.files[k] for k in chosen.tolist())
    images = WebImages("cue-conflict", kept, listed.labels[chosen], names, image_shape)
    return CueConflict(images, of_texture[chosen])


def _texture(file: Path, names: Sequence[str], shape: str) -> int:
    found = [name for name in names if re.search(rf"-{re.escape(name)}(_?\d+)?$", file.stem)]
    exact = [name for name in found if re.search(rf"-{re.escape(name)}(_\d+)?$", file.stem)]
    shapes = [name for name in names if re.match(rf"{re.escape(name)}_?\d+-", file.stem)]
    if shapes and shape not in shapes:
        raise ValueError(
            f"{str(file)!r} lies in the folder of {shape}, its name tells another shape; it was moved, "
            f"get the folders again"
        )
    told = exact or found  # class 1 is no texture of ...-12, if there is a class 12
    if not told:
        raise ValueError(
            f"{str(file)!r} does not tell its texture; names are <shape><number>-<texture><number>.png, with a texture "
            f"of the {len(names)} classes"
        )
    longest = max(told, key=len)
    if other := [name for name in told if name != longest and longest.startswith(name)]:
        raise ValueError(
            f"{str(file)!r} may tell the texture {other[0]} or {longest}; put an underscore before the number"
        )
    return names.index(longest)
