"""Every architecture of timm, torchvision and transformers in every wrapping, against the library's own features.

    python -m benchmarks.checkpoint_zoo --shard 1/16 --out zoo-1.jsonl
    python -m benchmarks.checkpoint_zoo --summarise zoo-*.jsonl

Small networks come first. Every network is tried in one wrapping before any is tried in a second, so that a sweep that
is stopped has seen as many kinds as it could; started again, it goes on.

Each network gets random weights that show every difference, is written in six wrappings, as a bare file and (where the
library has one) as a hub folder, and is loaded by :func:`lipcomp.load_encoder`. A case ends in one of

=============  =========================================================================================================
equal          the features are the library's own, on pixels in [0, 1], to 1e-5 of the largest
ambiguous      refused with "ambiguous: A or B; pass ...", and with the right choice equal
refused        refused, and equal with ``--arch`` as the message says
noted          read as another architecture of equal names and shapes, or with the usual normalisation of its kind,
               which the report says; equal with ``--arch``, ``--mean`` and ``--std``
too large      more parameters than ``--largest``; not written
no reference   the library itself fails on an image, or its features are not finite
MISMATCH       other features, and nothing said: a silent error
STUCK          refused, and no choice of ``--arch``, ``--mean`` and ``--std`` helps
=============  =========================================================================================================
"""

import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks._harness import add_part, append_lines, read_lines
from lipcomp._commands import Parser, run
from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._architectures import build_backbone
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._lean import Budget, build_lean

State = dict[str, Tensor]
TOLERANCE = 1e-5  # of the largest feature
OUTCOMES = ("equal", "ambiguous", "refused", "noted", "too large", "no reference", "MISMATCH", "STUCK")


def _insert(key: str, depth: int, part: str) -> str:
    parts = key.split(".")
    return ".".join([*parts[:depth], part, *parts[depth:]]) if len(parts) > depth else key


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "ddp": lambda state: {
        "epoch": 3,
        "best_acc1": torch.tensor(71.5),
        "state_dict": _named(state, "module.{}"),
    },
    "compiled": lambda state: {
        "model": {_insert(key, 1, "_orig_mod"): value for key, value in state.items()}
    },
    "averaged": lambda state: {"n_averaged": torch.tensor(7), **_named(state, "module.{}")},
    "fsdp": lambda state: {
        "model": {
            "_fsdp_wrapped_module." + _insert(key, 2, "_checkpoint_wrapped_module"): value
            for key, value in state.items()
        },
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    },
    "lightning": lambda state: {
        "state_dict": _named(state, "model.net.{}"),
        "best_acc1": torch.zeros(1),
        "global_step": 9,
    },
}


def _named(state: State, name: str) -> State:
    return {name.format(key): value for key, value in state.items()}


