"""One unit of work: what identifies it, how much it is, and what comes out of it.

A quantity of a plan (:mod:`lipcomp.measure`) yields units. A unit is measured whole, its records are appended in one
write, and its identity says whether that was done before. Two quantities that yield the same unit, from whichever
command or study, give one record.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from lipcomp._identity import digest
from lipcomp.robustness._estimates import Estimate

Advance = Callable[[int], object]


def nothing(_: int = 1) -> None:
    """No progress."""


@dataclass(frozen=True)
class Finding:
    """One value: its dotted name, unit, how many images or pairs it rests on, its 95% interval, and how it was found.

    ``settings`` belong to its identity; ``details`` (a witness pair, a p-value) are told beside it.
    """

    quantity: str
    value: float | None
    unit: str = ""
    n: int | None = None
    interval: tuple[float, float] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, quantity: str, estimate: Estimate, unit: str = "", **settings: Any) -> "Finding":
        """An estimate with its interval."""
        return cls(quantity, estimate.value, unit, estimate.n, estimate.interval, settings)


@dataclass
class Result:
    """What a unit gave."""

    findings: list[Finding]  # values for records
    # per-image values by name, in the order of the plan's images
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    # the pair of images that attains a bound, by the bound's name
    witnesses: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # lines for people


@dataclass(frozen=True)
class Unit:
    """Work that is done whole."""

    kind: str  # which estimator, for the identity
    # everything that can change its numbers: identities of encoder, images and probe, and settings
    content: tuple[Any, ...]
    settings: Mapping[str, Any]  # what its records say
    label: str  # what progress calls it
    count: int  # of what progress counts
    measure: Callable[[Advance], Result]  # does it
    cost: float = 1.0  # about how many forward passes each of the count takes beside ``reads``
    version: int = 1  # of the estimator's method: a change that changes numbers counts it up
    per_image: bool = False  # whether it gives columns
    pictures: bool = False
    # (identity, forward passes) of the images whose scores it reads, which are computed once for all units
    reads: tuple[tuple[str, int], ...] = ()

    @cached_property
    def identity(self) -> str:
        """A hash of everything that can change its numbers."""
        return digest("unit", self.kind, self.version, self.content)
