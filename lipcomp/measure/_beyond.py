"""Beyond corruptions: out-of-distribution detection, shape bias, watermarks, streams, attacks on the embedding.

Each quantity opens and checks its data when its units are asked for, and reads features or class scores of the bench.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lipcomp._identity import digest
from lipcomp._identity_files import hash_files
from lipcomp.data import load_set
from lipcomp.data._opening import shared_images
from lipcomp.data._preprocessing import Preprocessing
from lipcomp.measure._accuracy import attack_settings, attacked, check_fit, probe_unit, right_of
from lipcomp.measure._bench import Bench
from lipcomp.measure._conditions import Condition, clean_condition
from lipcomp.measure._unit import Advance, Finding, Result, Unit
from lipcomp.robustness import _ood as ood, _texture as texture, _watermark as watermark
from lipcomp.robustness._attacks import Rounding
from lipcomp.robustness._ccc import accuracy_over_time, open_ccc
from lipcomp.robustness._compare import published_rows
from lipcomp.robustness._embedding_attack import embedding_attack, found_again
from lipcomp.robustness._estimates import bootstrap, per_class_accuracy, proportion
from lipcomp.robustness._robustbench import SHAPES, run_benchmark
from lipcomp.robustness._shifted import check_cifar_order, check_imagenet_order

EMBEDDING_VERSION = 5  # images at a corner start again, also near the best
OOD_VERSION = 2  # distances of features that all point nearly one way


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy of each class, and of the worst."""

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""

        def measure(advance: Advance) -> Result:
            right = right_of(bench, bench.clean, advance)
            found = per_class_accuracy(right, bench.clean.labels(), bench.images.classes)
            findings = [Finding.of("accuracy.class", e, **{"class": name}) for name, e in found.items()]
            worst = min(found, key=lambda name: found[name].value)
            told = {"class": worst}
            return Result([*findings, Finding.of("accuracy.worst_class", found[worst], **told)])

        yield probe_unit(bench, "accuracy.class", [bench.clean], measure, "by class", bench.data_settings())


@dataclass(frozen=True)
class OutOfDistribution:
    """AUROC and FPR95 of separating the images from another set, by each score of :mod:`lipcomp.robustness._ood`."""

    data: str  # the other set, as :func:`lipcomp.load_set` takes it
    root: str | None = None  # the same
    near: bool = False  # whether its classes are like the training classes, for records
    neighbours: int = ood.NEIGHBOURS  # k of the kNN score

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        shape = bench.checkpoint.image_shape
        # smaller pictures are enlarged, as OpenOOD does; a resize by option would change the images measured as well
        how = replace(bench.preparation["preprocessing"] or Preprocessing.default(*shape[1:]), enlarge=True)
        prepared = bench.preparation | {"preprocessing": how}
        images = load_set(self.data, "test", root=self.root, image_shape=shape, **prepared)
        check_fit(f"out-of-distribution data {self.data!r}", images.image_shape, shape)
        for inside in (bench.images, bench.train.images):
            shared, of = shared_images(inside, images)
            if 2 * shared >= of:
                raise ValueError(
                    f"out-of-distribution data {self.data!r} shares images with {inside.name}, so there is nothing to "
                    f"tell apart; give another set"
                )
        other = clean_condition(images, bench.plan.images.choose(len(images)))
        told = {
            "outside": images.name,
            "nearness": "near" if self.near else "far",
            "layer": "backbone",
            **bench.data_settings(),
        }

        def measure(advance: Advance) -> Result:
            train, labels = bench.features(bench.train), bench.train.labels()
            needs = []
            for condition in (bench.clean, other):
                logits, features = bench.logits(condition, advance), bench.features(condition)
                needs.append({"logits": logits, "features": features, "train": train, "labels": labels})
            findings, notes = [], []
            for score in ood.SCORES:
                settings: dict[str, Any] = {"score": score}
                try:
                    inside, outside = (ood.scores(score, k=self.neighbours, **need) for need in needs)
                except ValueError as error:
                    # features without spread have no covariance; other scores do without
                    notes.append(f"no {score}: {error}")
                    findings += [
                        Finding(name, None, settings=settings) for name in ("ood.auroc", "ood.fpr95")
                    ]
                    continue
                if score == "knn":
                    settings["k"] = min(self.neighbours, len(train))
                findings.append(Finding.of("ood.auroc", ood.auroc(inside, outside), **settings))
                findings.append(Finding.of("ood.fpr95", ood.fpr95(inside, outside), **settings))
            return Result(findings, notes=notes)

        yield probe_unit(
            bench,
            "ood",
            [bench.clean, other],
            measure,
            f"OOD {images.name}",
            told,
            (self.neighbours, self.near, OOD_VERSION),
        )


