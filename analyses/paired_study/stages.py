"""What is measured of one encoder: a function a stage, from encoder and images to records and per-image values.

============  ==================================================================================================
accuracy      linear probe and kNN on the pooled features: clean, under the shifts
corruptions   the probe under every corruption and severity; how often each image's prediction changes
compression   residual information, its excess over the floor, I(Y;Z), on two held-out augmented views
bounds        (3.1) to (3.5) over positive, corrupted and random pairs
jacobian      sigma_max of the mean direction's Jacobian, at the latent and at the backbone
============  ==================================================================================================
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.paired_study.images import StudyImages
from lipcomp import data as lipcomp_data
from lipcomp.bound import LowerBounds, lower_bounds
from lipcomp.checkpoints import Checkpoint
from lipcomp.data import DigitViews, ImageSet, PhotoViews, Views, batches
from lipcomp.distributions import divergence_floor, vmf_divergence
from lipcomp.jacobian import spectral_norm
from lipcomp.records import Record
from lipcomp.robustness.corruptions import SEVERITIES
from lipcomp.robustness.estimates import accuracy, bootstrap
from lipcomp.robustness.probes import LinearProbe, NearestNeighbours, fit_linear_probe

COMMON_KAPPA = (1024.0, 10.0)  # kappa_e, kappa_b at which all models are compared
JACOBIAN_IMAGES = 300
CORRUPTED_PAIR_IMAGES = 100  # times corruptions times severities: as many pairs
VIEW_DRAWS = 4
PAIRS = 1000


@dataclass
class Bench:
    """One encoder on the bench, and what its stages leave for each other."""

    checkpoint: Checkpoint
    images: StudyImages
    probe: LinearProbe | None = None
    per_image: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def encoder(self) -> Any:
        """The encoder, in evaluation mode."""
        return self.checkpoint.encoder

    def fitted_probe(self) -> LinearProbe:
        """The linear probe on the training images' pooled features, fitted once."""
        if self.probe is None:
            train = self.images.train
            self.probe = fit_linear_probe(self.features(train), train.labels, classes=len(train.classes))
        return self.probe

    @torch.no_grad()
    def features(self, images: ImageSet) -> Tensor:
        """Pooled features of a whole set."""
        return torch.cat([self.encoder.features(batch) for batch in batches(images, 500)])

    @torch.no_grad()
    def directions(self, images: Tensor, layer: str = "latent") -> Tensor:
        """Mean directions of images that are in memory."""
        return torch.cat([self.encoder(batch, layer) for batch in images.split(500)])


def measure_accuracy(bench: Bench) -> list[Record]:
    """Linear probe and kNN, on clean test images and under the natural shifts."""
    probe, images = bench.fitted_probe(), bench.images
    features = bench.features(images.test)
    predictions = probe(features).argmax(1)
    clean = accuracy(predictions, images.test.labels)
    k = min(20, len(images.train))
    neighbours = NearestNeighbours(bench.features(images.train), images.train.labels, k=k)
    knn = accuracy(neighbours(features).argmax(1), images.test.labels)
    settings = {"probe": "linear", "layer": "backbone", "penalty": probe.penalty}
    records = [
        Record("accuracy.clean", clean.value, n=clean.n, interval=clean.interval, settings=settings),
        Record("accuracy.knn", knn.value, n=knn.n, interval=knn.interval, settings={"probe": "knn", "k": k}),
    ]
    for quantity, shifted in images.shifts.items():
        found = accuracy(probe(bench.features(shifted)).argmax(1), shifted.labels)
        how = {**settings, "data": shifted.name}
        records.append(Record(quantity, found.value, n=found.n, interval=found.interval, settings=how))
    spread = features - features.mean(0)
    records.append(
        Record("effective_rank", effective_rank(spread), n=len(features), settings={"layer": "backbone"})
    )
    return records


