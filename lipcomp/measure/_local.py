"""Local constants: sigma_max of the Jacobian, its Frobenius norm, and the ball: lower, searched and certified.

All are measured in blocks of fixed size that are kept in cells, so an interrupted measurement continues at the
block it was in, and only the measured images are decoded.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lipcomp._arguments import checked
from lipcomp.bound import lipschitz
from lipcomp.bound._lower import fisher_trace
from lipcomp.jacobian import frobenius_norm, spectral_norm
from lipcomp.measure._bench import Bench
from lipcomp.measure._conditions import images_identity
from lipcomp.measure._map import LATENT, Map
from lipcomp.measure._pairs import block_generator
from lipcomp.measure._unit import Advance, Finding, Result, Unit
from lipcomp.robustness._estimates import bootstrap

QUANTILES = {"q10": 0.1, "median": 0.5, "q90": 0.9, "q99": 0.99}
UNIT = "1/pixel L2"
BALL_BLOCK = 8


def _unit(
    name: str,
    version: int,
    bench: Bench,
    of: Map,
    indices: Tensor,
    told: dict[str, Any],
    cost: float,
    measure: Any,
) -> Unit:
    """A unit on the first images of the plan."""
    content = (of.identity(bench), images_identity(bench.images, indices), bench.plan.seed, told)
    settings = {
        **bench.data_settings(indices=indices),
        "layer": of.layer,
        "normalised": of.is_direction,
        "seed": bench.plan.seed,
        **told,
    }
    label, reads = f"{name} at {of.layer}", bench.probe_reads(of.layer)
    return Unit(name, content, settings, label, len(indices), measure, cost, version, True, reads=reads)


def _key(
    name: str, version: int, bench: Bench, of: Map, indices: Tensor, told: dict[str, Any]
) -> tuple[Any, ...]:
    return (name, version, *of.identity(bench), images_identity(bench.images, indices), bench.plan.seed, told)


@checked
@dataclass(frozen=True)
class Sigma:
    """sigma_max(J) at every image: mean, quantiles, maximum (theory (4.4)).

    Parameters
    ----------
    map
        The map to measure.
    limit
        Use only this many images of the plan, from the first.
    rtol, method, max_iterations, k
        Of :func:`lipcomp.jacobian.spectral_norm`.

    Raises
    ------
    ValueError
        By :func:`lipcomp.measure.run`, before anything is measured, if the encoder has no such layer, or an option is
        out of range.

    Examples
    --------
    >>> from lipcomp.measure import Sigma
    >>> Sigma(limit=50, k=3).rtol
    0.0001
    """

    map: Map = LATENT
    limit: int | None = None
    rtol: float = 1e-4
    method: str = "auto"
    max_iterations: int | None = None
    k: int = 1

    version: ClassVar[int] = 2

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        self.map.check(bench)
        indices = bench.indices[: self.limit]
        told = {"rtol": self.rtol, "method": self.method, "max_iterations": self.max_iterations, "k": self.k}
        told = {name: value for name, value in told.items() if value is not None}

        def compute(places: Tensor) -> dict[str, np.ndarray]:
            found = spectral_norm(
                self.map.fn(bench),
                bench.load(places),
                k=self.k,
                rtol=self.rtol,
                method=self.method,
                max_iterations=self.max_iterations,
                vectors=False,
                batch_size=bench.plan.batch_size,
                generator=block_generator(bench.plan.seed, int(places[0])),
            )
            arrays = {"sigma": found.sigma, "residual": found.residual, "iterations": found.iterations}
            arrays |= {"converged": found.converged, "values": found.values}
            counts = {f"excluded {reason}": n for reason, n in found.excluded.items()}
            filled = {name: np.full(len(places), n / len(places)) for name, n in counts.items()}
            return {name: value.cpu().numpy() for name, value in arrays.items()} | filled

        def measure(advance: Advance) -> Result:
            key = _key("sigma", self.version, bench, self.map, indices, told)
            found = bench.cells.by_blocks(key, len(indices), compute, advance)
            columns = {f"sigma_{j + 1}": found["values"][:, j] for j in range(found["values"].shape[1])}
            columns |= {name: found[name] for name in ("residual", "iterations", "converged")}
            return Result(list(self._findings(found, indices)), columns)

        yield _unit("sigma_max", self.version, bench, self.map, indices, told, 25.0, measure)

    def _findings(self, found: dict[str, np.ndarray], indices: Tensor) -> Iterator[Finding]:
        sigma = found["sigma"].astype(np.float64)
        known = sigma[np.isfinite(sigma)]
        n = len(known)
        for name in found:
            if name.startswith("excluded "):
                reason = name.removeprefix("excluded ").replace(" ", "_").replace("-", "_")
                yield Finding(
                    f"sigma_max.excluded.{reason}", float(round(found[name].sum())), "images", len(sigma)
                )
        if not n:
            yield Finding("sigma_max.max", None, UNIT, 0)
            return
        mean = bootstrap(known)
        yield Finding("sigma_max.mean", mean.value, UNIT, n, mean.interval)
        middle = np.sort(np.median(known[np.random.default_rng(0).integers(0, n, (1000, n))], axis=1))
        ends = (float(np.quantile(middle, 0.025)), float(np.quantile(middle, 0.975)))
        for name, q in QUANTILES.items():
            yield Finding(
                f"sigma_max.{name}",
                float(np.quantile(known, q)),
                UNIT,
                n,
                ends if q == 0.5 and n > 1 else None,
            )
        witness = {"witness": int(indices[int(np.nanargmax(np.where(np.isfinite(sigma), sigma, np.nan)))])}
        yield Finding("sigma_max.max", float(known.max()), UNIT, n, details=witness)
        yield Finding("sigma_max.residual.max", float(np.nan_to_num(found["residual"]).max()), "", n)
        steps = found["iterations"][found["iterations"] > 0]
        yield Finding("sigma_max.iterations.mean", float(steps.mean()) if len(steps) else 0.0, "steps", n)
        yield Finding("sigma_max.unconverged", float((~found["converged"]).sum()), "images", n)


@dataclass(frozen=True)
class Frobenius:
    """The squared Frobenius norm of J by random probes, and the Fisher trace kappa A |J|_F² (theory (4.2))."""

    map: Map = LATENT
    probes: int = 16
    limit: int | None = None

    version: ClassVar[int] = 2

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        if self.probes < 2:
            raise ValueError(f"probes must be at least 2, got {self.probes}")
        self.map.check(bench)
        indices = bench.indices[: self.limit]
        kappa = self.map.kappa(bench)
        told = {"probes": self.probes, "kappa_e": kappa}

        def compute(places: Tensor) -> dict[str, np.ndarray]:
            found = frobenius_norm(
                self.map.fn(bench),
                bench.load(places),
                probes=self.probes,
                batch_size=bench.plan.batch_size,
                generator=block_generator(bench.plan.seed, int(places[0])),
            )
            return {n: getattr(found, n).double().cpu().numpy() for n in ("squared", "standard_error")}

        def measure(advance: Advance) -> Result:
            key = _key("frobenius", self.version, bench, self.map, indices, {"probes": self.probes})
            found = bench.cells.by_blocks(key, len(indices), compute, advance)
            columns = {f"frobenius_{name}": values for name, values in found.items()}
            known = ~np.isnan(found["squared"])
            n, unit = int(known.sum()), "1/pixel L2²"
            if not n:
                return Result([Finding("frobenius_squared.mean", None, unit, 0)], columns)
            squared = found["squared"][known]
            spread = float(np.sqrt(np.square(found["standard_error"][known]).sum()) / n)
            findings = [
                Finding("frobenius_squared.mean", float(squared.mean()), unit, n),
                Finding("frobenius_squared.standard_error", spread, unit, n),
            ]
            if kappa is not None:
                with torch.no_grad():
                    dim = self.map.fn(bench)(bench.load(torch.arange(1))).shape[1]
                trace = float(fisher_trace(torch.from_numpy(squared), dim, kappa).mean())
                findings.append(Finding("fisher_trace.mean", trace, "nats/pixel L2²", n))
            return Result(findings, columns)

        yield _unit("frobenius", self.version, bench, self.map, indices, told, 2.0 * self.probes, measure)


@dataclass(frozen=True)
class Ball:
    """On the L2 ball around every image: lower (3.5) <= searched (4.5) <= certified (5.3), one unit per radius."""

    map: Map = LATENT  # the map to measure
    radii: tuple[float, ...] = (1e-4, 1e-3, 1e-2)  # in pixel L2
    starts: int = 2  # of the search
    steps: int = 20  # of the search
    limit: int | None = None  # use only this many images of the plan, from the first

    version: ClassVar[int] = 8

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit per radius."""
        self.map.check(bench)
        indices = bench.indices[: self.limit]
        for radius in self.radii:
            if not radius > 0:
                raise ValueError(f"radii must be positive, got {radius}")
            told = {"radius": radius, "norm": "l2", "starts": self.starts, "steps": self.steps}
            measure = _BallJob(self, bench, indices, told)
            cost = 8.0 * self.starts * self.steps + 1000
            unit = _unit("ball", self.version, bench, self.map, indices, told, cost, measure)
            yield unit


