"""The local certificate: a captured map interpreted with the Jacobians of all its tensors over a ball (theory (5.4)).

Two passes. The first takes chords from the image: how far every number can move in the ball, from slopes between the
image and a point of the ball, which are about half as uncertain as those of tangents. The second takes tangents, with
the numbers' ranges from the first: what is uncertain there is what the Jacobian may be. All in float64, rounded
outward. Memory: (pixels + uncertain units) times the numbers of the widest layer.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, fx

from lipcomp.bound._capture import NoRule, check_dtype, leaves, name_of, with_values
from lipcomp.bound._ellipsoids import Units, norm_bound, row_bounds
from lipcomp.bound._noise import COPIES, PIECE, UP, Noise, block_norm, norm_above, pieces, row_norms


@dataclass(eq=False)
class Track:
    """A tensor that depends on the image: its value there and its Jacobian's columns (pixels, then noise)."""

    value: Inexact[Tensor, "..."]
    columns: Inexact[Tensor, "columns ..."]
    # whose norm it is, over which axes, shape kept
    norm_of: "tuple[Track, tuple[int, ...], bool] | None" = None
    direction_of: "Track | None" = None  # the h of which it is h / |h|, as the only vector
    known: Float[Tensor, "..."] | None = None  # norm bounds of its rows, once computed
    tight: bool = False  # whether ellipsoids made them smaller
    turn: "tuple[float, float] | None" = None  # see Ball.turn

    @property
    def flat(self) -> Float[Tensor, "columns numbers"]:
        """The columns of all its numbers in a row."""
        return self.columns.flatten(1)