@dataclass
class Reference:
    """A library's network with its own evaluation path, and how the library writes it."""

    state: State
    features: Callable[[Tensor], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    config: dict[str, Any] | None
    processor: dict[str, Any] | None = None


class Undrawn(TorchFunctionMode):
    """Initial weights are not drawn: :func:`shake` replaces them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, value = getattr(func, "__name__", ""), args[0] if args else kwargs.get("tensor")
        skipped = name in (
            *("uniform_", "normal_", "erfinv_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"),
        )
        if not skipped:
            return func(*args, **kwargs)
        with torch.no_grad():  # torch draws a truncated normal until every number is within its ends: zero is
            return value.zero_()


def shake(network: nn.Module) -> nn.Module:
    """Random weights and statistics in evaluation mode: nothing at its initial value."""
    draw, kept = torch.Generator().manual_seed(0), network.state_dict().keys()
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if name not in kept or not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=draw))
            elif value.ndim <= 1:
                value.copy_(float(name.endswith("weight")) + 0.2 * torch.randn(value.shape, generator=draw))
            else:
                value.copy_(torch.randn(value.shape, generator=draw) / max(1, value[0].numel()) ** 0.5)
    return network.eval().requires_grad_(False)


def count(library: str, name: str, largest: int) -> int:
    """A network's parameters, counted without making them, as far as ``largest``; 0 where it cannot be built."""
    try:
        if library == "transformers":
            body, settings = transformers_kind(name)
            network = build_lean(lambda: body(settings), Budget(largest))
        else:
            network = build_backbone(f"{library}/{name}", budget=Budget(largest)).network
        return sum(value.numel() for value in network.parameters())
    except CheckpointError:
        return largest + 1
    except Exception:  # its sweep will say why
        return 0


def counts(chosen: Sequence[tuple[str, str]], options: Any) -> Iterator[tuple[tuple[str, str], int]]:
    """Each network's parameters; they are kept beside the results, since counting all takes minutes."""
    kept = options.out and options.out.with_suffix(".counts")
    known = {(a, b): numbers for a, b, numbers in read_lines([kept] if kept and kept.exists() else [])}
    for one in chosen:
        if one not in known:
            known[one] = count(*one, options.largest)
            append_lines(kept, [[*one, known[one]]])
        yield one, known[one]


def of_timm(name: str) -> Reference:
    """Timm's network; its evaluation path is the network without its classifier, on its own normalisation."""
    import timm

    with Undrawn():
        network, headless = timm.create_model(name), timm.create_model(name, num_classes=0).eval()
    shake(network)
    told = headless.load_state_dict(network.state_dict(), strict=False)
    if told.missing_keys:
        raise RuntimeError(f"its own headless form lacks {told.missing_keys[0]}")
    config = dict(network.pretrained_cfg)
    folder = {
        "architecture": name,
        "num_classes": 1000,
        "num_features": network.num_features,
        "pretrained_cfg": config,
    }
    if isinstance(pool := getattr(network, "global_pool", None), str) and pool:
        folder["global_pool"] = pool
    return Reference(
        network.state_dict(),
        headless,
        tuple(config["mean"]),
        tuple(config["std"]),
        tuple(config["input_size"][1:]),
        folder,
    )


def of_torchvision(name: str) -> Reference:
    """Torchvision's network without its last linear layer."""
    with Undrawn():
        network = torchvision.models.get_model(name, weights=None)
    shake(network)
    state = dict(network.state_dict())
    linears = [place for place, module in network.named_modules() if isinstance(module, nn.Linear)]
    if name in ("googlenet", "inception_v3"):
        linears = ["fc"]
    if linears:
        parent, _, child = linears[-1].rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    else:  # SqueezeNet's classifier is a convolution
        network.classifier = nn.AdaptiveAvgPool2d(1)
    ready = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
    size = ready.crop_size[0]
    return Reference(state, network, tuple(ready.mean), tuple(ready.std), (size, size), None)


SMALL = {  # a transformers configuration that every kind of vision transformer takes in part
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip


def transformers_kind(kind: str) -> tuple[Any, Any]:
    """The class and the configuration of a kind of transformers model, small where its configuration allows it."""
    from transformers.models.auto import configuration_auto, modeling_auto

    settings = configuration_auto.CONFIG_MAPPING[kind]()
    if all(isinstance(getattr(settings, name, None), int) for name in SMALL):
        settings = type(settings)(**SMALL)
    if kind == "vit_mae":
        settings.mask_ratio = 0.0  # its features are those of all patches
    return modeling_auto.MODEL_MAPPING[type(settings)], settings


def of_transformers(kind: str) -> Reference:
    """A transformers model of one kind."""
    from transformers.models.auto import modeling_auto

    from lipcomp.checkpoints._transformers_models import TOKEN

    body, settings = transformers_kind(kind)
    network = shake(body(settings))
    inner = getattr(settings, "vision_config", settings)
    size = getattr(inner, "image_size", None) or 224
    size = (size, size) if isinstance(size, int) else tuple(size)
    token = kind in TOKEN or kind.startswith(("dinov2", "vit_m"))
    out = network.get_image_features if inner is not settings else network
    with torch.no_grad():
        tried = out(pixel_values=torch.zeros(1, 3, *size))
    seen: list[Tensor] = []
    if inner is settings and not token and getattr(tried, "pooler_output", None) is None:
        network = shake(modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(settings)](settings))
        network.classifier.register_forward_pre_hook(lambda module, given: seen.append(given[0]))

    def features(images: Tensor) -> Tensor:
        out = (
            network.get_image_features(pixel_values=images)
            if inner is not settings
            else network(pixel_values=images)
        )
        if seen:  # what the library's own classifier reads
            return seen[-1].flatten(1)
        if token:
            return out.last_hidden_state[:, 0]
        return out if isinstance(out, Tensor) else out.pooler_output.flatten(1)

    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        from safetensors.torch import load_file

        state = load_file(Path(folder) / "model.safetensors")
    mean, std = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
    processor = {
        "size": {"height": size[0], "width": size[1]},
        "resample": 2,
        "image_mean": mean,
        "image_std": std,
        "rescale_factor": 1 / 255,
    }
    return Reference(state, features, mean, std, size, config, processor)


def architectures() -> list[tuple[str, str]]:
    """(library, name) of everything that is installed."""
    import timm

    names = [("torchvision", name) for name in torchvision.models.list_models(torchvision.models)]
    names += [("timm", name) for name in timm.list_models()]
    try:
        from transformers.models.auto import modeling_auto
    except ImportError:
        return names
    kinds = {
        *modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
    }
    kinds -= {
        "timm_wrapper",
        "timm_backbone",
        "perceiver",
        "imagegpt",
    }  # no networks of their own, or not of pixels
    return names + [("transformers", kind) for kind in sorted(kinds)]


REFERENCES = {"torchvision": of_torchvision, "timm": of_timm, "transformers": of_transformers}


def sweep(library: str, name: str, wrappings: Sequence[str] = tuple(WRAPPINGS)) -> Iterator[dict[str, Any]]:
    """One architecture in every wrapping and container."""
    try:
        reference = REFERENCES[library](name)
        numbers = sum(value.numel() for value in reference.state.values())
        images = torch.rand(1, 3, *reference.size, generator=torch.Generator().manual_seed(1))
        mean, std = (torch.tensor(given).view(-1, 1, 1) for given in (reference.mean, reference.std))
        with torch.no_grad():
            expected = reference.features((images - mean) / std)
        if not isinstance(expected, Tensor) or not bool(expected.isfinite().all()):
            raise RuntimeError("its features are not finite numbers")
    except Exception as error:
        text = (str(error).strip() or repr(error)).splitlines()[0][:200]
        yield {"library": library, "name": name, "outcome": "no reference", "message": text}
        return

    def right(checkpoint: Any) -> bool:
        if tuple(checkpoint.image_shape) != tuple(images.shape[1:]):
            return False
        projected = checkpoint.encoder.layers()[-2] == "projection" and library == "transformers"
        with torch.no_grad():
            found = checkpoint.encoder.embedding(images) if projected else checkpoint.encoder.features(images)
        same = found.shape == expected.shape
        return same and bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())

    for wrapping in wrappings:
        for container in ("file", "folder") if reference.config else ("file",):
            with tempfile.TemporaryDirectory() as folder:
                path = write(reference, WRAPPINGS[wrapping], Path(folder), container)
                if path is None:
                    continue
                started = time.perf_counter()
                outcome, message = judge(path, library, name, reference, right)
                seconds = round(time.perf_counter() - started, 2)
            yield {
                "library": library, "name": name, "wrapping": wrapping, "container": container, "outcome": outcome,
                "message": message, "seconds": seconds, "numbers": numbers,
            }  # fmt: skip


