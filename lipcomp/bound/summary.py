"""What is told of the bounds of a set of pairs: named numbers for records, a row an image for tables."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.utils import save_image

from lipcomp.bound.results import LABELS, LowerBounds


@dataclass(frozen=True)
class Finding:
    """One number: its dotted name, unit, how many pairs it rests on, and the pair that attains it."""

    quantity: str
    value: float | None
    unit: str
    n: int
    witness: dict[str, Any] = field(default_factory=dict)


def findings(
    result: LowerBounds, images: Int64[Tensor, " n"], *, normalised: bool = True
) -> Iterator[Finding]:
    """Maximum, quantiles and witness of every bound; every exclusion count.

    Parameters
    ----------
    result
        The bounds.
    images
        The images' indices in their set, by their place among those measured.
    normalised
        Whether the map gave mean directions; if not, (3.5) goes by the name "embedding".
    """
    for bound in result.bounds.values():
        name = bound.name if normalised else "embedding"
        unit = bound.unit if normalised else "embedding/pixel L2"
        witness = bound.witness
        if witness is None:
            yield Finding(f"bound.{name}.max", None, unit, 0)
            continue
        pair = {
            "witness": [int(images[i]) for i in witness.pair],
            "witness_distance": witness.distance,
            "witness_chord": witness.chord,
        }
        yield Finding(f"bound.{name}.max", bound.maximum, unit, bound.n, pair)
        for q, value in bound.quantiles.items():
            yield Finding(f"bound.{name}.q{100 * q:g}", value, unit, bound.n)
    total = result["direction"].n + sum(result.excluded.values())
    for reason, count in result.excluded.items():
        yield Finding(
            f"bound.excluded.{reason.replace(' ', '_').replace('-', '_')}", float(count), "pairs", total
        )
    yield Finding("bound.jacobian_pairs", float(result.jacobian), "pairs", total)


def table_rows(
    result: LowerBounds, images: Int64[Tensor, " n"], *, normalised: bool = True
) -> list[tuple[str, ...]]:
    """Bound, median, 99% quantile, maximum, witness pair, count of pairs: as text, a row a bound."""
    rows = []
    for bound in result.bounds.values():
        pair = "-"
        if bound.witness is not None:
            pair = ", ".join(str(int(images[i])) for i in bound.witness.pair)
        numbers = (bound.quantiles[0.5], bound.quantiles[0.99], bound.maximum)
        label = LABELS[bound.name] if normalised else "embedding, not normalised"
        rows.append((label, *(f"{value:.4g}" for value in numbers), pair, str(bound.n)))
    return rows


def per_image(result: LowerBounds, images: Int64[Tensor, " n"]) -> dict[str, list[Any]]:
    """Columns with one row an image: the largest value of every bound among the pairs that it takes part in."""
    n = len(images)
    return {
        "image": images.tolist(),
        **{name: result.per_image(name, n).tolist() for name in result.bounds},
    }


def save_witness(
    path: Path, first: Float[Tensor, "channels height width"], second: Float[Tensor, "c h w"]
) -> None:
    """The two images and their difference as one PNG, side by side; it appears whole or not at all.

    The difference is stretched, grey where there is none, so that a small step can be seen. Of images that are neither
    grey nor coloured the mean over the channels is drawn.
    """
    difference = second - first
    largest = float(difference.abs().max())
    stretched = difference / (2 * largest) + 0.5 if largest > 0 else torch.full_like(difference, 0.5)
    panels = [
        part if len(part) in (1, 3) else part.mean(0, keepdim=True) for part in (first, second, stretched)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    save_image(
        [panel.float().clamp(0, 1) for panel in panels], temporary, format="png", padding=1, pad_value=0.5
    )
    temporary.replace(path)