@dataclass(frozen=True)
class ShapeBias:
    """Shape against texture on cue-conflict images (Geirhos et al. 2019)."""

    # the published images for a probe of ImageNet's 1000 classes, else images of the probe's classes in that
    # layout; or "fourier": made from the measured images by exchanging Fourier amplitudes
    folder: str

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        names = bench.images.classes
        if self.folder == "fourier":
            places = texture.conflicting(bench.clean.labels(), bench.plan.images.seed)
            partner = dict(zip(bench.indices.tolist(), bench.indices[places].tolist(), strict=True))
            settings = {**bench.clean.settings, "conflict": "fourier", "partners": digest("partners", places)}

            def exchanged(images: Tensor, ids: Tensor) -> Tensor:
                others = bench.images.batch(torch.tensor([partner[k] for k in ids.tolist()]))
                return texture.recombine(images, others.to(images))

            condition = Condition(bench.images, bench.indices, settings, exchanged)
            textures = bench.images.labels[bench.indices[places]]
            told = {**bench.data_settings(), "conflict": "fourier"}
            decide = lambda logits: logits.argmax(1).numpy()  # noqa: E731
        else:
            own = None if len(names) == 1000 else names
            check_imagenet_order("cue conflict", names)
            conflict = texture.load_cue_conflict(
                self.folder, image_shape=bench.checkpoint.image_shape, classes=own
            )
            condition, textures = clean_condition(bench.prepared(conflict.images)), conflict.textures
            told = bench.data_settings(condition.images, condition.indices)
            decide = conflict.decisions

        def measure(advance: Advance) -> Result:
            cues = decide(bench.logits(condition, advance)), condition.labels(), textures
            decided = Finding.of("shape_bias.decided", texture.decided(*cues))
            if not decided.value:  # as of an encoder that answers one class
                note = "no shape bias: no image was answered by its shape or its texture"
                return Result([Finding("shape_bias", None, n=0), decided], notes=[note])
            return Result([Finding.of("shape_bias", texture.shape_bias(*cues)), decided])

        yield probe_unit(bench, "shape_bias", [condition], measure, "cue conflict", told, textures)


@dataclass(frozen=True)
class WatermarkGap:
    """ImageNet-W: accuracy with the watermark less accuracy without, over all images and over cartons."""

    font: str

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        channels, height, width = bench.checkpoint.image_shape
        if channels != 3 or height != width or len(bench.images.classes) != 1000:
            raise ValueError(
                f"the watermark is for square colour images of ImageNet's 1000 classes, got images of shape "
                f"{bench.checkpoint.image_shape} and {len(bench.images.classes)} classes"
            )
        check_imagenet_order("ImageNet-W", bench.images.classes)
        mark = watermark.Watermark(height, self.font)
        told = {"watermark": hash_files([self.font])[0]}
        settings = {**bench.clean.settings, **told}
        marked = Condition(bench.images, bench.indices, settings, lambda images, indices: mark(images))

        def measure(advance: Advance) -> Result:
            clean, with_it = right_of(bench, bench.clean, advance), right_of(bench, marked, advance)
            findings = [
                Finding.of("accuracy.watermark", proportion(with_it)),
                Finding.of("watermark_gap", watermark.gap(clean, with_it)),
            ]
            labels = bench.clean.labels()
            if (labels == watermark.CARTON).any():
                findings.append(Finding.of("carton_gap", watermark.carton_gap(clean, with_it, labels)))
            return Result(findings)

        told_of = bench.data_settings() | told
        yield probe_unit(bench, "watermark", [bench.clean, marked], measure, "ImageNet-W", told_of, told)


@dataclass(frozen=True)
class StreamAccuracy:
    """CCC: accuracy over a stream of changing corruptions, and of each block of it in order."""

    folder: str
    limit: int | None = None
    block: int = 50_000

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        stream = open_ccc(self.folder, limit=self.limit, image_shape=bench.checkpoint.image_shape)
        if len(bench.images.classes) != len(stream.classes):
            raise ValueError(
                f"CCC is for a probe of {len(stream.classes)} classes, {bench.images.name} has "
                f"{len(bench.images.classes)}"
            )
        check_imagenet_order("CCC", bench.images.classes)
        stream.batch(torch.tensor([0]))  # fail before the long work
        condition = clean_condition(stream)

        def measure(advance: Advance) -> Result:
            right = right_of(bench, condition, advance)
            findings = [Finding.of("accuracy.stream", proportion(right))]
            blocks = accuracy_over_time(right, self.block)
            findings += [Finding.of("accuracy.stream.block", e, block=k) for k, e in enumerate(blocks)]
            return Result(findings)

        told = bench.data_settings(condition.images, condition.indices) | {"block_images": self.block}
        yield probe_unit(bench, "accuracy.stream", [condition], measure, stream.name, told, self.block)