def write(reference: Reference, wrap: Callable[[State], Any], folder: Path, container: str) -> Path | None:
    """The checkpoint; None for a container that does not hold the wrapping."""
    wrapped = wrap(dict(reference.state))
    if container == "file":
        torch.save(wrapped, folder / "checkpoint.pth")
        return folder / "checkpoint.pth"
    weights = next(
        (wrapped[name] for name in ("state_dict", "model") if isinstance(wrapped.get(name), Mapping)), wrapped
    )
    weights = {key: value.clone().contiguous() for key, value in weights.items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(reference.config, default=str))
    if reference.processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(reference.processor))
    return folder


def judge(
    path: Path, library: str, name: str, reference: Reference, right: Callable[[Any], bool]
) -> tuple[str, str]:
    """How one case ends, and what was said."""
    choice: dict[str, Any] = {"mean": reference.mean, "std": reference.std}
    if library != "transformers":
        choice["arch"] = f"{library}/{name}"
    try:
        checkpoint = load_encoder(path)
    except (CheckpointError, ImportError) as error:
        said = str(error)
        if (
            library == "transformers" and path.is_file() and "--mean" not in said
        ):  # as it says: with its config.json
            path, choice = write(reference, dict, path.parent, "folder") or path, {}
        try:
            helped = right(load_encoder(path, **choice))
        except (CheckpointError, ImportError) as again:
            return "STUCK", f"{said[:300]} || {str(again)[:300]}"
        kind = "ambiguous" if said.startswith("ambiguous") else "refused"
        return (kind, said[:300]) if helped else ("MISMATCH", f"after {kind}: {said[:300]}")
    if right(checkpoint):
        return "equal", ""
    notes = " | ".join(checkpoint.report.notes) if checkpoint.report else ""
    told = str(checkpoint.preprocessing) if "; assumed" in str(checkpoint.preprocessing) else ""
    if (name in notes or told) and right(load_encoder(path, **choice)):
        return "noted", notes + told
    return "MISMATCH", f"{checkpoint.encoder.architecture}, {checkpoint.image_shape}: {notes}"


