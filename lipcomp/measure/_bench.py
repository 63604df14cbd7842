"""An encoder ready to be measured: on its device, in its precision, with its images, probe and results so far.

Everything that several quantities need is computed once: features, the fitted probe, class scores of a condition.
What is kept between runs is keyed by content (:mod:`lipcomp._identity`), and guarded: the encoder's output on fixed
images must be what it was when the result was kept.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lipcomp._identity import digest, hash_module
from lipcomp.checkpoints._native import Checkpoint, label_of
from lipcomp.data._folders import FolderImages
from lipcomp.data._opening import brought_to, check_splits
from lipcomp.data._sets import ImageSet, file_of
from lipcomp.jacobian._batching import forward_batch_size
from lipcomp.jacobian._precision import full_precision
from lipcomp.measure._cells import Arrays, Cells
from lipcomp.measure._conditions import Condition, check_chosen, clean_condition, images_identity
from lipcomp.measure._plan import DTYPES, Plan, Source, fitting
from lipcomp.measure._unit import Advance, nothing
from lipcomp.robustness._features import evaluation_mode
from lipcomp.robustness._linear_evaluation import DIGITS, PAPER, LinearEvaluation, linear_evaluation
from lipcomp.robustness._probes import PATH_TOLERANCE, LinearProbe, NearestNeighbours, Probe, fit_linear_probe

GUARD_TOLERANCE = 1e-2  # relative; another function differs by more, another device or precision by less
PROBE_VERSION = 4
LOGITS = "logits"  # the layer of the probe's class scores


@dataclass
class Bench:
    """One encoder, ready to be measured.

    Parameters
    ----------
    source, checkpoint
        Where the encoder comes from, and what was loaded.
    plan
        Images, probe, device, precision, batch size, seed.
    device
        Where it runs.
    cells
        Where intermediate results are kept.
    made
        Where corrupted images are kept, for other encoders of the same images; None makes them each time.
    """

    source: Source
    checkpoint: Checkpoint
    plan: Plan
    device: torch.device
    cells: Cells = field(default_factory=Cells)
    made: Cells | None = None

    def __post_init__(self) -> None:
        self.encoder_hash = hash_module(self.checkpoint.encoder)
        self.dtype = DTYPES[self.plan.precision]
        self.checkpoint.encoder.to(self.device, self.dtype).requires_grad_(False)
        self.images, self.indices = self.plan.images.load(self.checkpoint)
        self._probes: dict[int, Probe] = {}
        self._probe_identities: dict[str | None, str] = {}
        _ = self.guard  # a network that cannot run is named before anything is measured

    # --- who is measured ---------------------------------------------------------------------------------------

    @property
    def encoder(self) -> Any:
        """The encoder, in evaluation mode."""
        return self.checkpoint.encoder

    @property
    def label(self) -> str:
        """What progress and tables call the encoder: with its folder where another one has the same name."""
        if self.source.name is not None or self.source.path is None:
            return self.source.name or self.checkpoint.label
        path = Path(self.source.path)
        others = {Path(s.path) for s in self.plan.sources if s.path is not None and s.name is None} - {path}
        shared = label_of(path) in map(label_of, others)
        return path.with_suffix("").as_posix() if shared else self.checkpoint.label

    @cached_property
    def identity(self) -> str:
        """A hash of the encoder's function and of the precision it runs in."""
        return digest("encoder", self.encoder_hash, self.plan.precision)

    @cached_property
    def guard(self) -> list[float]:
        """The encoder's output on two fixed images: eight numbers that another function would not give."""
        try:
            out = self._of_noise(self.encoder)
        except RuntimeError as error:
            if "dtype" not in str(error):
                raise
            raise ValueError(
                f"the network cannot run in {self.plan.precision}, some of it has a type of its own "
                f"({str(error).splitlines()[0]}); choose another precision=, or convert to the type of the input"
            ) from error
        return [float(f"{value:.4g}") for value in out[:, :4].flatten()]

    def _of_noise(self, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Outputs on two fixed images of noise, in float64."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(2, *self.checkpoint.image_shape, generator=generator, dtype=torch.float32)
        noise = noise.to(self.device, self.dtype)
        with evaluation_mode(self.encoder), full_precision():
            return fn(noise).double().cpu()

    def check_directions(self, layer: str) -> None:
        """Refuse embeddings whose squares leave the range of the precision: their directions would be of other lengths.

        Raises
        ------
        ValueError
            If an embedding is not zero and its direction has not the length 1.
        """
        lengths = self._of_noise(partial(self.encoder, layer=layer)).norm(dim=1)
        largest = self._of_noise(partial(self.encoder.embedding, layer=layer)).abs().amax(1)
        odd = (largest > 0) & largest.isfinite() & ((lengths - 1).abs() > 0.1)
        if odd.any():
            wider = 'use precision="float64", or ' if self.plan.precision != "float64" else ""
            raise ValueError(
                f"the embedding at layer {layer} has values near {float(largest[odd][0]):.0e}, whose squares "
                f"{self.plan.precision} does not hold, so that it has no direction; {wider}scale the network's output"
            )

    def agrees(self, guard: list[float] | None) -> bool:
        """Whether a stored guard is this encoder's; one that was not stored is believed."""
        if not guard or len(guard) != len(self.guard):
            return not guard
        here, there = np.array(self.guard), np.array(guard)
        return bool(np.abs(here - there).max() <= GUARD_TOLERANCE * max(np.abs(here).max(), 1e-12))

    def subject(self) -> dict[str, Any]:
        """What records say of the encoder."""
        named = {} if self.source.name is None else {"run": self.source.name}
        metadata = self.checkpoint.metadata
        told = {
            "architecture": self.encoder.architecture,
            "image_shape": list(self.checkpoint.image_shape),
            "epochs": metadata.epochs,
            "data_hash": metadata.data.get("hash"),
            "recipe_hash": recipe_hash(metadata.recipe),
            "perturb": metadata.recipe.get("perturb") or None,
            "encoder": self.encoder_hash,
            "guard": self.guard,
        }
        known = {name: value for name, value in told.items() if value is not None}
        return {**named, **self.checkpoint.subject(), **known}

    def data_settings(self, images: ImageSet | None = None, indices: Tensor | None = None) -> dict[str, Any]:
        """What records say of the images."""
        images = self.images if images is None else images
        indices = self.indices if indices is None else indices
        return {
            "data": images.name,
            "data_hash": images_identity(images, indices),
            "images": len(indices),
            "classes": list(images.classes) if len(images.classes) <= 20 else len(images.classes),
            **(
                {"preprocessing": str(how)}
                if (how := getattr(images, "preprocessing", None)) is not None
                else {}
            ),
            **({"left_out": list(notes)} if (notes := getattr(images, "notes", ())) else {}),
        }

    # --- images ------------------------------------------------------------------------------------------------

    @cached_property
    def clean(self) -> Condition:
        """The chosen images as they are."""
        return clean_condition(self.images, self.indices)

    @cached_property
    def train(self) -> Condition:
        """The training split of the same data: what probes are fitted on."""
        train = self.plan.images.open(self.checkpoint, "train")
        if notes := check_splits(train, self.images):
            train = replace(train, notes=(*train.notes, *notes))  # type: ignore[type-var,attr-defined]
        return clean_condition(train)

    @property
    def left_out(self) -> list[str]:
        """Notes on image files that were left out, including those of the probe."""
        sets = [self.images, *(c.images for c in (self.__dict__.get("train"),) if c is not None)]
        return [f"{images.name}: {note}" for images in sets for note in getattr(images, "notes", ())]

    @cached_property
    def preparation(self) -> dict[str, Any]:
        """How the plan's images are resized and converted, as options of :func:`lipcomp.load_set`."""
        options = fitting(self.plan.images.options, self.checkpoint)
        return {
            "preprocessing": options.get("preprocessing"),
            "convert_channels": bool(options.get("convert_channels")),
        }

    def prepared(self, images: ImageSet, *, cropped: bool = False) -> ImageSet:
        """Images of another set, resized and converted as the plan's are.

        ``cropped``: a published set of pictures that were resized and cropped already; those of the encoder's size stay
        as they are.
        """
        how, convert = self.preparation["preprocessing"], self.preparation["convert_channels"]
        if how is not None and cropped:
            how = replace(how, keep=True)
        if how is None and not convert:
            return images
        if isinstance(images, FolderImages):
            how = how or images.preprocessing
            return replace(images, preprocessing=how, convert_channels=convert, _seen={})
        return brought_to(images, self.checkpoint.image_shape, how, convert)

    def load(self, places: Int64[Tensor, " batch"]) -> Float[Tensor, "batch channels height width"]:
        """Chosen images by their place, on the device."""
        return self.clean.batch(places.cpu(), self.device, self.dtype)

    @cached_property
    def batch_size(self) -> int:
        """The batch size of passes without derivatives."""
        return self.plan.batch_size or forward_batch_size(self.encoder, self.load(torch.arange(1)))

    def batches(self, condition: Condition, places: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(places, images) of some places of a condition, batch by batch; made images come from the cells."""
        for part in places.split(self.batch_size):
            if self.made is None or condition.transform is None:
                yield part, condition.batch(part, self.device, self.dtype)
                continue

            def make(part: Tensor = part) -> Arrays:
                made = condition.batch(part, torch.device("cpu"), torch.float32)
                return {"bytes": (made * 255).round().to(torch.uint8).numpy()}

            stored = self.made.get(digest("made", condition.identity, part), make)["bytes"]
            yield part, torch.from_numpy(stored).to(self.device, torch.float32).div_(255).to(self.dtype)

    def check_unchanged(self) -> None:
        """Raise an error if images changed while they were measured.

        Raises
        ------
        ValueError
            If a file of the set is not what its identity says.
        """
        check_chosen(self.images, self.indices)

    # --- maps --------------------------------------------------------------------------------------------------

    def map(self, layer: str, *, normalised: bool = True) -> Callable[[Tensor], Tensor]:
        """Pixels to the mean direction at a layer, to its embedding, or to the probe's logits (``layer="logits"``)."""
        if layer == LOGITS:
            return self.classifier()
        return partial(self.encoder if normalised else self.encoder.embedding, layer=layer)

    def map_identity(self, layer: str, *, normalised: bool = True) -> tuple[Any, ...]:
        """What identifies that map."""
        return (self.identity, layer, normalised, *((self.probe_identity(),) if layer == LOGITS else ()))

    # --- features, probes, class scores ------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, condition: Condition, advance: Advance = nothing) -> Float[Tensor, "n features"]:
        """Pooled features of every image of a condition, in float32 or float64 on the CPU."""
        kind = torch.promote_types(self.dtype, torch.float32)

        def compute(places: Tensor) -> Arrays:
            with evaluation_mode(self.encoder), full_precision():
                rows = [self.encoder.features(x).to("cpu", kind) for _, x in self.batches(condition, places)]
            return {"features": torch.cat(rows).numpy()}

        key = ("features", self.identity, condition.identity)
        held = self.cells.by_blocks(key, len(condition), compute, advance)["features"]
        return self._finite("features", torch.from_numpy(held), condition)

    def _finite(self, what: str, rows: Tensor, condition: Condition) -> Tensor:
        """Rows of all images of a condition; NaN is no answer, and would count as one of the first class."""
        odd = (~rows.isfinite().all(1)).nonzero().squeeze(1)
        if len(odd):
            changed = {k: v for k, v in condition.settings.items() if k in ("corruption", "severity")}
            told = "".join(f", {k} {v}" for k, v in changed.items())
            first = file_of(condition.images, int(condition.indices[odd[0]]))
            raise ValueError(
                f"{what} must be finite, but are NaN or infinite on {len(odd)} of {len(rows)} images of "
                f"{condition.images.name}{told} (the first is {first}); is the encoder's checkpoint intact, and "
                f"precision={self.plan.precision!r} wide enough for it?"
            )
        return rows

    def probe_identity(self, kind: str | None = None) -> str:
        """A hash of what the probe depends on: settings, encoder, training images."""
        if kind not in self._probe_identities:
            settings = self.plan.probe.settings() if kind is None else {"probe": kind}
            self._probe_identities[kind] = digest(
                "probe", PROBE_VERSION, settings, self.identity, self.train.identity
            )
        return self._probe_identities[kind]

    def probe_reads(self, layer: str = LOGITS) -> tuple[tuple[str, int], ...]:
        """``Unit.reads`` of a probe's fit; none where a layer needs no probe."""
        epochs = self._evaluation.epochs if self.plan.probe.kind == "augmented" else 1
        return ((self.probe_identity(), epochs * len(self.train)),) if layer == LOGITS else ()

    @property
    def _evaluation(self) -> LinearEvaluation:
        return DIGITS if self.checkpoint.image_shape[0] == 1 else PAPER

    def probe(self, refit: int = 0, advance: Advance = nothing) -> Probe:
        """The fitted probe; ``refit`` r > 0 is the linear probe on the r-th bootstrap sample of the training images."""
        if refit not in self._probes:
            # of a vote in bfloat16 little would be left
            kind = torch.promote_types(self.dtype, torch.float32)
            self._probes[refit] = self._fit(refit, advance).to(self.device, kind)
        return self._probes[refit]

    def _fit(self, refit: int, advance: Advance) -> Probe:
        plan, images = self.plan.probe, self.train.images
        labels, classes = self.train.labels(), len(images.classes)
        if plan.kind == "augmented":
            how = self._evaluation
            return linear_evaluation(self.encoder, self.train.chosen, how, seed=plan.seed, advance=advance)
        features = self.features(self.train, advance)
        if plan.kind == "knn":
            return NearestNeighbours(
                features,
                labels,
                k=min(plan.neighbours, len(labels)),
                temperature=plan.temperature,
                classes=classes,
            )

        def fit() -> Arrays:
            chosen: dict[str, Any] = {}
            rows = torch.arange(len(labels))
            if refit:  # the penalty is that of the first fit: what is varied is the sample alone
                generator = torch.Generator().manual_seed(plan.seed + refit)
                rows = torch.randint(len(labels), (len(labels),), generator=generator)
                first = self.probe()
                assert isinstance(first, LinearProbe)
                chosen = {"penalties": (first.penalty,), "tolerance": PATH_TOLERANCE, "start": first}
            found = fit_linear_probe(
                features[rows],
                labels[rows],
                classes=classes,
                generator=torch.Generator().manual_seed(plan.seed),
                **chosen,
            )
            weight, bias = found.weight.numpy(), found.bias.numpy()
            return {"weight": weight, "bias": bias, "penalty": np.array(found.penalty)}

        held = self.cells.get(digest("fitted", self.probe_identity(), refit), fit)
        weight, bias = torch.from_numpy(held["weight"]), torch.from_numpy(held["bias"])
        return LinearProbe(weight, bias, float(held["penalty"]))

    def classifier(self) -> nn.Module:
        """Pixels to class scores: the probe on the encoder's features."""
        return self.probe().on(self.encoder).eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, condition: Condition, advance: Advance = nothing) -> Float[Tensor, "n classes"]:
        """Class scores of every image of a condition, float32 on the CPU."""
        return self._scores(condition, 0, advance)

    @torch.no_grad()
    def refit_logits(self, condition: Condition, refit: int) -> Float[Tensor, "n classes"]:
        """The same by a probe that was fitted again."""
        return self._scores(condition, refit, nothing)

    def _scores(self, condition: Condition, refit: int, advance: Advance) -> Tensor:
        """All probes read the same pass: the scores of each are kept."""
        refits = self.plan.probe.refits

        def compute(places: Tensor) -> Arrays:
            probes = [self.probe(r) for r in range(refits + 1)]
            rows: list[list[Tensor]] = [[] for _ in probes]
            with evaluation_mode(self.encoder), full_precision():
                for _, batch in self.batches(condition, places):
                    features = self.encoder.features(batch)
                    for scores, probe in zip(rows, probes, strict=True):
                        scores.append(probe(features).float().cpu())
            return {f"logits{r}": torch.cat(scores).numpy() for r, scores in enumerate(rows)}

        key = ("scores", self.probe_identity(), refits, condition.identity)
        held = self.cells.by_blocks(key, len(condition), compute, advance)[f"logits{refit}"]
        return self._finite("class scores", torch.from_numpy(held), condition)


def recipe_hash(recipe: Mapping[str, Any]) -> str | None:
    """A hash of a recipe less its objective: two runs that are a pair agree in it (theory (7.3))."""
    if not recipe:
        return None
    varying = ("name", "pair", "objective", "objective_code", "perturb")
    kept = {k: v for k, v in recipe.items() if k not in varying}
    if isinstance(encoder := kept.get("encoder"), Mapping):  # C-BYOL's decoder is a part of its objective
        kept["encoder"] = {k: v for k, v in encoder.items() if k != "decoder"}
    return digest("recipe", kept)
