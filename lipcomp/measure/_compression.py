"""Compression, held out: residual information, its excess over the floor, I(Y;Z), effective rank.

Everything is measured on augmented views of images that the encoder was not trained on, the same for every encoder
with the same augmentation.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from lipcomp._arguments import checked
from lipcomp.distributions import VonMisesFisher
from lipcomp.distributions._bessel import mean_resultant_length
from lipcomp.distributions._divergence import divergence_floor, half_chord_squared
from lipcomp.measure._bench import Bench
from lipcomp.measure._cells import blocks
from lipcomp.measure._conditions import images_identity
from lipcomp.measure._pairs import block_generator, training_views, views_told
from lipcomp.measure._unit import Advance, Finding, Result, Unit
from lipcomp.robustness._estimates import Estimate, bootstrap

COMMON_KAPPA = (1024.0, 10.0)  # kappa_e, kappa_b of the paper's recipes: where all models are compared


@checked
@dataclass(frozen=True)
class Compression:
    """I(X;Z|Y) from above (2.2), its excess over the floor (2.4), and I(Y;Z) from below (2.3), in nats.

    The expectation over z ~ e(z|x) is in closed form in (2.2) and over one draw per view in (2.3). With the mean
    direction for z, (2.3) bounds I(Y; mu(X)), which is larger than I(Y;Z), whatever kappa_e is.
    """

    pairs: int = 1000  # how many images, two views of each
    draws: int = 4  # how many pairs of views per image

    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        for name in ("pairs", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit for the common concentrations, and one for the encoder's own."""
        kappas = {"common": COMMON_KAPPA}
        own = (bench.checkpoint.concentration, bench.checkpoint.metadata.objective.get("kappa_b"))
        if own[0] is not None and own[1] is not None:
            kappas["own"] = (float(own[0]), float(own[1]))
        indices = bench.indices[: self.pairs]
        for name, (kappa_e, kappa_b) in kappas.items():
            content = (
                bench.identity,
                images_identity(bench.images, indices),
                training_views(bench),
                kappa_e,
                kappa_b,
                self.draws,
                bench.plan.seed,
            )
            told = {
                "kappa": name,
                "kappa_e": kappa_e,
                "kappa_b": kappa_b,
                "draws": self.draws,
                **views_told(bench),
            }

            def measure(advance: Advance, told: dict[str, Any] = told) -> Result:
                return Result(list(self._findings(bench, told, advance)))

            settings = bench.data_settings(indices=indices) | told | {"seed": bench.plan.seed}
            count = len(indices) * self.draws
            yield Unit(
                "compression",
                content,
                settings,
                f"compression ({name} kappa)",
                count,
                measure,
                2.0,
                self.version,
            )

    def _directions(self, bench: Bench, advance: Advance) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Mean directions of two views of every image, a draw at a time."""
        views, n = training_views(bench), min(self.pairs, len(bench.indices))
        for draw in range(self.draws):
            sides: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
            for number, places in blocks(n):
                pixels = bench.clean.batch(places, torch.device("cpu"), torch.float32)
                made = views(pixels, block_generator(bench.plan.seed + 1000 + draw, number))
                with torch.no_grad():
                    for side, images in zip(sides, made, strict=True):
                        for part in images.split(bench.batch_size):
                            side.append(bench.encoder(part.to(bench.device, bench.dtype)).double().cpu())
                advance(len(places))
            yield torch.cat(sides[0]), torch.cat(sides[1])

    def _findings(self, bench: Bench, told: dict[str, Any], advance: Advance) -> Iterator[Finding]:
        kappa_e, kappa_b = (torch.tensor(told[name]).double() for name in ("kappa_e", "kappa_b"))
        excesses, scores, dim, count = [], [], 0, 0
        for draw, sides in enumerate(self._directions(bench, advance)):
            mu_x, mu_y = (mu / _norms(mu) for mu in sides)
            count, dim = mu_x.shape
            apart = mean_resultant_length(dim, kappa_e) * kappa_b * half_chord_squared(mu_x, mu_y)
            excesses.append(apart.numpy())
            generator = block_generator(bench.plan.seed + 2000 + draw, 0)
            z = VonMisesFisher(mu_x, kappa_e, validate_args=False).sample(generator=generator)
            logits = kappa_b * z @ mu_y.T
            scores.append((math.log(count) + logits.diag() - logits.logsumexp(1)).numpy())
        floor = float(divergence_floor(dim, kappa_e, kappa_b))
        excess = bootstrap(np.mean(excesses, axis=0))
        ends = None if excess.interval is None else (floor + excess.interval[0], floor + excess.interval[1])
        residual = Estimate(floor + excess.value, ends, excess.n)
        yield Finding.of("compression.residual_information", residual, "nats", dim=dim)
        yield Finding.of("compression.residual_excess", excess, "nats", dim=dim, floor=floor)
        bound = {"candidates": count, "at_most": math.log(count), "z": "drawn"}
        yield Finding.of("compression.i_yz", bootstrap(np.mean(scores, axis=0)), "nats", **bound)


def _norms(mu: torch.Tensor) -> torch.Tensor:
    """The norms of directions, 1 but for the rounding of the encoder's precision; NaN where there is no direction."""
    norms = torch.linalg.vector_norm(mu, dim=1, keepdim=True)
    return norms.where((norms - 1).abs() < 0.1, torch.nan)


@dataclass(frozen=True)
class EffectiveRank:
    """Exponential of the entropy of the normalised singular values of the features (Roy and Vetterli 2007)."""

    version: ClassVar[int] = 3

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""

        def measure(advance: Advance) -> Result:
            features = bench.features(bench.clean, advance)
            rank = effective_rank(features, torch.finfo(bench.dtype).eps)
            return Result([Finding("effective_rank", rank, "", len(features))])

        content = (bench.identity, bench.clean.identity)
        settings = bench.data_settings() | {"layer": "backbone"}
        yield Unit(
            "effective_rank",
            content,
            settings,
            "effective rank",
            len(bench.clean),
            measure,
            1.0,
            self.version,
        )


def effective_rank(features: torch.Tensor, eps: float) -> float:
    """The effective rank of features less their mean.

    It is 0 where they vary by no more than ``eps`` of their size, the rounding of the encoder's precision (a collapsed
    encoder), and NaN where they are not finite.
    """
    features = features.double()
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features - features.mean(0))
    total = float(values.sum())
    if total <= max(eps, torch.finfo(torch.float32).eps) * float(features.norm()):
        return 0.0
    share = values / total
    return float(torch.exp(-(share * share.clamp_min(1e-300).log()).sum()))