@dataclass
class Ball:
    """One pass over a ball around an image."""

    radius: float
    pixels: int
    memory: float  # bytes
    units: int  # that may be uncertain
    chord: bool
    # how far numbers move, in the order of asking
    reaches: list[Float[Tensor, "..."]] = field(default_factory=list)
    noises: list[Noise] = field(default_factory=list)
    asked: int = 0
    _units: Units | None = None
    columns: int = 0  # bytes in the columns of all tensors that are still needed

    @property
    def held(self) -> int:
        """Bytes in use between two operations."""
        rows = sum(8 * noise.rows.numel() for noise in self.noises if noise.rows is not None)
        return self.columns + rows

    @property
    def count(self) -> int:
        """How many columns there are."""
        return self.pixels + sum(len(noise) for noise in self.noises)

    def rows(self, track: Track, *, tight: bool = True) -> Float[Tensor, "..."]:
        """Norm bound of the row of every number: by blocks, and if it is to be tight by ellipsoids."""
        if track.value.is_complex():
            raise NoRule("complex numbers have no rule but for linear operations")
        if track.known is None:
            track.known = row_norms(track.flat, self.noises, self.pixels).reshape(track.value.shape)
        if tight and not track.tight and self._fits():
            left = self.memory - self.held - 8 * self.count**2  # and the feeds of all units
            found = row_bounds(track.flat, self.units_so_far(), track.known.flatten(), left)
            track.known, track.tight = found.reshape(track.value.shape), True
        return track.known

    def norm(self, rows: Float[Tensor, "outputs columns"]) -> float:
        """Norm bound of a matrix of columns."""
        if not bool(rows.isfinite().all()):
            raise NoRule("the derivative is not finite")
        if not self.noises:
            return norm_above(rows[:, : self.pixels])
        bound = norm_bound(rows, self.units_so_far()) if self._fits() else math.inf
        return bound if math.isfinite(bound) else block_norm(rows, self.noises, self.pixels)

    def units_so_far(self) -> Units:
        """The uncertain units of all operations until here."""
        count = self.count - self.pixels
        if self._units is None or len(self._units.tau) != count:
            self._units = None  # its memory first
            self._units = Units.of(self.noises, self.pixels)
        return self._units

    def _fits(self) -> bool:
        """Whether there are uncertain units, and memory for their ellipsoids."""
        return bool(self.noises) and self.held + 5 * 8 * self.count**2 <= self.memory

    def reach(self, track: Track) -> Float[Tensor, "..."]:
        """How far every number may move from its value at the image."""
        if self.chord:
            moved = self.radius * self.rows(track) * UP
            if not bool(moved.isfinite().all()):
                raise NoRule("how far numbers move in the ball has no bound")
            size = track.value.nan_to_num(math.nan, 0, 0).abs().max()  # a mask's -inf stays where it is
            self.reaches.append(moved + 1e-13 * float(size))
        self.asked += 1
        return self.reaches[self.asked - 1]

    def turn(self, track: Track) -> tuple[float, float]:
        """Of h as the only vector: what is left of it along mu = h / |h| in the ball, and the tangent of its angle."""
        if track.turn is None:
            if self.chord:
                h = track.value.flatten()
                length = float(h.norm())
                mu = h / max(length, 1e-300)
                along = (track.flat @ mu)[:, None]
                speed = Track(h[:1], along)
                rough = self.radius * float(self.rows(speed, tight=False))
                left = (
                    length * (1 - 1e-12)
                    - self.radius * float(self.rows(speed, tight=rough > 0.05 * length)) * UP
                )
                across = track.flat.mT - mu[:, None] * along.mT
                tangent = self.radius * self.norm(across) * UP / left if left > 0 else math.inf
                self.reaches.append(torch.tensor([left, tangent], dtype=h.dtype))
            self.asked += 1
            left, tangent = self.reaches[self.asked - 1].tolist()
            track.turn = left, tangent
        return track.turn

    def affine(self, parts: list[Track], value: Tensor, function: Callable[..., Tensor]) -> Track:
        """What an affine function of tracked tensors gives, with its value; constants in it have no derivative."""
        count, widest = max(len(part.columns) for part in parts), max(part.value.numel() for part in parts)
        self.check(count * value.numel() * value.element_size() // 8)
        constant = function(*[torch.zeros_like(part.value) for part in parts])
        some = pieces(count, max(widest, value.numel()))
        columns = value.new_empty(count, *value.shape) if len(some) > 1 else value
        for these in some:
            found = torch.vmap(function)(*[_cut(part.columns, these) for part in parts])
            found = without(constant, found) if bool(constant.any()) else found
            if len(some) == 1:
                kind = torch.promote_types(found.dtype, value.dtype)  # complex numbers may be added
                return Track(value, found.to(kind))  # it may be a view
            columns[these] = found
        return Track(value, columns)

    def check(self, numbers: int) -> None:
        """Refuse what needs more memory than is given: new columns of so many numbers, a copy, work on a piece."""
        needed = self.held + 2 * 8 * numbers + COPIES * 8 * min(numbers, PIECE)
        if needed > self.memory:
            raise NoRule(
                f"the local certificate needs about {needed / 2**30:.1f} GiB (pixels and uncertain units times the "
                f"widest layers), more than the {self.memory / 2**30:.1f} it may use"
            )

    def uncertain(
        self,
        track: Track,
        sources: list[tuple[Track, Float[Tensor, "..."]]] | None = None,
        tau: Float[Tensor, "..."] | None = None,
        *,
        smooth: bool = False,
    ) -> Track:
        """Add noise to every number: e times the row of a source, |e| <= its half-width, or rows of norm tau.

        What is ``smooth`` has its derivative at a point, which is a ball of radius 0: no noise but rounding.
        """
        if smooth and not self.radius:
            return track
        given: list[tuple[Track | None, Tensor]] = [*(sources or [])]
        if tau is not None:
            given.append((None, tau))
        for source, size in given:
            size = size.expand(track.value.shape).flatten()
            largest = size if source is None else size * self.rows(source, tight=False).flatten()
            units = (~(largest <= 0)).nonzero().squeeze(1)
            if not len(units):
                continue
            if not bool(largest.isfinite().all()):
                raise NoRule("a bound of a derivative is infinite in the ball")
            self.check((self.count + len(units)) * track.value.numel())
            if self.count - self.pixels + len(units) > self.units:
                raise NoRule(
                    f"more than {self.units} units are uncertain in the ball of radius {self.radius:g}"
                )
            noise = Noise(list(self.noises), self.count, self.pixels, largest[units] * UP)
            if source is not None:
                noise.rows, noise.halfwidth = source.flat[:, units].mT.contiguous(), size[units] * UP
            columns = _longer(track.flat, noise.start + len(units))
            if columns is track.flat:
                columns = columns.clone()
            columns[noise.start + torch.arange(len(units), device=columns.device), units] = 1.0
            self.noises.append(noise)
            track = Track(track.value, columns.reshape(-1, *track.value.shape))
        return track


def without(constant: Tensor, value: Tensor) -> Tensor:
    """An affine function's value less the constants in it; what is filled with infinity is constant."""
    return (value - constant).masked_fill(constant.isinf(), 0)


def _cut(columns: Tensor, some: slice) -> Tensor:
    """These columns; beyond the last one they are 0."""
    return _longer(columns[some], some.stop - some.start)


def _longer(columns: Tensor, count: int) -> Tensor:
    missing = count - len(columns)
    return columns if not missing else torch.cat([columns, columns.new_zeros(missing, *columns.shape[1:])])


Rule = Callable[[Ball, fx.Node, tuple[Any, ...], dict[str, Any]], Any]


def interpret(
    graph: fx.GraphModule,
    image: Float[Tensor, "1 ..."],
    ball: Ball,
    rules: dict[str, Rule],
    passive: set[str],
) -> Track:
    """Run a captured map over a ball; the output's track.

    Raises
    ------
    NoRule
        If an operation that depends on the image has no rule, or none for these arguments.
    """
    pixels = image.numel()
    ball.check(pixels**2)
    eye = torch.eye(pixels, dtype=torch.float64, device=image.device).reshape(pixels, *image.shape)
    found: dict[fx.Node, Any] = {}
    last_use = {argument: node for node in graph.graph.nodes for argument in node.all_input_nodes}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            found[node] = Track(image.double(), eye)
        elif node.op == "get_attr":
            found[node] = getattr(graph, node.target).detach()
        elif node.op == "output":
            output = found[node.args[0]]
            if not isinstance(output, Track):
                raise NoRule("the output does not depend on the images by operations that are followed")
            return output
        else:
            ball.columns = _bytes(found.values())
            found[node] = _run(node, found, ball, rules, passive)
        for argument in node.all_input_nodes:
            if last_use[argument] is node:
                del found[argument]
    raise NoRule("the map gives nothing")


def _bytes(values: Iterable[Any]) -> int:
    """In the columns of all tensors, each storage once."""
    storages = {}
    for value in values:
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, Track):
                storage = part.columns.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _run(
    node: fx.Node, found: dict[fx.Node, Any], ball: Ball, rules: dict[str, Rule], passive: set[str]
) -> Any:
    args, kwargs = with_values(node, found.__getitem__)
    name = name_of(node)
    if name == "getitem":
        part = args[0][args[1]]
        if part is None:
            raise NoRule(f"{name_of(node.args[0])} has no rule for its part {args[1]}")  # type: ignore[arg-type]
        return part
    tracked = [a for a in leaves(node) if isinstance(a, fx.Node) and _depends(found[a])]
    if not tracked:
        return constant(node, args, kwargs)
    if name in passive:  # its result depends on shapes alone
        plain = lambda a: a.value if isinstance(a, Track) else a  # noqa: E731
        return node.target(*map(plain, args), **kwargs)  # type: ignore[operator]
    check_dtype(node, complex_too=True)
    if name not in rules:
        raise NoRule(f"the operation {name} has no rule")
    try:
        return rules[name](ball, node, *exact((args, kwargs)))
    except NoRule as missing:
        raise NoRule(f"{name}: {missing}") from missing
    except (RuntimeError, TypeError, IndexError, KeyError, NotImplementedError) as error:
        raise NoRule(f"{name} has no rule for these arguments ({str(error)[:120]})") from error


