"""What a corruption number is a number of: which corruptions, made how, on which images.

Mean corruption accuracy and mCE of two papers may only be set side by side if these agree. What moves them, measured on
standard models: 15 or 19 corruptions; images made in memory or read from the published set, which is saved as JPEG of
quality 85 (5.7 points of accuracy, .072 of mCE); frost from photographs or from textures; which images. So each mean
carries its protocol, and AlexNet's reference errors are taken only where they belong.

>>> protocol = Protocol("imagenet", COMMON, (1, 2, 3, 4, 5), "memory", None, "textures", 1000, 1000)
>>> protocol.label
'15 corruptions x 5 severities, made in memory, no JPEG, frost textures, 1000 images'
>>> protocol.deviations()[0]
'images made in memory without JPEG 85; give jpeg=85, or the published set'
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lipcomp.robustness.corruptions._tables import COMMON, TABLES, VALIDATION

IDENTITY = "identity"  # MNIST-C's folder of uncorrupted digits
PUBLISHED_JPEG = 85
PUBLISHED_IMAGES = {"imagenet": 50_000, "cifar": 10_000, "tiny": 10_000, "mnist": 10_000}
ALEXNET_CLASSES = 1000
# ImageNet-3DCC's (Kar et al. 2022), as RobustBench averages them.
IN_DEPTH = (
    "near_focus", "far_focus", "bit_error", "color_quant", "flash", "fog_3d", "h265_abr", "h265_crf", "iso_noise",
    "low_light", "xy_motion_blur", "z_motion_blur",
)  # fmt: skip

# ImageNet-P's ten perturbations (Hendrycks & Dietterich 2019); cifar-p-eval.py averages spatter in the place of snow.
PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "snow", "brightness", "translate", "rotate", "tilt",
    "scale",
)  # fmt: skip
_HELD_BACK = ("spatter", "speckle_noise", "gaussian_blur", "shear")


@dataclass(frozen=True)
class Protocol:
    """How a corrupted evaluation was made."""

    # whose severities: a table of :mod:`~lipcomp.robustness.corruptions._tables`, or the layout of a set on disk
    table: str
    # corruptions, severities: what the mean is taken over; the severities are None where the set has one setting
    corruptions: tuple[str, ...]
    severities: tuple[int | None, ...]
    made: Literal["disk", "memory"]  # "disk" for a published set, "memory" for corruptions made on the way
    jpeg: int | None  # quality of the JPEG that images made in memory were saved as, or None
    # "photographs" or "textures"; None where no frost was made
    frost: Literal["photographs", "textures"] | None
    images: int  # images in each condition
    classes: int  # classes of the classifier

    @property
    def label(self) -> str:
        """The protocol in one line."""
        many = f" x {len(self.severities)} severities" if len(self.severities) > 1 else ""
        if not many and self.severities != (None,):
            many = f" of severity {self.severities[0]}"
        made = "read from disk"
        if self.made == "memory":
            made = f"made in memory, {'no JPEG' if self.jpeg is None else f'JPEG {self.jpeg}'}"
            made += f", frost {self.frost}" if self.frost else ""
        return f"{len(self.corruptions)} corruptions{many}, {made}, {self.images} images"

    def settings(self) -> dict[str, Any]:
        """For a record: every field, and whether the mean may be set beside published ones."""
        return {
            "table": self.table,
            "corruptions": len(self.corruptions),
            "severities": list(self.severities),
            "made": self.made,
            "jpeg": self.jpeg,
            "frost": self.frost,
            "images": self.images,
            "comparable": not self.deviations(),
        }

    def deviations(self) -> list[str]:
        """What makes a mean of this protocol another quantity than the published one, each with its remedy."""
        found = []
        known = _published(self.table, self.corruptions)
        if {*self.corruptions} != {*known}:
            lost = [name for name in known if name not in self.corruptions]
            more = [name for name in self.corruptions if name not in known]
            words = [f"lacks {', '.join(lost)}"] * bool(lost) + [f"has {', '.join(more)} besides"] * bool(
                more
            )
            found.append(f"not the {len(known)} corruptions of the literature: {' and '.join(words)}")
        severities = (None,) if self.table == "mnist" else (1, 2, 3, 4, 5)
        if {*self.severities} != {*severities}:
            told = "one setting per corruption" if self.table == "mnist" else "1 to 5"
            found.append(f"severities {', '.join(map(str, self.severities))}; the published set has {told}")
        if (
            self.made == "memory"
            and self.table in ("imagenet", "imagenet-bar")
            and self.jpeg != PUBLISHED_JPEG
        ):
            told = "without JPEG 85" if self.jpeg is None else f"with JPEG {self.jpeg}, not 85"
            found.insert(0, f"images made in memory {told}; give jpeg=85, or the published set")
        if self.made == "memory" and self.table not in ("imagenet", "imagenet-bar") and self.jpeg is not None:
            found.append(f"JPEG {self.jpeg} on a set that is published without; give no jpeg")
        if self.frost == "textures":
            found.append("frost from generated textures; give the published photographs (frost=...)")
        published = PUBLISHED_IMAGES.get(self.table.removesuffix("-bar"))
        if published is not None and self.images != published:
            found.append(f"{self.images} images, published are {published}")
        return found

    def check_reference(self) -> list[str]:
        """Refuse AlexNet's errors where they mean nothing; what else differs from how they were measured.

        They are its errors on the published ImageNet-C: 15 corruptions at five severities, 1,000 classes.

        Raises
        ------
        ValueError
            If the classes, the table or the corruptions are others.
        """
        reasons = []
        if self.classes != ALEXNET_CLASSES:
            reasons.append(
                f"the classifier has {self.classes} classes, AlexNet's errors are for {ALEXNET_CLASSES}"
            )
        if self.table != "imagenet":
            reasons.append(f"the corruptions are those of {self.table}, AlexNet's errors are for ImageNet-C")
        if {*self.corruptions} != {*COMMON} or {*self.severities} != {1, 2, 3, 4, 5}:
            reasons.append("mCE is over the 15 corruptions of the literature at severities 1 to 5")
        if reasons:
            raise ValueError(
                f"no mCE: {'; '.join(reasons)}; give reference errors of your own, or read the plain mean"
            )
        return self.deviations()


def literature(names: Sequence[str], *, all_found: bool = False) -> tuple[str, ...]:
    """The corruptions that a mean is taken over.

    ``identity`` is none, and of ImageNet-C's nineteen the four that were held back for validation are left out, as the
    literature does, unless ``all_found``.
    """
    kept = [name for name in names if name != IDENTITY]
    if not all_found and {*kept} <= {*COMMON, *VALIDATION}:  # MNIST-C has a spatter of its own
        kept = [name for name in kept if name not in VALIDATION] or kept
    return tuple(kept)


def averaged_perturbations(names: Sequence[str], *, cifar: bool) -> tuple[tuple[str, ...], list[str]]:
    """The perturbations that a mean flip rate is taken over, and what makes it another than the published one.

    Of the published sets these are ten: those that were held back and harder noise (``gaussian_noise_2``) are left out.
    """
    ten = tuple("spatter" if cifar and name == "snow" else name for name in PERTURBATIONS)
    published = all(name.rstrip("_23") in (*PERTURBATIONS, *_HELD_BACK) for name in names)
    kept = tuple(name for name in names if name in ten) if published else ()
    used = kept or tuple(names)
    lost, more = ([n for n in one if n not in other] for one, other in ((ten, used), (used, ten)))
    words = [f"lacks {', '.join(lost)}"] * bool(lost) + [f"has {', '.join(more)} besides"] * bool(more)
    return used, [f"not the 10 perturbations of the literature: {' and '.join(words)}"] if words else []


def _published(table: str, names: Sequence[str]) -> tuple[str, ...]:
    """The corruptions of the published mean that shares most with these: sets on disk have one layout for several."""
    bar, depth = f"{table.removesuffix('-bar')}-bar", IN_DEPTH if table == "imagenet" else ()
    known = [literature(tuple(TABLES.get(table, names))), tuple(TABLES.get(bar, ())), depth]
    return max(known, key=lambda own: len({*own} & {*names}))
