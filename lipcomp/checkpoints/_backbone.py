"""What an architecture's reader gives: a network without its classifier, and what is known of it besides."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lipcomp._messages import needed
from lipcomp.checkpoints._preprocessing import Inputs

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier.

    Parameters
    ----------
    name
        Its name in messages and records.
    network
        Normalised images -> pooled features.
    classifier
        Where the classifier stood: keys there are left out.
    preprocessing
        What its library says of its images, if it does.
    image_size
        (height, width) that it is made for, if it is made for one.
    notes
        What had to be assumed.
    normalisations
        (mean, std) -> an architecture with these weights' names and shapes that uses them.
    """

    name: str
    network: nn.Module
    classifier: tuple[str, ...] = ("fc",)
    preprocessing: Inputs | None = None
    image_size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    normalisations: Mapping[Any, str] = field(default_factory=dict)


def import_timm(by: str) -> Any:
    """The module timm, or an ImportError that says what needs it and how it is installed."""
    with needed(by, "lipcomp[timm]"):
        import timm
    return timm