def summarise(files: list[Path]) -> str:
    """The table, and every case that is an error."""
    cases = read_lines(files)
    counts = Counter((case["library"], case.get("container", "-"), case["outcome"]) for case in cases)
    rows = sorted({(library, container) for library, container, _ in counts})
    shown = [outcome for outcome in OUTCOMES if any(case["outcome"] == outcome for case in cases)]
    lines = [f"| library | container | {' | '.join(shown)} |", "|---" * (2 + len(shown)) + "|"]
    for library, container in rows:
        numbers = (str(counts[library, container, outcome]) for outcome in shown)
        lines.append(f"| {library} | {container} | {' | '.join(numbers)} |")
    for outcome in ("MISMATCH", "STUCK"):
        bad = [case for case in cases if case["outcome"] == outcome]
        names = sorted({(case["library"], case["name"]) for case in bad})
        lines += ["", f"{len(bad)} cases of {len(names)} architectures: {outcome}"] if bad else []
        for library, name in names[:60]:
            first = next(case for case in bad if (case["library"], case["name"]) == (library, name))
            lines.append(
                f"- {library}/{name}, {first['wrapping']}, {first['container']}: {first['message'][:240]}"
            )
    slow = max((case.get("seconds", 0) for case in cases), default=0)
    return "\n".join([*lines, "", f"{len(cases)} cases, the slowest {slow} s"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a shard, or summarise."""
    parser = Parser(prog="python -m benchmarks.checkpoint_zoo", description=__doc__)
    add_part(parser)
    parser.add_argument("--out", type=Path, help="file of JSON lines; architectures in it are skipped")
    parser.add_argument("--largest", type=int, default=150_000_000, help="parameters (default 150 million)")
    parser.add_argument(
        "--whole", action="store_true", help="every wrapping of a network before the next one: faster"
    )
    parser.add_argument("--only", help="library, or library/name with * at the end")
    parser.add_argument("--summarise", nargs="+", type=Path, metavar="FILE", help="print the table and stop")
    options = parser.parse_args(arguments)
    if options.summarise:
        print(summarise(options.summarise))
        return 0
    warnings.simplefilter("ignore")
    chosen = architectures()
    if options.only:
        chosen = [
            (a, b)
            for a, b in chosen
            if Path(f"{a}/{b}").match(options.only if "/" in options.only else f"{options.only}/*")
        ]
    done: Counter[tuple[str, str]] = Counter()
    for case in read_lines([options.out] if options.out and options.out.exists() else []):
        whole = "wrapping" not in case  # too large, or without a reference: not tried again
        done[case["library"], case["name"]] += len(WRAPPINGS) if whole else case.get("container") == "file"
    sized = sorted((numbers, *one) for one, numbers in counts(chosen[options.shard], options))
    for turn in range(1 if options.whole else len(WRAPPINGS)):
        for place, (numbers, library, name) in enumerate(sized):
            if done[library, name] >= (len(WRAPPINGS) if options.whole else turn + 1):
                continue
            turns = range(done[library, name], len(WRAPPINGS)) if options.whole else [turn]
            wrappings = [[*WRAPPINGS][(place + k) % len(WRAPPINGS)] for k in turns]
            if numbers > options.largest:
                cases = [{"library": library, "name": name, "outcome": "too large", "numbers": numbers}]
            else:
                cases = list(sweep(library, name, wrappings))
            done[library, name] += len(wrappings) if "wrapping" in cases[0] else len(WRAPPINGS)
            append_lines(options.out, cases)
            told = ", ".join(f"{case.get('container', '')} {case['outcome']}".strip() for case in cases)
            print(f"{library}/{name}, {', '.join(wrappings)}: {told}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