def _depends(value: Any) -> bool:
    return isinstance(value, Track) or (
        isinstance(value, list | tuple) and any(isinstance(part, Track) for part in value)
    )


def constant(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """What does not depend on the image, such as a weight that is normalised on the way, in float64."""
    args, kwargs = exact((args, kwargs))
    return node.target(*args, **kwargs)  # type: ignore[operator]


def exact(value: Any) -> Any:
    """Floating-point constants in float64, complex ones in complex128, and float64 for what asks for float32."""
    if isinstance(value, Tensor):
        wide = torch.complex128 if value.is_complex() else torch.float64
        return value.to(wide) if value.is_complex() or value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(exact(part) for part in value)
    if isinstance(value, dict):
        return {name: exact(part) for name, part in value.items()}
    return torch.float64 if value is torch.float32 else value


def direction_bound(track: Track, ball: Ball) -> float:
    """(5.5): bound of the constant of h / |h| over the ball."""
    left, tangent = ball.turn(track)
    if left <= 0:
        return math.inf
    h = track.value.flatten()
    mu = h / h.norm()
    cosine = 1 / math.sqrt(1 + tangent * tangent)
    sine = tangent * cosine
    # W = (P; s muT): for mu' at that angle ‖P' J‖ <= ‖W J‖ sqrt(cos^2 + sin^2 / s^2)
    share = max(min(math.sqrt(sine), 1.0), 1e-3)
    along = track.flat @ mu
    rows = torch.cat([track.flat.mT - mu[:, None] * along, share * along[None]])
    factor = max(1.0, math.sqrt(cosine**2 + sine**2 / share**2))
    return ball.norm(rows) * factor / left * UP
