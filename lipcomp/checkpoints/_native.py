"""Our checkpoint: one safetensors file, the metadata as JSON in its header. Loading it runs no code.

The header's entry ``lipcomp`` holds a JSON object:

==============  =============================================================================
format          version of this layout; this code reads 1
encoder         the :class:`~lipcomp.encoders.EncoderSpec` that rebuilds the network
objective       name and options: kappa_e, kappa_b, beta, temperature ...
recipe          name and all fields of the recipe
data            name and content hash of the training images
seed            seed of weights, order, augmentation and noise
epochs          epochs trained
code_version    version of lipcomp, and of torch
metrics         last training metrics, by name
==============  =============================================================================

A file appears whole or not at all: it is written beside its place, flushed to disk, and renamed.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from lipcomp._arguments import checked
from lipcomp._atomic import atomic_file
from lipcomp._identity import hash_module
from lipcomp._messages import is_of_machine
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._lean import Budget, build_lean, check_numbers, fill
from lipcomp.checkpoints._preprocessing import Inputs
from lipcomp.checkpoints._report import KeyReport
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.encoders._encoder import Encoder

FORMAT = 1
GENERIC_NAMES = ("model", "checkpoint", "last", "best", "pytorch_model")
HEADER_KEY = "lipcomp"


def label_of(path: Path) -> str:
    """What :attr:`Checkpoint.label` is for a path."""
    return path.parent.name if path.stem in GENERIC_NAMES and path.parent.name else path.stem


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint knows of its encoder besides the weights (see the module's table)."""

    objective: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    epochs: int | None = None
    code_version: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("objective", "recipe", "data", "code_version", "metrics"):
            if not isinstance(getattr(self, name), dict):
                raise TypeError(f"{name} must be a dictionary, got {getattr(self, name)!r:.80}")
        kappa_e = self.objective.get("kappa_e")
        if not isinstance(kappa_e, int | float | None):
            raise TypeError(f"objective's kappa_e must be a number, got {kappa_e!r:.80}")


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """A loaded checkpoint: the encoder in evaluation mode, its metadata, and the hash of the file.

    A foreign one (:func:`lipcomp.load_encoder`) also says what format it was recognised as, what became of every
    key, how images are prepared for it, and what its weights do not show of the network (a stem's padding, a ViT's
    heads), and which of the networks in the file it is (``branch`` and ``place``); its metadata are empty, since its
    file does not hold any.
    """

    encoder: Encoder
    metadata: Metadata
    sha256: str
    path: Path
    format: str = "lipcomp"
    report: KeyReport | None = None
    preprocessing: Inputs | None = None
    conventions: Mapping[str, Any] = field(default_factory=dict)
    branch: str = "online"
    place: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that the encoder takes."""
        return self.encoder.image_shape

    @property
    def concentration(self) -> float | None:
        """kappa_e of the forward encoder; None for an objective without one."""
        value = self.metadata.objective.get("kappa_e")
        return None if value is None else float(value)

    @cached_property
    def identity(self) -> str:
        """Hash of the encoder's content: weights, buffers, attributes (:func:`lipcomp._identity.hash_module`)."""
        return hash_module(self.encoder)

    def save_pretrained(self, folder: Path | str, *, records: Iterable[Any] = ()) -> Path:
        """Write weights, config and a model card as a folder for the Hub; :func:`lipcomp.load_encoder` reads it.

        Parameters
        ----------
        folder
            Is made if there is none.
        records
            What was measured; the card shows those of this encoder as a table.

        Raises
        ------
        ValueError
            If all records are of other encoders.
        """
        from lipcomp.checkpoints._export import to_safetensors

        return to_safetensors(self, folder, records=records)

    @property
    def label(self) -> str:
        """A short name for tables: the file's, or its folder's where every file is called the same."""
        return label_of(self.path)

    def subject(self) -> dict[str, Any]:
        """What a record says of the encoder that was measured: where it lies, its hash, how it was trained."""
        told = {
            "recipe": self.metadata.recipe.get("name"),
            "objective": self.metadata.objective.get("name"),
            "beta": self.metadata.objective.get("beta"),
            "kappa_e": self.concentration,
            "kappa_b": self.metadata.objective.get("kappa_b"),
            "seed": self.metadata.seed,
            "data": self.metadata.data.get("name"),
        }
        told |= {"format": self.format, "architecture": self.encoder.architecture}
        if self.format != "lipcomp":
            told |= {
                "branch": self.branch,
                "weights": self.place or None,
                "latent": self.encoder.layers()[-2],
                "notes": list(self.report.notes) if self.report else None,
            }
        if self.preprocessing is not None:
            ready = self.preprocessing
            told |= {
                "normalisation": {"mean": ready.mean, "std": ready.std, "origin": ready.origin},
                "preprocessing": ready.pipeline.record(),
            }
        known = {name: value for name, value in told.items() if value is not None}
        return {"checkpoint": str(self.path), "sha256": self.sha256, "encoder": self.identity, **known}

    def __repr__(self) -> str:
        return f"<Checkpoint {self._line()}>"

    def _line(self) -> str:
        layers = ", ".join(f"{layer}" for layer in self.encoder.layers())
        shape = "x".join(map(str, self.image_shape))
        return (
            f"{self.path}: format {self.format}, {self.encoder.architecture}, images {shape}, layers {layers}"
        )

    def describe(self, every_key: bool = False) -> str:
        """What was recognised and assumed, in lines for people; with a line for every key on request."""
        lines = [self._line()]
        if self.preprocessing is not None:
            lines.append(f"  images: {self.preprocessing}")
        if self.report is not None:
            text = self.report.full() if every_key else self.report.summary()
            lines.append("  keys:\n    " + text.replace("\n", "\n    "))
        return "\n".join(lines)


