"""Lower bounds from pairs of images: a quantity for each source of pairs, streamed block by block.

Draws come in blocks of fixed size, each with its own generator (the plan's seed and the block's number), so that
the batch size changes no pair.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from lipcomp._arguments import checked
from lipcomp._identity import digest
from lipcomp.bound import all_pairs, measure_pairs
from lipcomp.bound._lower import bounds_from_chords
from lipcomp.bound._neighbours import nearest_neighbours
from lipcomp.bound._pairs import PairBlock
from lipcomp.bound._results import LowerBounds
from lipcomp.bound._search import search_ball
from lipcomp.data._views import DigitViews, PhotoViews, Views
from lipcomp.measure._bench import Bench
from lipcomp.measure._cells import blocks
from lipcomp.measure._conditions import generated_conditions, images_identity
from lipcomp.measure._map import LATENT, Map
from lipcomp.measure._unit import Advance, Finding, Result, Unit
from lipcomp.robustness.corruptions import corruption_names
from lipcomp.robustness.corruptions._corrupt import table_for

SEARCH_BLOCK = 32
Blocks = Iterator[PairBlock]


def block_generator(seed: int, block: int) -> Generator:
    """The randomness of one block of images."""
    return torch.Generator().manual_seed(int(digest("draws", seed, block)[:15], 16))


def training_views(bench: Bench) -> Views:
    """The augmentation that the encoder was trained with; by the channels of its images if it does not say."""
    recipe = bench.checkpoint.metadata.recipe
    told = dict(recipe.get("views") or {})
    kind = {"DigitViews": DigitViews, "PhotoViews": PhotoViews}.get(str(told.pop("kind", "")))
    if kind is not None and "views_code" not in recipe:
        return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in told.items()})
    return DigitViews() if bench.checkpoint.image_shape[0] == 1 else PhotoViews()


def views_told(bench: Bench) -> dict[str, str]:
    """What records say of views that are not those of the training; a file does not hold the code of one's own."""
    trained = (bench.checkpoint.metadata.recipe.get("views") or {}).get("kind")
    taken = type(training_views(bench)).__name__
    if trained is None or (trained == taken and "views_code" not in bench.checkpoint.metadata.recipe):
        return {}
    return {"views": f"lipcomp's {taken}, not {trained} of the training"}


