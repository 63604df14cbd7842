"""Export of encoders to the formats of other libraries; each file loads again to the same output.

=============  ==================================================  ==========================================
target         what is written                                     who reads it
=============  ==================================================  ==========================================
torchvision    a state dict, ``.pth``; the backbone                ``torchvision.models``, anything after it
timm           a folder: model.safetensors, config.json; backbone  ``timm``, ``lipcomp.load_encoder``
safetensors    a folder, heads too, with a model card              ``lipcomp.load_encoder``; the Hub
torchscript    a traced program, ``.pt``                           ``torch.jit.load``, without lipcomp
torch-export   an exported program, ``.pt2``                       ``torch.export.load``, without lipcomp
=============  ==================================================  ==========================================

The programs take pixels in [0, 1] of any batch size and give the mean direction at one layer; normalisation is
inside. The state dicts hold weights only, and the folders say the normalisation beside them.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from lipcomp._atomic import atomic_file, check_writable
from lipcomp.checkpoints._architectures import OURS
from lipcomp.checkpoints._backbone import import_timm
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._native import Checkpoint, save_checkpoint
from lipcomp.checkpoints._preprocessing import Inputs
from lipcomp.data._preprocessing import Preprocessing
from lipcomp.encoders._encoder import Layer

WRITTEN, MARK = ("model.safetensors", "config.json", "README.md"), "Exported by lipcomp"


def _place(checkpoint: Checkpoint, out: Path | str, *names: str) -> Path:
    """Where to write a file, or a folder of named files; neither the checkpoint nor other files are written over."""
    out = Path(out)
    files = [out / name for name in names] or [out]
    for file in files:
        check_writable(file, "out")
    if checkpoint.path.resolve() in {place.resolve() for place in (out, *files)}:
        raise CheckpointError(f"out {str(out)!r} is the checkpoint that is exported; give another path")
    there = [file.name for file in files if names and file.exists()]
    readme = out / "README.md"
    if there and not (readme.is_file() and MARK in readme.read_text(errors="replace")):
        raise CheckpointError(
            f"out {str(out)!r} holds {' and '.join(there)}, which no export wrote; give another folder"
        )
    return out


def to_torchvision(checkpoint: Checkpoint, path: Path | str) -> Path:
    """Write the backbone as a plain state dict under torchvision's names (``torch.save``).

    Raises
    ------
    CheckpointError
        If torchvision has no such network.
    """
    name = checkpoint.encoder.architecture.removeprefix("torchvision/")
    known = OURS.fullmatch(name) or name in torchvision.models.list_models(torchvision.models)
    if not known or name.endswith(("_tf", "_same")):
        raise CheckpointError(
            f"{checkpoint.encoder.architecture} has no counterpart in torchvision (another family or padding); "
            f'export it with to="safetensors" or to="torchscript"'
        )
    with atomic_file(_place(checkpoint, path)) as temporary:
        torch.save(_weights(checkpoint.encoder.backbone), temporary)
    return Path(path)


def to_timm(checkpoint: Checkpoint, folder: Path | str) -> Path:
    """Write the backbone as timm's hub folder: ``model.safetensors`` and ``config.json``.

    Raises
    ------
    CheckpointError
        If timm has no such network.
    """
    timm = import_timm("the export to timm")
    encoder, weights = checkpoint.encoder, _weights(checkpoint.encoder.backbone)
    channels, height, width = encoder.image_shape
    name = encoder.architecture.removeprefix("timm/")
    if name.startswith("vit_") and not timm.is_model(name):
        size = {192: "tiny", 384: "small", 768: "base", 1024: "large"}.get(weights["cls_token"].shape[-1], "")
        name = f"vit_{size}_patch{weights['patch_embed.proj.weight'].shape[-1]}_224"
    fits = timm.is_model(name) and not encoder.architecture.endswith(("_tf", "_same"))
    if fits:
        options = {"img_size": height} if name.startswith("vit_") else {}
        with torch.random.fork_rng(devices=[]):
            wanted = timm.create_model(name, num_classes=0, in_chans=channels, **options).state_dict()
        fits = {k: v.shape for k, v in wanted.items()} == {k: v.shape for k, v in weights.items()}
    if not fits:
        raise CheckpointError(
            f"{encoder.architecture} has no counterpart in timm; "
            f'export it with to="safetensors" or to="torchscript"'
        )
    ready = preprocessing_of(checkpoint)
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": int(weights_out(encoder.backbone)),
        "pretrained_cfg": {
            "input_size": [channels, height, width],
            "mean": list(ready.mean),
            "std": list(ready.std),
            "interpolation": ready.pipeline.interpolation,
            "crop_pct": height / (ready.pipeline.resize + 1e-3)
            if isinstance(ready.pipeline.resize, int)
            else 1.0,
            "crop_mode": "squash" if ready.pipeline.squash else "center",
            "num_classes": 0,
        },
    }
    return _write_folder(_place(checkpoint, folder, *WRITTEN), weights, config, card(checkpoint, "timm"))


def to_safetensors(checkpoint: Checkpoint, folder: Path | str, *, records: Iterable[Any] = ()) -> Path:
    """Write backbone and heads as a folder: ``model.safetensors``, ``config.json`` and a model card.

    Our own checkpoints keep their metadata, in the header of the safetensors file.
    """
    text = card(checkpoint, "safetensors", records)
    encoder, folder = checkpoint.encoder, _place(checkpoint, folder, *WRITTEN)
    if checkpoint.format == "lipcomp":
        _write_text(folder / "README.md", text)
        save_checkpoint(folder / "model.safetensors", encoder, metadata=checkpoint.metadata)
        config: dict[str, Any] = {"encoder": encoder.spec.to_dict(), "library_name": "lipcomp"}
        _write_text(folder / "config.json", json.dumps(config, indent=2))
        return folder
    if checkpoint.preprocessing is None:
        raise CheckpointError(
            'a network of a factory cannot be rebuilt from a file; save its state_dict, or export "torchscript"'
        )
    config = {
        "library_name": "lipcomp",
        "lipcomp": {
            "version": version("lipcomp"),
            "architecture": encoder.architecture,
            "conventions": _plain(checkpoint.conventions) | _attention(encoder.backbone),
            "preprocessing": asdict(checkpoint.preprocessing),
        },
    }
    return _write_folder(folder, _weights(encoder), config, text)


class Program(nn.Module):
    """What the programs compute: pixels in [0, 1] -> mean direction at one layer."""

    def __init__(self, encoder: nn.Module, layer: Layer) -> None:
        super().__init__()
        self.encoder, self.layer = encoder, layer

    def forward(self, images: Tensor) -> Tensor:
        """The mean direction."""
        return self.encoder(images, self.layer)


def to_torchscript(checkpoint: Checkpoint, path: Path | str, layer: Layer = "latent") -> Path:
    """Trace the encoder at a layer into a TorchScript program."""
    place, program = _place(checkpoint, path), Program(checkpoint.encoder, layer).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations, and shapes that are fixed on purpose
        traced = torch.jit.trace(program, _example(checkpoint), check_trace=False)
        with atomic_file(place) as temporary:
            traced.save(str(temporary))
    return Path(path)


def to_torch_export(checkpoint: Checkpoint, path: Path | str, layer: Layer = "latent") -> Path:
    """Export the encoder at a layer with ``torch.export``; the batch size stays free."""
    place, program = _place(checkpoint, path), Program(checkpoint.encoder, layer).eval()
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(
            program, (_example(checkpoint),), dynamic_shapes={"images": {0: batch}}
        )
        with atomic_file(place) as temporary, temporary.open("wb") as file:
            torch.export.save(exported, file)
    return Path(path)


TARGETS: dict[str, Callable[..., Path]] = {
    "torchvision": to_torchvision,
    "timm": to_timm,
    "safetensors": to_safetensors,
    "torchscript": to_torchscript,
    "torch-export": to_torch_export,
}


def preprocessing_of(checkpoint: Checkpoint) -> Inputs:
    """What is known of the images; of our own checkpoints, their mean and std."""
    if checkpoint.preprocessing is not None:
        return checkpoint.preprocessing
    encoder = checkpoint.encoder
    channels, height, width = encoder.image_shape
    mean, std = (tuple(value.flatten().expand(channels).tolist()) for value in (encoder.mean, encoder.std))
    pipeline = Preprocessing.default(height, width)
    return Inputs(mean, std, (height, width), pipeline, "the checkpoint")


# Settings that a row of the card names.
CONDITIONS = ("data", "layer", "probe", "pairs", "corruption", "severity", "attack", "norm", "radius")


def card(checkpoint: Checkpoint, target: str, records: Iterable[Any] = ()) -> str:
    """The model card: what it is, where it comes from, what was measured of it, how it is loaded."""
    encoder, ready = checkpoint.encoder, preprocessing_of(checkpoint)
    told = {key: value for key, value in checkpoint.subject().items() if key != "checkpoint"}
    measured = _measured(_of_this(checkpoint, list(records)))
    layers = ", ".join(encoder.layers()) if target == "safetensors" else "backbone"
    lines = [
        "---",
        f"library_name: {'timm' if target == 'timm' else 'lipcomp'}",
        "tags: [image-feature-extraction, self-supervised-learning]",
        "---",
        "",
        f"# {encoder.architecture}, from {checkpoint.path.name}",
        "",
        f"{MARK} {version('lipcomp')} from a checkpoint of format {checkpoint.format!r}.",
        "",
        "| | |",
        "|---|---|",
        f"| images | {'x'.join(map(str, encoder.image_shape))} |",
        f"| preprocessing | {ready} |",
        f"| layers | {layers} |",
        f"| parameters | {sum(value.numel() for value in encoder.parameters()):,} |",
        *(f"| {key} | {value} |" for key, value in told.items()),
        *(["", "| measured | value | 95% interval | n |", "|---|---|---|---|"] if measured else []),
        *measured,
        "",
        "```python",
        "import lipcomp",
        "",
        'checkpoint = lipcomp.load_encoder("this folder")',
        "directions = checkpoint.encoder(images)  # pixels in [0, 1]; normalisation is inside",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _of_this(checkpoint: Checkpoint, records: Sequence[Any]) -> list[Any]:
    """The records of an encoder; a file may hold those of others too. One without a subject is taken as it is given."""
    own = {"encoder": checkpoint.identity, "sha256": checkpoint.sha256}

    def belongs(record: Any) -> bool:
        known = [name for name in own if name in record.subject]
        return not known or record.subject[known[0]] == own[known[0]]

    found = [record for record in records if belongs(record)]
    if records and not found:
        others = sorted({str(record.subject.get("checkpoint")) for record in records})
        raise ValueError(
            f"records are of other encoders ({', '.join(others[:3])}), none of {checkpoint.path} as it is loaded here; "
            f"measure this one, or load it with the same options"
        )
    return found


def _measured(records: Sequence[Any]) -> list[str]:
    """Records as rows of the card: of which data, at which layer, under what; the last of what was measured twice."""
    groups: dict[str, list[Any]] = {}
    for record in {record.identity: record for record in records if record.value is not None}.values():
        told = [
            f"{name} {record.settings[name]}" for name in CONDITIONS if record.settings.get(name) is not None
        ]
        groups.setdefault(", ".join([record.quantity, *told]), []).append(record)
    rows = []
    for what, alike in groups.items():
        names = [name for name in alike[0].settings if len({str(r.settings.get(name)) for r in alike}) > 1]
        for record in alike:
            apart = "".join(f", {name} {record.settings.get(name)}" for name in names)
            ends = "" if record.interval is None else "{:.4g} to {:.4g}".format(*record.interval)
            rows.append(f"| {what}{apart} | {record.value:.4g} {record.unit} | {ends} | {record.n or ''} |")
    return rows


def weights_out(backbone: nn.Module) -> int:
    """How many features a backbone gives."""
    return int(getattr(backbone, "out_features", 0) or getattr(backbone, "num_features", 0) or 0)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}


def _plain(conventions: Mapping[str, Any]) -> dict[str, Any]:
    """Conventions that JSON can hold."""
    kinds = (str, int, float, bool)
    return {key: value for key, value in conventions.items() if isinstance(value, kinds)}


def _attention(backbone: nn.Module) -> dict[str, Any]:
    """What a ViT's weights do not show."""
    blocks: Any = getattr(backbone, "blocks", None)
    if not isinstance(blocks, nn.Sequential) or not hasattr(blocks[0], "attn"):
        return {}
    first: Any = blocks[0]
    return {"heads": first.attn.num_heads, "layer_norm_eps": first.norm1.eps}


def _write_folder(folder: Path, weights: dict[str, Tensor], config: Mapping[str, Any], text: str) -> Path:
    # first: it says whose folder this is, should the rest be cut short
    _write_text(folder / "README.md", text)
    with atomic_file(folder / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    _write_text(folder / "config.json", json.dumps(config, indent=2))
    return folder


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def _example(checkpoint: Checkpoint) -> Tensor:
    return torch.rand(2, *checkpoint.image_shape, generator=torch.Generator().manual_seed(0))
