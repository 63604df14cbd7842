"""ImageNet-W: the watermark that ImageNet's cartons carry, put on every image (Li et al. 2023).

Six Chinese characters in white at opacity 0.5, a sixth of the image high, across its middle: many networks then answer
"carton". Two numbers come of it, both against the same images without: the watermark gap, accuracy with less accuracy
without, over all images; and the carton gap, the same over the images of cartons alone (which the watermark helps).

The published font is not ours to ship: give the path of ``SourceHanSerifSC-ExtraLight.otf`` (it lies in the published
repository, facebookresearch/Whac-A-Mole, in imagenet_w/fonts).

>>> mark = Watermark(224, "SourceHanSerifSC-ExtraLight.otf")  # doctest: +SKIP
>>> marked = mark(images)  # doctest: +SKIP
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lipcomp.robustness._estimates import Estimate, bounded_mean

TEXT = "捷径捷径捷径"
OPACITY, LEFT, TOP = 0.5, 0.01, 0.4
CARTON = 478
_FONT_SIZES = {224: 36, 384: 62, 512: 82, 518: 84}


class Watermark:
    """Puts the published watermark on images of one side, in 8 bits as published.

    Raises
    ------
    FileNotFoundError
        If the font is not there.
    """

    def __init__(self, side: int, font: Path | str) -> None:
        if not Path(font).is_file():
            raise FileNotFoundError(
                f"watermark font {str(font)!r} does not exist; it is "
                f"imagenet_w/fonts/SourceHanSerifSC-ExtraLight.otf of https://github.com/facebookresearch/Whac-A-Mole"
            )
        letters = ImageFont.truetype(str(font), _FONT_SIZES.get(side, int(side / 6.22)))
        layer = Image.new("RGBA", (side, side), (255, 255, 255, 0))
        place = (LEFT * side, TOP * side)
        ImageDraw.Draw(layer).text(place, TEXT, fill=(255, 255, 255, round(OPACITY * 255)), font=letters)
        self.layer = layer

    def __call__(self, images: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch 3 side side"]:
        """The images with the watermark on them, pixels in [0, 1]."""
        marked = []
        for pixels in (images * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
            under = Image.fromarray(pixels).convert("RGBA")
            if under.size != self.layer.size:
                raise ValueError(f"the watermark is for images of {self.layer.size}, got {under.size}")
            marked.append(np.array(Image.alpha_composite(under, self.layer).convert("RGB")))
        return torch.from_numpy(np.stack(marked)).permute(0, 3, 1, 2).to(images) / 255


def gap(
    clean: Bool[np.ndarray, " n"],
    marked: Bool[np.ndarray, " n"],
    chosen: Bool[np.ndarray, " n"] | None = None,
) -> Estimate:
    """Accuracy with the watermark less accuracy without, over the same images (those ``chosen``), with its interval."""
    gained = marked.astype(float) - clean
    return bounded_mean(gained if chosen is None else gained[chosen], (-1.0, 1.0))


def carton_gap(
    clean: Bool[np.ndarray, " n"], marked: Bool[np.ndarray, " n"], labels: Int64[Tensor, " n"]
) -> Estimate:
    """The gap over the images of cartons (ImageNet's class 478)."""
    return gap(clean, marked, (labels == CARTON).cpu().numpy())
