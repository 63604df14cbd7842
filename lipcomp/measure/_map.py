"""Which map from pixels is measured: a layer of the encoder, its direction or its embedding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lipcomp.jacobian._checks import check_layer
from lipcomp.measure._bench import LOGITS, Bench


@dataclass(frozen=True)
class Map:
    """Which map is measured: a layer, as mean direction or as it is, and at which concentration."""

    # "backbone" (the pooled features, which a probe reads), "projection", "prediction", "latent", or "logits" (the
    # probe's class scores, never normalised)
    layer: str = "latent"
    normalised: bool = True  # h / |h| instead of h
    # kappa_e at which (3.1) to (3.4) are told; None takes the checkpoint's own
    concentration: float | None = None

    def check(self, bench: Bench) -> None:
        """Refuse a layer that the encoder does not have, and precisions that hold no bound."""
        if self.layer != LOGITS:
            check_layer(bench.encoder, self.layer)
        if bench.plan.precision == "bfloat16":
            raise ValueError('precision must be "float32" or "float64" for Lipschitz bounds, got "bfloat16"')
        # from float32, sigma goes to float64 by itself
        if self.is_direction and bench.plan.precision == "float64":
            bench.check_directions(self.layer)

    @property
    def is_direction(self) -> bool:
        """Whether the map ends on the unit sphere."""
        return self.normalised and self.layer != LOGITS

    def kappa(self, bench: Bench) -> float | None:
        """The concentration that counts."""
        if not self.is_direction:
            return None
        return bench.checkpoint.concentration if self.concentration is None else self.concentration

    def fn(self, bench: Bench) -> Callable[[Tensor], Tensor]:
        """The map itself."""
        return bench.map(self.layer, normalised=self.normalised)

    def identity(self, bench: Bench) -> tuple[Any, ...]:
        """What identifies it."""
        return bench.map_identity(self.layer, normalised=self.is_direction)

    def settings(self, bench: Bench) -> dict[str, Any]:
        """What records say about it."""
        return {"layer": self.layer, "normalised": self.is_direction, "kappa_e": self.kappa(bench)}


LATENT = Map()