def effective_rank(centred: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values (Roy and Vetterli 2007)."""
    values = torch.linalg.svdvals(centred.double())
    share = values / values.sum()
    return float(torch.exp(-(share * share.clamp_min(1e-300).log()).sum()))


@torch.no_grad()
def measure_corruptions(bench: Bench) -> list[Record]:
    """The clean probe under every corruption and severity; per image the share that changes its prediction."""
    probe, images = bench.fitted_probe(), bench.images
    count = images.corrupted.shape[2]
    labels = images.test.labels[:count]
    clean = probe(bench.encoder.features(images.test.batch(torch.arange(count)))).argmax(1)
    records, right, flipped = [], [], []
    for i, name in enumerate(images.corruptions):
        for j, severity in enumerate(SEVERITIES):
            batch = images.corrupted_batch(i, j)
            predicted = torch.cat(
                [probe(bench.encoder.features(part)).argmax(1) for part in batch.split(500)]
            )
            correct = (predicted == labels).double().numpy()
            right.append(correct)
            flipped.append((predicted != clean).double().numpy())
            settings = {"corruption": name, "severity": severity, "table": images.table, "probe": "linear"}
            records.append(Record("accuracy.corruption", correct.mean(), n=count, settings=settings))
    mean = bootstrap(np.stack(right))
    settings = {"table": images.table, "corruptions": len(images.corruptions), "severities": len(SEVERITIES)}
    records.append(
        Record("accuracy.corruption.mean", mean.value, n=count, interval=mean.interval, settings=settings)
    )
    bench.per_image["label"] = labels.numpy()
    bench.per_image["clean_correct"] = (clean == labels).numpy().astype(int)
    bench.per_image["flipped"] = np.mean(flipped, axis=0)
    return records


def study_views(checkpoint: Checkpoint) -> Views:
    """The augmentation that the encoder was trained with; by the channels of its images if it does not say."""
    told = dict(checkpoint.metadata.recipe.get("views") or {})
    kind = getattr(lipcomp_data, str(told.pop("kind", "")), None)
    if kind in (DigitViews, PhotoViews):
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in told.items()})
    return DigitViews() if checkpoint.encoder.image_shape[0] == 1 else PhotoViews()


def held_out_views(bench: Bench, draw: int) -> tuple[Tensor, Tensor]:
    """Two augmented views of the first test images, the same for every model."""
    pixels = bench.images.test.batch(torch.arange(min(PAIRS, len(bench.images.test))))
    return study_views(bench.checkpoint)(pixels, torch.Generator().manual_seed(1000 + draw))


@torch.no_grad()
def measure_compression(bench: Bench) -> list[Record]:
    """Residual information in closed form (2.2), its excess over the floor (2.4), and I(Y;Z) from below (2.3)."""
    own = (bench.checkpoint.concentration, bench.checkpoint.metadata.objective.get("kappa_b"))
    kappas = {"common": COMMON_KAPPA}
    if own[0] is not None and own[1] is not None:
        kappas["own"] = (float(own[0]), float(own[1]))
    residuals: dict[str, list[np.ndarray]] = {name: [] for name in kappas}
    scores, count = [], 0
    for draw in range(VIEW_DRAWS):
        mu_x, mu_y = (bench.directions(view).double() for view in held_out_views(bench, draw))
        count = len(mu_x)
        for name, (kappa_e, kappa_b) in kappas.items():
            residuals[name].append(
                vmf_divergence(
                    mu_x, torch.tensor(kappa_e).double(), mu_y, torch.tensor(kappa_b).double()
                ).numpy()
            )
        logits = COMMON_KAPPA[1] * mu_x @ mu_y.T
        scores.append((math.log(count) + logits.diag() - logits.logsumexp(1)).numpy())
    records = []
    for name, (kappa_e, kappa_b) in kappas.items():
        dim = mu_x.shape[1]
        floor = float(divergence_floor(dim, torch.tensor(kappa_e).double(), torch.tensor(kappa_b).double()))
        found = bootstrap(np.mean(residuals[name], axis=0)[None])
        settings = {"kappa": name, "kappa_e": kappa_e, "kappa_b": kappa_b, "dim": dim, "draws": VIEW_DRAWS}
        records += [
            Record(
                "compression.residual_information", found.value, "nats", found.n, found.interval, {}, settings
            ),
            Record(
                "compression.residual_excess",
                found.value - floor,
                "nats",
                found.n,
                (found.interval[0] - floor, found.interval[1] - floor) if found.interval else None,
                {},
                {**settings, "floor": floor},
            ),
        ]
    mutual = bootstrap(np.mean(scores, axis=0)[None])
    settings = {
        "kappa_b": COMMON_KAPPA[1],
        "candidates": count,
        "at_most": math.log(count),
        "z": "mean direction",
    }
    records.append(Record("compression.i_yz", mutual.value, "nats", mutual.n, mutual.interval, {}, settings))
    return records


@torch.no_grad()
def measure_bounds(bench: Bench) -> list[Record]:
    """The lower bounds (3.1) to (3.5) over positive, corrupted and random pairs, at the common and at its own kappa."""
    concentrations = {"common": COMMON_KAPPA[0]}
    if bench.checkpoint.concentration is not None:
        concentrations["own"] = bench.checkpoint.concentration
    records = []
    for source, (first, second) in pair_sources(bench).items():
        mu, other = bench.directions(first), bench.directions(second)
        distance = (first - second).flatten(1).double().norm(dim=1)
        for name, kappa in concentrations.items():
            found = lower_bounds(mu, other, distance, kappa)
            records += bound_records(found, {"pairs": source, "kappa": name, "kappa_e": kappa})
    return records


def pair_sources(bench: Bench) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs by where they come from: two views, an image and its corrupted copy, two test images."""
    images = bench.images
    pixels = images.test.batch(torch.arange(min(PAIRS, len(images.test))))
    views = held_out_views(bench, 0)
    count = min(CORRUPTED_PAIR_IMAGES, images.corrupted.shape[2])
    kinds = len(images.corruptions) * len(SEVERITIES)
    corrupted = torch.cat(
        [
            images.corrupted_batch(i, j)[:count]
            for i in range(len(images.corruptions))
            for j in range(len(SEVERITIES))
        ]
    )
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    return {
        "views": views,
        "corruptions": (pixels[:count].repeat(kinds, 1, 1, 1), corrupted),
        "random": (pixels, pixels[order]),
    }


def bound_records(found: LowerBounds, settings: dict[str, Any]) -> list[Record]:
    """Maximum and quantiles of every bound; (3.5) only once, since it has no concentration."""
    records = []
    excluded = {name: count for name, count in found.excluded.items() if count}
    for name, bound in found.bounds.items():
        if name == "direction" and settings["kappa"] != "common":
            continue
        how = {k: v for k, v in settings.items() if name != "direction" or k == "pairs"}
        if excluded:
            how["excluded"] = str(excluded)
        witness = (
            {}
            if bound.witness is None
            else {"distance": bound.witness.distance, "chord": bound.witness.chord}
        )
        values = {"max": bound.maximum, "median": bound.quantiles[0.5], "q99": bound.quantiles[0.99]}
        for statistic, value in values.items():
            told = {**how, **witness} if statistic == "max" else how
            number = value if math.isfinite(value) else None
            records.append(Record(f"bound.{name}.{statistic}", number, bound.unit, bound.n, None, {}, told))
    return records


def measure_jacobian(bench: Bench) -> list[Record]:
    """sigma_max at a sample of test images: the first ones, which are shuffled; at the latent and the backbone."""
    pixels = bench.images.test.batch(torch.arange(min(JACOBIAN_IMAGES, len(bench.images.test))))
    records = []
    for layer in ("latent", "backbone"):
        found = spectral_norm(partial(bench.encoder, layer=layer), pixels, vectors=False)
        sigma = found.sigma.double().numpy()
        kept = sigma[np.isfinite(sigma)]
        median = bootstrap(kept[None])
        settings = {
            "layer": layer,
            "rtol": found.rtol,
            "method": found.method,
            "unconverged": int((~found.converged).sum()),
            "excluded": int(len(sigma) - len(kept)),
        }
        unit = "1/pixel L2"
        records += [
            Record("sigma_max.mean", median.value, unit, len(kept), median.interval, {}, settings),
            Record("sigma_max.median", float(np.median(kept)), unit, len(kept), None, {}, settings),
            Record("sigma_max.max", float(kept.max()), unit, len(kept), None, {}, settings),
        ]
        bench.per_image["sigma" if layer == "latent" else f"sigma_{layer}"] = sigma
    return records


STAGES: dict[str, Callable[[Bench], list[Record]]] = {
    "accuracy": measure_accuracy,
    "corruptions": measure_corruptions,
    "compression": measure_compression,
    "bounds": measure_bounds,
    "jacobian": measure_jacobian,
}