@checked
def save_checkpoint(path: Path | str, encoder: Encoder, *, metadata: Metadata | None = None) -> None:
    """Write an encoder and its metadata; atomically.

    Parameters
    ----------
    path
        The ``.safetensors`` file.
    encoder
        An encoder of :func:`lipcomp.encoders.build_encoder`.
    metadata
        How the encoder was trained (optional).

    Raises
    ------
    CheckpointError
        If the encoder is a wrapped network, which has no spec.
    OSError
        If the folder cannot be written to. No partial file is left, and an existing file is not changed.

    Examples
    --------
    >>> import tempfile, lipcomp
    >>> from lipcomp.encoders import EncoderSpec, build_encoder
    >>> path = tempfile.mkdtemp() + "/mine.safetensors"
    >>> lipcomp.checkpoints.save_checkpoint(path, build_encoder(EncoderSpec("small_cnn", (1, 28, 28))))
    >>> lipcomp.load_encoder(path).encoder.image_shape
    (1, 28, 28)
    """
    if not hasattr(encoder, "spec"):
        raise CheckpointError(
            f"a wrapped {encoder.architecture} has no spec to be rebuilt from; save its weights with torch.save, and "
            f"read them with the function that builds it (factory=); if it was loaded, use save_pretrained(folder) of "
            f"its checkpoint"
        )
    header = {"format": FORMAT, "encoder": encoder.spec.to_dict(), **asdict(metadata or Metadata())}
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    weights = {  # copies: layers may share a tensor, which a file does not
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in encoder.state_dict().items()
    }
    with atomic_file(Path(path)) as temporary:
        temporary.write_bytes(to_safetensors(weights, metadata={HEADER_KEY: text}))


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint written by :func:`save_checkpoint`.

    Raises
    ------
    CheckpointError
        If the file is missing, unreadable, foreign, truncated, of a newer format, or does not fit its own metadata.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(
            f"checkpoint {str(path)!r} {what}; give the path of a .safetensors checkpoint file"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (the file may change)
    except (SafetensorError, OSError, ValueError) as error:
        if is_of_machine(error):
            raise
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read as safetensors ({error}); it is damaged or of another format"
        ) from error
    if header is None:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is a safetensors file without lipcomp's metadata, so the network cannot be "
            f"rebuilt from it; give a checkpoint that lipcomp's training wrote"
        )
    spec, metadata = _parse(header, path)
    encoder = build_lean(lambda: build_encoder(spec), Budget.of(weights))
    expected = encoder.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        have = tuple(weights[name].shape) if name in weights else "nothing"
        want = tuple(expected[name].shape) if name in expected else "nothing"
        if have != want:
            raise CheckpointError(
                f"checkpoint {str(path)!r} does not fit its own metadata: {name} has {have}, not {want}"
            )
    check_numbers(weights, path)
    fill(encoder, weights)
    return Checkpoint(encoder.eval(), metadata, digest_of(path), path)


def own_backbone(path: Path | str) -> str:
    """The name of the user's function that built a checkpoint's backbone (``FILE.py:FUNCTION``); "" for any other."""
    try:
        with safe_open(path, framework="pt") as file:
            name = json.loads((file.metadata() or {})[HEADER_KEY])["encoder"]["backbone"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return ""
    return name if isinstance(name, str) and ":" in name else ""


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(header: str, path: Path) -> tuple[EncoderSpec, Metadata]:
    try:
        fields = json.loads(header)
        version = fields.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {str(path)!r} has damaged metadata ({error!r})") from error
    if version != FORMAT:
        raise CheckpointError(
            f"checkpoint {str(path)!r} has format {version!r}, this lipcomp reads {FORMAT}; upgrade lipcomp "
            f"to read it"
        )
    try:
        return EncoderSpec.from_dict(fields.pop("encoder")), Metadata(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {str(path)!r} has metadata that does not fit: {error}") from error