@dataclass(frozen=True)
class EmbeddingRobustness:
    """How far an attack without labels moves the mean direction, and what the probe says of the attacked images."""

    norm: str  # of the ball: "linf" or "l2"
    radius: float  # of the ball, in pixels
    layer: str = "latent"  # whose mean direction
    limit: int | None = None  # use only this many images of the plan, from the first

    block: ClassVar[int] = 64

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        condition = bench.clean.first(self.limit or len(bench.clean))
        told = attack_settings("embedding", self.norm, self.radius, bench.plan.seed) | {"layer": self.layer}

        def compute(places: Tensor) -> dict[str, np.ndarray]:
            batch = condition.batch(places, bench.device, attacked(bench.dtype))
            layer, classifier = bench.map(self.layer), Rounding(bench.classifier(), bench.dtype)
            encode = lambda x: layer(x.to(bench.dtype)).to(x.dtype)  # noqa: E731
            found = embedding_attack(encode, batch, norm=self.norm, radius=self.radius, seed=bench.plan.seed)
            with torch.no_grad():
                right = classifier(found.images).argmax(1).cpu() == condition.labels()[places]
                directions = [encode(x).float().cpu() for x in (batch, found.images)]
            return {
                "chord": found.chord,
                "blind": found.blind,
                "right": right.numpy(),
                "clean": directions[0].numpy(),
                "moved": directions[1].numpy(),
            }

        def measure(advance: Advance) -> Result:
            key = ("embedding attack", EMBEDDING_VERSION, bench.probe_identity(), condition.identity, told)
            held = bench.cells.by_blocks(key, len(condition), compute, advance, size=self.block)
            findings = [
                Finding.of("attack.chord", bootstrap(held["chord"], limits=(0.0, 2.0))),
                Finding.of("attack.found_again", found_again(held["clean"], held["moved"])),
                Finding.of("accuracy.robust", proportion(held["right"])),
            ]
            blind = held["blind"].mean()
            note = f"no gradient on {blind:.1%} of the images, which were searched at random"
            return Result(findings, notes=[note] if blind else [])

        told_of = bench.data_settings(condition.images, condition.indices) | told
        label = f"embedding {self.norm} {self.radius:g}"
        content = (told, EMBEDDING_VERSION)
        yield probe_unit(bench, "embedding", [condition], measure, label, told_of, content, cost=300.0)


@dataclass(frozen=True)
class LeaderboardRow:
    """RobustBench's own evaluation of the probe on the encoder, beside its published rows."""

    root: str  # RobustBench's data folder: the clean set and CIFAR-10-C (ImageNet-C ...) in their published layouts
    dataset: str | None = None  # "cifar10", "cifar100" or "imagenet"; by the number of classes if not given
    # use only this many images per condition, from the first, as its ``n_examples`` does
    images: int = 10_000

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        known = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}
        dataset = self.dataset or known.get(len(bench.images.classes), "none")
        if dataset not in SHAPES or SHAPES[dataset] != bench.checkpoint.image_shape:
            raise ValueError(
                f"RobustBench's corruptions are for {', '.join(f'{d} {s}' for d, s in SHAPES.items())}; the encoder "
                f"takes {bench.checkpoint.image_shape} and its probe has {len(bench.images.classes)} classes"
            )
        if dataset == "imagenet":
            check_imagenet_order("RobustBench", bench.images.classes)
        if dataset == "cifar10":
            check_cifar_order("RobustBench", bench.images.classes)
        places = sorted(path for path in Path(self.root).rglob("*") if path.is_file())
        content = digest(hash_files(places))

        def measure(advance: Advance) -> Result:
            found = run_benchmark(
                bench.classifier(),
                dataset,
                data_root=self.root,
                n_examples=self.images,
                batch_size=bench.batch_size,
                device=bench.device,
            )
            advance(1)
            rank = int((published_rows(dataset).shifted > found.accuracy).sum()) + 1
            findings = [
                Finding("robustbench.clean", found.clean, n=self.images),
                Finding("robustbench.corruptions", found.accuracy, n=self.images, details={"rank": rank}),
            ]
            if found.mce is not None:
                findings.append(Finding("robustbench.mce", found.mce, n=self.images))
            return Result(findings, notes=[f"rank {rank} among the published rows of {dataset}"])

        told = {"dataset": dataset, "data_hash": content, "images": self.images, "protocol": "robustbench"}
        label, cost = f"RobustBench {dataset}", 76.0 * self.images  # of 15 corruptions at 5 severities
        unit = probe_unit(bench, "robustbench", [], measure, label, told, (content, told), cost)
        yield replace(unit, count=1)
