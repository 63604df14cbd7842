"""What follows an upper bound of the Lipschitz constant through a forward pass.

A :class:`Tracer` watches every torch function that a map calls. A tensor that depends on the images carries a
:class:`Track`: the bound an image, and, right after a convolution or linear layer, that layer itself, so that a batch
norm that follows is folded into its weight before the norm is taken. The rules are :mod:`lipcomp.bound.layer_rules`.
"""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name


class NoRule(Exception):  # noqa: N818  (it is no error: a bound is not known)
    """An operation without a rule; says which, and what follows."""


@dataclass
class Track:
    """Bound of a tensor, an image; with a layer whose norm is still to be multiplied."""

    bound: Float[Tensor, " n"]
    layer: tuple[Tensor, Callable[[Tensor], float], str] | None = None  # weight, its norm, name
    extreme: tuple[Tensor, str, int] | None = (
        None  # of which tensor it is the "min" or "max", along which axis
    )


class Tracer(TorchFunctionMode):
    """Carries bounds through a forward pass."""

    def __init__(self, n: int, radius: float, rules: "Mapping[Any, Rule]", properties: set[Any]) -> None:
        super().__init__()
        self.n, self.radius, self.normalised = n, radius, False
        self.rules, self.properties = rules, properties
        self.layers: list[tuple[str, float]] = []
        self.tracks: dict[int, tuple[weakref.ref[Tensor], Track]] = {}

    def start(self, images: Tensor) -> Tensor:
        """The images, with bound 1."""
        tracked = images.detach().clone()
        self.set(tracked, Track(torch.ones(self.n, dtype=torch.float64)))
        return tracked

    def get(self, tensor: Any) -> Track | None:
        """The track of a tensor, None for a constant."""
        entry = self.tracks.get(id(tensor)) if isinstance(tensor, Tensor) else None
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def set(self, tensor: Tensor, track: Track) -> None:
        """Give a tensor its track."""
        self.tracks[id(tensor)] = (weakref.ref(tensor), track)

    def settle(self, tensor: Tensor) -> Tensor:
        """The bound of a tensor, a waiting layer's norm multiplied in."""
        track = self.get(tensor)
        assert track is not None
        if track.layer is not None:
            weight, norm, name = track.layer
            factor = norm(weight)
            self.layers.append((name, factor))
            track = Track(track.bound * factor)
            self.set(tensor, track)
        return track.bound

    def bound_of(self, output: Any) -> Tensor:
        """The bound of the map's output."""
        if self.get(output) is None:
            raise NoRule("the output does not come from the images by known operations")
        return self.settle(output)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        flat = [*args, *kwargs.values()]
        inputs = [
            v for v in flat for v in (v if isinstance(v, list | tuple) else (v,)) if self.get(v) is not None
        ]
        if (
            not inputs
            or func in self.properties
            or getattr(func, "__name__", "") in ("__get__", "dim", "size")
        ):
            return func(*args, **kwargs)
        rule = self.rules.get(func)
        if rule is None:
            raise NoRule(
                f"the layer or operation {resolve_name(func) or func} has no known Lipschitz constant"
            )
        result, track = rule(self, func, args, kwargs)
        self.set(result if isinstance(result, Tensor) else result[0], track)  # values, not their indices
        return result


Rule = Callable[[Tracer, Any, tuple[Any, ...], dict[str, Any]], tuple[Any, Track]]