@checked
@dataclass(frozen=True)
class Pairs:
    """The bounds (3.1) to (3.5) over pairs from one source.

    Parameters
    ----------
    source
        "views", "corruptions", "random", "neighbours", "shuffled" (two images of the set at random), "all" or
        "search".
    map
        The map to measure.
    limit
        Use only this many images of the plan, from the first.
    radius
        For "random" and "search": of the step and of the ball, in pixels.
    norm
        Of the ball of "search"; random steps are in L2.
    neighbours
        For "neighbours": their number per image.
    search, starts, steps
        For "search": its kind ("pair" or "chord"), starts per image, and steps per start.
    corruptions, severities, table
        For "corruptions"; by default all of the table that fits the images, at severity 3. ``pooled`` joins them into
        one set of pairs.

    Raises
    ------
    ValueError
        By :func:`lipcomp.measure.run`, before anything is measured, if the source is unknown, an option does not fit
        it, or there are fewer than two images.

    Examples
    --------
    >>> from lipcomp.measure import Pairs
    >>> Pairs("random", radius=0.25).norm
    'l2'
    """

    source: str = "views"
    map: Map = LATENT
    limit: int | None = None
    radius: float = 0.5
    norm: str = "l2"
    neighbours: int = 1
    search: str = "pair"
    starts: int = 3
    steps: int = 30
    corruptions: tuple[str, ...] | None = None
    severities: tuple[int, ...] = (3,)
    table: str | None = None
    pooled: bool = False

    version: ClassVar[int] = 4
    sources: ClassVar[tuple[str, ...]] = (
        "views",
        "corruptions",
        "random",
        "neighbours",
        "shuffled",
        "all",
        "search",
    )

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit per set of pairs."""
        if self.source not in self.sources:
            raise ValueError(f"pairs must come from {', '.join(self.sources)}; got {self.source!r}")
        if self.source == "random" and self.norm != "l2":
            raise ValueError(f'norm is of the searched ball; random steps are in "l2", got {self.norm!r}')
        self.map.check(bench)
        if self.map.is_direction:
            bench.check_directions(self.map.layer)
        indices = bench.indices[: self.limit]
        if len(indices) < 2:
            raise ValueError(f"pairs need at least two images, got {len(indices)} of {bench.images.name}")
        for told in self._kinds(bench):
            content = (
                self.source,
                self.map.identity(bench),
                self.map.kappa(bench),
                images_identity(bench.images, indices),
                bench.plan.seed,
                told,
                training_views(bench) if self.source == "views" else None,
            )
            settings = {
                **bench.data_settings(indices=indices),
                **self.map.settings(bench),
                "seed": bench.plan.seed,
                "pairs": self.source,
                **told,
                **(views_told(bench) if self.source == "views" else {}),
            }
            words = [str(told[k]) for k in ("corruption", "severity") if k in told]
            count = len(indices) * (len(indices) - 1) // 2 if self.source == "all" else len(indices)
            yield Unit(
                kind="pairs",
                content=content,
                settings=settings,
                label=" ".join([self.source, *words]),
                count=count,
                cost={"all": 0.01, "search": 8.0 * self.starts * self.steps}.get(self.source, 2.0),
                measure=_Job(self, bench, indices, told),
                version=self.version + {"neighbours": 1, "search": -1}.get(self.source, 0),
                per_image=True,
                pictures=True,
                reads=bench.probe_reads(self.map.layer),
            )

    def _kinds(self, bench: Bench) -> Iterator[dict[str, Any]]:
        """What distinguishes one set of pairs of this source from another."""
        if self.source == "corruptions":
            table = self.table or table_for(bench.checkpoint.image_shape)
            known = corruption_names(table)
            names = known if self.corruptions is None else self.corruptions
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ValueError(
                    f"corruptions {', '.join(unknown)} are not in the table {table!r}: {', '.join(known)}"
                )
            if not names or not self.severities:
                raise ValueError(
                    "corruptions and severities must name at least one each; leave them out for all"
                )
            if self.pooled:
                yield {"table": table, "corruptions": list(names), "severities": list(self.severities)}
                return
            for name in names:
                for severity in self.severities:
                    yield {"corruption": name, "severity": severity, "table": table}
        elif self.source == "random":
            if not 0 < self.radius < math.inf:
                raise ValueError(f"radius must be a positive length in pixels, got {self.radius}")
            yield {"radius": self.radius}
        elif self.source == "neighbours":
            yield {"neighbours": self.neighbours}
        elif self.source == "search":
            yield {n: getattr(self, n) for n in ("radius", "norm", "search", "starts", "steps")}
        else:
            yield {}


@dataclass(frozen=True)
class _Job:
    """The measuring of one set of pairs."""

    quantity: Pairs
    bench: Bench
    indices: Tensor
    told: dict[str, Any]

    def __call__(self, advance: Advance) -> Result:
        fn, kappa = self.quantity.map.fn(self.bench), self.quantity.map.kappa(self.bench)
        source, direction = self.quantity.source, self.quantity.map.is_direction
        if source == "all":
            bounds = all_pairs(
                self._embeddings(fn),
                self._images,
                concentration=kappa,
                fn=fn,
                normalised=direction,
                advance=advance,
            )
            return self._told(bounds)
        if source == "search":
            return self._search(fn, kappa, advance)
        bounds = measure_pairs(fn, self._blocks(), concentration=kappa, normalised=direction, advance=advance)
        return self._told(bounds)

    def _images(self, places: Tensor) -> Tensor:
        return self.bench.load(places)

    def _parts(self) -> Iterator[tuple[int, Tensor]]:
        yield from blocks(len(self.indices))

    @torch.no_grad()
    def _embeddings(self, fn: Callable[[Tensor], Tensor]) -> Tensor:
        places = torch.arange(len(self.indices)).split(self.bench.batch_size)
        return torch.cat([fn(self._images(part)).flatten(1) for part in places])

    def _blocks(self) -> Blocks:
        """Pairs in blocks that fit."""
        quantity, bench, n = self.quantity, self.bench, len(self.indices)
        if quantity.source == "neighbours":
            near = nearest_neighbours(self._images, n, quantity.neighbours)
            listed = torch.stack([torch.arange(n).repeat_interleave(near.shape[1]), near.flatten()], 1)
            yield from self._indexed(listed)
        elif quantity.source == "shuffled":
            order = torch.randperm(n, generator=block_generator(bench.plan.seed, 0))
            yield from self._indexed(torch.stack([torch.arange(n), order], 1))
        elif quantity.source == "corruptions":
            yield from self._corrupted()
        else:
            views = training_views(bench)
            for number, places in self._parts():
                generator = block_generator(bench.plan.seed, number)
                pixels = bench.clean.batch(places, torch.device("cpu"), bench.dtype)
                if quantity.source == "views":
                    first, second = views(pixels.float(), generator)
                else:
                    step = torch.randn(pixels.shape, generator=generator, dtype=torch.float32)
                    step *= (quantity.radius / step.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
                    first, second = pixels, (pixels + step).clamp(0, 1)
                yield from self._cut(first, second, places.unsqueeze(1).expand(-1, 2))

    def _indexed(self, listed: Tensor) -> Blocks:
        for part in listed.split(self.bench.batch_size):
            yield PairBlock(self._images(part[:, 0]), self._images(part[:, 1]), part)

    def _corrupted(self) -> Blocks:
        told, bench = self.told, self.bench
        names = told.get("corruptions") or [told["corruption"]]
        severities = told.get("severities") or [told["severity"]]
        made = generated_conditions(
            bench.images,
            self.indices,
            table=told["table"],
            names=names,
            severities=severities,
            seed=bench.plan.seed,
        )
        for condition in made:
            for _, block in self._parts():
                for places, corrupted in bench.batches(condition, block):
                    yield PairBlock(self._images(places), corrupted, places.unsqueeze(1).expand(-1, 2))

    def _cut(self, first: Tensor, second: Tensor, pairs: Tensor) -> Blocks:
        size, to = self.bench.batch_size, (self.bench.device, self.bench.dtype)
        for x, y, places in zip(first.split(size), second.split(size), pairs.split(size), strict=True):
            yield PairBlock(x.to(*to), y.to(*to), places)

    def _search(self, fn: Callable[[Tensor], Tensor], kappa: float | None, advance: Advance) -> Result:
        quantity, bench = self.quantity, self.bench

        def compute(places: Tensor) -> dict[str, np.ndarray]:
            found = search_ball(
                fn,
                self._images(places),
                quantity.radius,
                norm=quantity.norm,
                kind=quantity.search,
                starts=quantity.starts,
                steps=quantity.steps,
                batch_size=bench.plan.batch_size,
                generator=block_generator(bench.plan.seed, int(places[0])),
                advance=advance,
            )
            apart = (found.second.double() - found.first.double()).flatten(1).norm(dim=1)
            chord = (found.chord_ratio.double() * apart).masked_fill(found.sigma_at_image.isnan(), torch.nan)
            best = int((chord / apart).nan_to_num(-math.inf).argmax())
            arrays = {
                "chord": chord,
                "distance": apart,
                "sigma": found.sigma.double(),
                "sigma_at_image": found.sigma_at_image.double(),
                "leader": torch.full((len(places),), best),
                "first": found.first[best][None].expand(len(places), *[-1] * (found.first.dim() - 1)),
                "second": found.second[best][None].expand(len(places), *[-1] * (found.second.dim() - 1)),
            }
            kept = {name: value.cpu().numpy() for name, value in arrays.items()}
            for name in ("first", "second"):  # one pair per block
                kept[name] = kept[name][:1]
            return kept

        content = images_identity(bench.images, self.indices)
        key = ("search", quantity.version, *quantity.map.identity(bench), bench.plan.seed, content, self.told)
        found = bench.cells.by_blocks(key, len(self.indices), compute, size=SEARCH_BLOCK)
        chord, distance = torch.from_numpy(found["chord"]), torch.from_numpy(found["distance"])
        dim = fn(self._images(torch.arange(1))).flatten(1).shape[1]
        bounds = bounds_from_chords(chord, distance, dim, kappa)
        ratio = (chord / distance).nan_to_num(-math.inf)
        block = int(ratio.argmax()) // SEARCH_BLOCK
        pair = (torch.from_numpy(found["first"][block]), torch.from_numpy(found["second"][block]))
        ranked = {"published", "supremum", "direction"}  # by the ratio, as the leader is
        result = self._told(bounds.with_images(lambda name, _: pair if name in ranked else None))
        for name in ("sigma", "sigma_at_image"):
            values = found[name][~np.isnan(found[name])]
            called = f"bound.{'sigma_in_ball' if name == 'sigma' else name}"
            for what, value in (("max", np.max), ("mean", np.mean)):
                number = float(value(values)) if len(values) else None
                result.findings.append(Finding(f"{called}.{what}", number, "1/pixel L2", len(values)))
            result.columns[called.removeprefix("bound.")] = found[name]
        return result

    def _told(self, bounds: LowerBounds) -> Result:
        direction = self.quantity.map.is_direction
        findings = list(bound_findings(bounds, self.indices, normalised=direction))
        columns = {name: bounds.per_image(name, len(self.indices)).numpy() for name in bounds.bounds}
        witnesses = {
            name: bound.witness.images
            for name, bound in bounds.bounds.items()
            if bound.witness is not None and bound.witness.images is not None
        }
        notes = [f"left out {count} pairs ({reason})" for reason, count in bounds.excluded.items() if count]
        if self.quantity.source == "views":
            notes += [f"pairs are made by {told}" for told in views_told(self.bench).values()]
        return Result(findings, columns, witnesses, notes)


def bound_findings(bounds: LowerBounds, images: Tensor, *, normalised: bool = True) -> Iterator[Finding]:
    """Maximum, quantiles and witness of every bound; every exclusion count.

    Parameters
    ----------
    bounds
        What was found.
    images
        The images' indices in their set, by their place among those measured.
    normalised
        Whether the map gave mean directions; if not, (3.5) goes by the name "embedding".
    """
    for bound in bounds.bounds.values():
        name = bound.name if normalised else "embedding"
        unit = bound.unit if normalised else "embedding/pixel L2"
        witness = bound.witness
        if not bound.n:
            yield Finding(f"bound.{name}.max", None, unit, 0)
            continue
        pair = witness and {
            "witness": [int(images[i]) for i in witness.pair],
            "witness_distance": witness.distance,
            "witness_chord": witness.chord,
        }
        yield Finding(f"bound.{name}.max", bound.maximum, unit, bound.n, details=pair or {})
        for q, value in bound.quantiles.items():
            yield Finding(f"bound.{name}.{'median' if q == 0.5 else f'q{100 * q:g}'}", value, unit, bound.n)
    total = bounds["direction"].n + sum(bounds.excluded.values())
    for reason, count in bounds.excluded.items():
        key = reason.replace(" ", "_").replace("-", "_")
        yield Finding(f"bound.excluded.{key}", float(count), "pairs", total)
    yield Finding("bound.jacobian_pairs", float(bounds.jacobian), "pairs", total)
