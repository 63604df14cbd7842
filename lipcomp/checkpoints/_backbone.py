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
    """A network without its classifier."""

    name: str  # its name in messages and records
    network: nn.Module  # normalised images -> pooled features
    classifier: tuple[str, ...] = ("fc",)  # where the classifier stood: keys there are left out
    preprocessing: Inputs | None = None  # what its library says of its images, if it does
    image_size: tuple[int, int] | None = None  # (height, width) that it is made for, if it is made for one
    notes: tuple[str, ...] = ()  # what had to be assumed
    # (mean, std) -> an architecture with these weights' names and shapes that uses them
    normalisations: Mapping[Any, str] = field(default_factory=dict)


def import_timm(by: str) -> Any:
    """The module timm, or an ImportError that says what needs it and how it is installed."""
    with needed(by, "lipcomp[timm]"):
        import timm
    return timm
