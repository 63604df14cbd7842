"""A training run is defined by a frozen :class:`Recipe`; its compressed twin; changing a field by name."""

import ast
import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from lipcomp._arguments import checked, taken
from lipcomp._identity import digest
from lipcomp._identity_code import is_installed, reached
from lipcomp._messages import nearest
from lipcomp.data._views import Views
from lipcomp.encoders import EncoderSpec
from lipcomp.encoders._backbones import BACKBONES
from lipcomp.objectives import BYOL, CBYOL, CSimCLR, Objective, SimCLR
from lipcomp.objectives._supervised import CosineClassifier, SupervisedCEB

Scaling = Literal["linear", "sqrt", "none"]

Optimizer = Literal["adamw", "lars", "sgd"]
TargetStart = Literal["copy", "independent"]
Initialisation = Literal["torch", "paper"]
Probe = Literal["backbone", "projection"]


@checked
@dataclass(frozen=True)
class Recipe:
    """Everything that defines a training run, except the seed.

    Parameters
    ----------
    name
        Name of the recipe, that of the function that returns it.
    objective
        The loss.
    encoder
        The network.
    views
        The augmentation.
    data
        Training set: a name that ``lipcomp.data.load_set`` knows, or a folder.
    images
        Train on this many random images (chosen with seed 0); all if not given.
    epochs
        Length of training in epochs.
    batch_size
        Images per step (two views of each). Batches run on across epochs, so one may hold the end of an epoch and the
        start of the next.
    learning_rate
        Base learning rate; ``scaling`` turns it into the peak rate.
    scaling
        Peak learning rate: "linear" is rate x batch / 256, "sqrt" is rate x sqrt(batch), "none" is the rate itself.
    warmup_epochs
        Epochs of linear warm-up from 0, followed by a cosine decay to 0.
    optimizer
        "adamw", "lars" or "sgd" (both with momentum 0.9; SGD uses Nesterov momentum, as the official code does).
    weight_decay
        Weight decay of kernels and weight matrices; coupled in LARS and SGD, decoupled in AdamW.
    predictor_rate
        BYOL: factor on the learning rate of the predictor.
    target_decay
        BYOL: initial decay of the moving average; it rises to 1 along a cosine.
    target_start
        BYOL: start the target network as a "copy" of the online network, or from "independent" random weights.
    initialisation
        Initial weights: "torch" for PyTorch's defaults, "paper" for the official code's truncated normal.
    probe
        Input of the linear head that is trained alongside without affecting the encoder: "backbone", "projection" or
        None for no head.
    perturb
        Relative size of a random perturbation of the initial weights, to measure how rounding errors grow; 0 for none.
    pair
        For a compressed recipe or a control: name of the uncompressed member of the pair.
    """

    name: str
    objective: Objective
    encoder: EncoderSpec
    views: Views
    data: str
    epochs: float
    batch_size: int
    learning_rate: float
    warmup_epochs: float
    optimizer: Optimizer = "adamw"
    scaling: Scaling = "linear"
    weight_decay: float = 1e-2
    predictor_rate: float = 1.0
    target_decay: float = 0.99
    target_start: TargetStart = "copy"
    initialisation: Initialisation = "torch"
    probe: Probe | None = "backbone"
    perturb: float = 0.0
    images: int | None = None
    pair: str | None = None

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or any(letter in self.name for letter in "/\\\0"):
            raise ValueError(f"name must be a name for a folder, without slashes; got {self.name!r}")
        if not 0 < self.epochs <= 1e6:
            raise ValueError(f"epochs must be positive and at most 1e6, got {self.epochs}")
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, since a contrastive loss and batch norm need other images; "
                f"got {self.batch_size}"
            )
        for name in ("learning_rate", "predictor_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("warmup_epochs", "weight_decay", "perturb"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if self.images is not None and self.images < self.batch_size:
            raise ValueError(f"images must be at least batch_size {self.batch_size}, got {self.images}")
        if not 0 <= self.target_decay < 1:
            raise ValueError(f"target_decay must be in [0, 1), got {self.target_decay}")
        for name in ("objective", "views"):
            part = type(getattr(self, name))
            if not dataclasses.is_dataclass(part):
                raise ValueError(
                    f"{name} must be a dataclass, since its fields are kept with the encoder; write "
                    f"@dataclass(frozen=True) before {part.__name__}"
                )
        if self.objective.family == "byol" and self.encoder.predictor is None:
            raise ValueError(
                "BYOL regresses the target through a predictor; give the encoder predictor=hidden"
            )
        if self.probe == "projection" and self.encoder.projector is None:
            raise ValueError('probe="projection" needs an encoder with a projector; take probe="backbone"')

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary, for checkpoints and records."""
        fields = asdict(self)
        fields["objective"] = self.objective.to_dict()
        fields["views"] = {"kind": type(self.views).__name__, **asdict(self.views)}  # type: ignore[call-overload]
        return fields | self._own_code()

    def _own_code(self) -> dict[str, str]:
        """A hash of the code of each part that is your own: one that is edited is another part of the same name."""
        kinds = {"objective": type(self.objective), "views": type(self.views)}
        own: dict[str, Any] = {
            name: kind for name, kind in kinds.items() if not is_installed(kind.__module__)
        }
        if ":" in self.encoder.backbone:
            own["backbone"] = BACKBONES[self.encoder.backbone]
        return {f"{name}_code": _first_told(part) for name, part in own.items()}


_TOLD: dict[str, tuple[str, Any]] = {}


def _first_told(part: Any) -> str:
    """A hash of code as it was when this process first asked: what fills while it runs, a cache, is no edit."""
    if not isinstance(part, types.FunctionType | type):
        return digest(part)
    code, constants = reached(part)
    plain = bool | int | float | str | bytes | tuple
    key = digest(
        code, [(name, value if isinstance(value, plain) else id(value)) for name, value in constants]
    )
    return _TOLD.setdefault(key, (digest(part), constants))[0]  # held, so that an id stays its own


# Pairs.


def compress(recipe: Recipe, name: str, *, beta: float = 1.0, kappa_e: float | None = None) -> Recipe:
    """The compressed twin of a SimCLR, BYOL or supervised recipe: the objective replaced, nothing else.

    C-SimCLR has kappa_b = 1/temperature (so that at beta = 0 and without noise it is SimCLR, theory (2.5)); C-BYOL
    keeps BYOL's weight and gains the linear decoder behind its latent, the one layer its objective needs.
    """
    objective, encoder = recipe.objective, recipe.encoder
    if isinstance(objective, SimCLR):
        twin: Objective = CSimCLR(
            kappa_e=kappa_e or 1024.0,
            kappa_b=1 / objective.temperature,
            beta=beta,
            bidirectional=objective.bidirectional,
            double_batch=objective.double_batch,
        )
    elif isinstance(objective, CosineClassifier):
        twin = SupervisedCEB(kappa_e=kappa_e or 1024.0, kappa_b=1 / objective.temperature, beta=beta)
    elif isinstance(objective, BYOL):
        twin = CBYOL(kappa_e=kappa_e or 16384.0, beta=beta, weight=objective.weight)
        encoder = replace(encoder, decoder=True)
    else:
        raise ValueError(  # noqa: TRY004
            f"{recipe.name} minimises {type(objective).__name__}, which has no compressed twin; give a "
            f"SimCLR, BYOL or supervised recipe"
        )
    return replace(recipe, name=name, objective=twin, encoder=encoder, pair=recipe.name)


def pair(recipe: Recipe) -> tuple[Recipe, Recipe]:
    """The matched pair that a recipe belongs to: (uncompressed, compressed), alike in all but the objective.

    The recipe given is one of the two, unchanged; the other is made from it, so whatever was set on the one (length,
    data, rates) holds for both. C-BYOL's decoder is part of its objective.
    """
    objective = recipe.objective
    if isinstance(objective, CSimCLR):
        plain: Objective = SimCLR(1 / objective.kappa_b, objective.bidirectional, objective.double_batch)
    elif isinstance(objective, SupervisedCEB):
        plain = CosineClassifier(1 / objective.kappa_b)
    elif isinstance(objective, CBYOL):
        plain = BYOL(objective.weight)
    else:
        return recipe, compress(recipe, f"c_{recipe.name}")
    encoder = replace(recipe.encoder, decoder=False)
    name = recipe.pair or f"{recipe.name}-uncompressed"
    return replace(recipe, name=name, objective=plain, encoder=encoder, pair=None), recipe


def with_beta(recipe: Recipe, beta: float) -> Recipe:
    """The same recipe at another beta."""
    objective = replace(recipe.objective, beta=beta)  # type: ignore[type-var]
    return replace(recipe, name=f"{recipe.name}-beta{beta:g}", objective=objective)


# Changing a field by name, as a command line does.


def change(recipe: Recipe, changes: Mapping[str, str]) -> Recipe:
    """The recipe with fields replaced, all at once: ``change(recipe, {"objective.beta": "0.3", "epochs": "20"})``.

    Raises
    ------
    ValueError
        If there is no such field (the nearest name is given), or its value is not of the field's kind.
    """
    try:
        return _replaced(recipe, [(path, path.split("."), text) for path, text in changes.items()])
    except (TypeError, OverflowError) as error:  # of an objective or views of your own; a number beyond 1e308
        given = ", ".join(f"{path}={text}" for path, text in changes.items())
        raise ValueError(f"{given}: a value is of another kind than its field ({error})") from error


def _kind(part: Any, name: str) -> Any:
    """A field's annotation; anything where one of your own cannot be read."""
    try:
        return typing.get_type_hints(type(part)).get(name, Any)
    except NameError:
        return Any


def _read(text: str) -> Any:
    """What a text says in Python's words, lists as tuples; the text itself where that is nothing."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value


def _replaced(part: Any, changes: Sequence[tuple[str, list[str], str]]) -> Any:
    """A dataclass with fields replaced; what they demand of each other is checked once all of them are."""
    by_field: dict[str, list[tuple[str, list[str], str]]] = {}
    for path, names, text in changes:
        by_field.setdefault(names[0], []).append((path, names[1:], text))
    return replace(part, **{name: _value(part, name, inner) for name, inner in by_field.items()})


def _value(part: Any, name: str, changes: Sequence[tuple[str, list[str], str]]) -> Any:
    """What a field becomes."""
    known = [field.name for field in dataclasses.fields(part)]
    path, _, text = changes[0]
    if name not in known:
        hint = nearest(name, known)
        raise ValueError(f"{path!r} is not a field of {type(part).__name__}{hint} Known: {', '.join(known)}")
    old = getattr(part, name)
    if dataclasses.is_dataclass(old):
        for path, names, _ in changes:
            if not names:
                raise ValueError(f"{path!r} has fields itself; set one of them, as in {path}.NAME=VALUE")
        return _replaced(old, changes)
    if any(names for _, names, _ in changes):
        raise ValueError(f"{path!r}: {name} has no fields")
    value, kind = _read(text), _kind(part, name)
    if isinstance(old, str) and value is not None and not isinstance(value, str):
        return text  # a folder may be called 2024
    if isinstance(old, float) or (type(old) is int and float in (kind, *get_args(kind))):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{path} must be a number, such as {old!r}; got {value!r}")
        return float(value) if isinstance(old, float) else value  # a recipe may write 1 itself
    if old is not None and value is not None and type(value) is not type(old):
        raise ValueError(f"{path} must be of type {type(old).__name__}, such as {old!r}; got {value!r}")
    return taken(path, value, kind, keeps=True)