@dataclass(frozen=True)
class _BallJob:
    quantity: Ball
    bench: Bench
    indices: Tensor
    told: dict[str, Any]

    def __call__(self, advance: Advance) -> Result:
        of, bench, radius = self.quantity.map, self.bench, float(self.told["radius"])

        def compute(places: Tensor) -> dict[str, np.ndarray]:
            found = lipschitz(
                of.fn(bench),
                bench.load(places),
                radius=radius,
                normalised=of.is_direction,
                starts=self.quantity.starts,
                steps=self.quantity.steps,
                batch_size=bench.plan.batch_size,
                generator=block_generator(bench.plan.seed, int(places[0])),
                advance=advance,
            )
            why = found.certificate.reason
            arrays = {n: getattr(found, n).double().cpu().numpy() for n in ("lower", "searched", "certified")}
            return arrays | {"reason": np.array([why] * len(places))}

        key = _key("ball", self.quantity.version, bench, of, self.indices, self.told)
        found = bench.cells.by_blocks(key, len(self.indices), compute, size=BALL_BLOCK)
        reason = next((str(r) for r in found.pop("reason") if str(r)), "")
        findings = list(self._findings(found, reason))
        order = _order(found)
        notes = [f"radius {radius:g}: {order}"] + ([f"no certificate: {reason}"] if reason else [])
        return Result(findings, found, notes=notes)

    def _findings(self, found: dict[str, np.ndarray], reason: str) -> Iterator[Finding]:
        kept = ~(np.isnan(found["lower"]) | np.isnan(found["searched"]))
        n = int(kept.sum())
        for name in ("lower", "searched", "certified"):
            values = found[name][kept]
            middle = float(np.median(values)) if n else math.inf
            why = {"reason": reason} if reason and name == "certified" else {}
            yield Finding(
                f"ball.{name}.median", middle if math.isfinite(middle) else None, UNIT, n, details=why
            )
            largest = float(values.max()) if n else math.inf
            yield Finding(f"ball.{name}.max", largest if math.isfinite(largest) else None, UNIT, n)
        ratio = found["certified"][kept] / np.maximum(found["searched"][kept], 1e-300)
        middle = float(np.median(ratio)) if n else math.inf
        yield Finding("ball.gap.median", middle if math.isfinite(middle) else None, "certified/searched", n)
        share = float(np.isfinite(found["certified"][kept]).mean()) if n else 0.0
        yield Finding("ball.certified.share", share, "of images", n)


def _order(found: dict[str, np.ndarray]) -> str:
    """Lower <= searched <= certified in the median, or which image breaks the order."""
    lower, searched, certified = (found[name] for name in ("lower", "searched", "certified"))
    known = ~(np.isnan(lower) | np.isnan(searched))
    broken = known & ((lower > searched * 1.001) | (searched > certified * 1.001))
    if broken.any():
        i = int(broken.argmax())
        return (
            f"OUT OF ORDER, an estimate is wrong: image {i} has lower {lower[i]:.4g}, searched {searched[i]:.4g}, "
            f"certified {certified[i]:.4g}"
        )
    if not known.any():
        return "no image could be measured"
    low, middle, high = (float(np.median(x[known])) for x in (lower, searched, certified))
    end = f"{high:.4g}" if math.isfinite(high) else "none for half of the images"
    return f"median lower {low:.4g} <= searched {middle:.4g} <= certified {end}"
