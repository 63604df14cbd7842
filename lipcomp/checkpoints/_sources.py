"""A path -> the tensors in it, by name; nothing of the file is run.

=====================  ==========================================================================
what lies there        how it is read
=====================  ==========================================================================
safetensors            by safetensors, after its header's length was checked
a file of torch.save   by ``torch.load(weights_only=True)``, after a check of its own
distributed, of torch  its index by a reader of our own, its parts as above
a Hugging Face folder  its safetensors or ``.bin`` as above, and its JSON
TensorFlow's           by a reader of the format, without TensorFlow
=====================  ==========================================================================

What a file is, its first bytes say, not its name.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lipcomp._messages import is_of_machine
from lipcomp.checkpoints import _hugging_face as hugging_face, _tensorflow_names as tensorflow_names
from lipcomp.checkpoints._distributed import INDEX, read_distributed
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._names import without_wrappers
from lipcomp.checkpoints._native import HEADER_KEY, digest_of
from lipcomp.checkpoints._preprocessing import Inputs, from_timm
from lipcomp.checkpoints._processors import from_transformers
from lipcomp.checkpoints._tensorflow_bundle import Bundle
from lipcomp.checkpoints._torch_files import read_torch
from lipcomp.data._preprocessing import Preprocessing

Tree = Mapping[str, Any]
State = dict[str, Tensor]

TENSORS = 50_000  # of a checkpoint
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")
DEEPSPEED = re.compile(
    r"(((bf16_)?zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)|layer_\d+-model_\d+-model)_states\.pt"
)
WHOLE = "mp_rank_00_model_states.pt"  # all weights, in the precision of training
HEADER_LIMIT = 20_000_000  # bytes of a safetensors header; those of 50,000 tensors are half as long

# Branches of a checkpoint that hold no weights of a network, by a whole word of their name.
STRANGERS = re.compile(
    r"(.*_)?(optim\w*|sched\w*|callbacks?|loops|scaler|amp|hyper_parameters|config|args|loss(es)?)(_.*)?"
)
# Parts of one network, and whether their names belong to its keys: VISSL's, SimCLR-v2-Pytorch's, Composer's average.
PAIRS = (
    (("trunk", "heads"), True),
    (("resnet", "head"), True),
    (("named_parameters_dict", "named_buffers_dict"), False),
)
# What an optimiser keeps beside each weight, with the weight's own shape; parts of a key.
MOMENTS = re.compile(
    r"optim(izers?|s)?(_states?)?|(max_)?exp_(avg|inf)(_sq|_slow|_diff)?|momentum_buffer|grad(ient)?s?"
)


@dataclass(frozen=True)
class Source:
    """What a path holds.

    Parameters
    ----------
    path
        The path as given.
    container
        "safetensors", "torch", "huggingface" or "tensorflow".
    tree
        Nested dictionaries with tensors as leaves.
    sha256
        Hash of the file, or of all files together.
    metadata
        The text entries of a safetensors header.
    keys
        Where names were translated: our name -> the keys of the file behind it.
    left_out
        Keys of the file that were not read -> why.
    arch
        The architecture that a configuration beside the weights names.
    conventions, preprocessing
        What that configuration says besides.
    notes
        What was left aside.
    """

    path: Path
    container: str
    tree: Tree
    sha256: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    arch: str | None = None
    conventions: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Inputs | None = None
    notes: tuple[str, ...] = ()

    def states(self) -> Iterator[tuple[tuple[str, ...], State]]:
        """Every dictionary with tensors of its own in it, once: (where, name -> tensor)."""
        yield from _states(self.tree, (), set())


def _states(tree: Tree, place: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], State]]:
    if id(tree) in seen or len(place) > 6 or {"state", "param_groups"} <= tree.keys():  # an optimiser's
        return
    seen.add(id(tree))
    for pair, prefixed in PAIRS:
        if all(isinstance(tree.get(name), Mapping) for name in pair):
            merged = {
                f"{name}.{key}" if prefixed else key: tree[name][key] for name in pair for key in tree[name]
            }
            yield place, {key: value for key, value in merged.items() if isinstance(value, Tensor)}
            return
    here = {
        str(key): value
        for key, value in tree.items()
        if isinstance(value, Tensor) and not is_moment(str(key))
    }
    if here:
        yield place, here
    for name, value in tree.items():
        strange = STRANGERS.fullmatch(str(name).lower()) or MOMENTS.fullmatch(str(name))
        if isinstance(value, Mapping) and not strange:
            yield from _states(value, (*place, str(name)), seen)


def is_moment(key: str) -> bool:
    """Whether a tensor is an optimiser's, by a part of its name."""
    return any(MOMENTS.fullmatch(part) for part in key.split("."))


def open_source(path: Path | str, *, alone: bool = False) -> Source:
    """Read what lies at a path; ``alone``, the weights under their own names, whatever a configuration says of them.

    Raises
    ------
    CheckpointError
        If there is nothing, or nothing that can be read safely.
    """
    path = Path(path)
    if path.is_dir():
        if (path / INDEX).is_file():
            return Source(path, "torch", *read_distributed(path))
        if (latest := path / "latest").is_file() and latest.stat().st_size < 256:  # DeepSpeed's
            step = path / latest.read_bytes().decode("utf-8", "replace").strip()
            if step.parent == path and [*step.glob("*_model_states.pt")]:
                return replace(open_source(step, alone=alone), path=path)
        if shards := sorted(file.name for file in path.glob("*_states.pt") if DEEPSPEED.fullmatch(file.name)):
            if shards != [WHOLE]:
                raise _in_parts(path / shards[-1])
            return replace(open_source(path / WHOLE, alone=alone), path=path)
        known = ("config.json", *hugging_face.WEIGHTS, *indices_of(hugging_face.WEIGHTS))
        there = [name for name in known[1:] if (path / name).exists()]
        if (path / "adapter_config.json").is_file():
            without = f"; for the network without it, give {there[0]}" if there else ""
            raise CheckpointError(
                f"folder {str(path)!r} holds an adapter of PEFT, which changes a network and is not applied; save the "
                f"merged one: model.merge_and_unload().save_pretrained(...){without}"
            )
        if there or (path / known[0]).exists():
            return _folder(path, alone=alone)
        if own := [name for name in hugging_face.OPENCLIP[1:] if (path / name).is_file()]:
            return open_source(path / own[0])
        if not any(path.glob("*.index")):
            names = ", ".join(sorted(file.name for file in path.iterdir())[:4])
            raise CheckpointError(
                f"folder {str(path)!r} holds no checkpoint of its own: neither config.json with weights beside it nor "
                f"TensorFlow's .index file, {f'but {names}; give one of them' if names else 'it is empty'}"
            )
        return _tensorflow(path)
    if path.name == INDEX or path.suffix == ".distcp":
        raise CheckpointError(
            f"checkpoint {str(path)!r} is a part of a distributed one; give its folder, {str(path.parent)!r}"
        )
    if path.is_file() and DEEPSPEED.fullmatch(path.name) and path.name != WHOLE:
        raise _in_parts(path)
    if (shard := SHARD.search(path.name)) and int(shard[1]) > 1:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is one of {int(shard[1])} shards; give their folder, {str(path.parent)!r}, "
            f"with its index"
        )
    if path.is_file() and path.name in (*hugging_face.WEIGHTS, *indices_of(hugging_face.WEIGHTS)):
        told = hugging_face.read_json(path.with_name("config.json"))
        theirs = {"architecture", "pretrained_cfg"} <= told.keys() or (
            "model_type" in told and told.keys() & {"architectures", "transformers_version"}
        )
        if path.name.endswith(hugging_face.INDEX) or theirs:  # not a training program's own settings
            return _folder(path.parent, path.name, alone=alone)  # which says more than its weights do
    if path.suffix == ".index" or ".data-" in path.name or path.with_name(path.name + ".index").is_file():
        return _tensorflow(path)
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {str(path)!r} does not exist; give a file, a Hugging Face folder or a prefix"
        )
    tree, metadata = _file(path)
    digest = digest_of(path)
    source = Source(path, "safetensors" if metadata is not None else "torch", tree, digest, metadata or {})
    if path.name in hugging_face.OPENCLIP and path.with_name(hugging_face.OPENCLIP[0]).is_file():
        told, ready = hugging_face.read_openclip(path.parent)
        source = replace(
            source,
            conventions=told,
            preprocessing=_prepared(path.parent, from_timm, ready, hugging_face.OPENCLIP[0]),
        )
    return source


def _in_parts(part: Path) -> CheckpointError:
    """What to do with weights in DeepSpeed's parts."""
    folder = part.absolute().parent
    alone = [file.name for file in folder.glob("*model_states.pt")] == [WHOLE]
    whole = f", or give {WHOLE}, the weights in the precision of training" if alone else ""
    return CheckpointError(
        f"checkpoint {str(part)!r} is one of DeepSpeed's parts; make a folder of whole weights with its script, and "
        f"give that folder: python {folder.parent / 'zero_to_fp32.py'} {folder.parent} WHOLE -t {folder.name}{whole}"
    )


def check_count(tensors: int, path: Path) -> None:
    """Refuse what has too many tensors for an encoder, before they are read or looked at one by one."""
    if tensors > TENSORS:
        raise CheckpointError(
            f"checkpoint {str(path)!r} holds {tensors} tensors, more than a vision encoder has"
        )


def _file(path: Path) -> tuple[Tree, dict[str, str] | None]:
    """The tree of one file, and a safetensors file's metadata (None for torch)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" or (path.suffix == ".safetensors" and start[:2] not in (b"PK", b"\x80\x02")):
        if header > min(size - 8, HEADER_LIMIT):
            raise CheckpointError(
                f"checkpoint {str(path)!r} cannot be read as safetensors: its header claims {header} bytes "
                f"of {size}; it is truncated, damaged or of another format"
            )
        try:
            with safe_open(path, framework="pt") as opened:
                check_count(len(names := opened.keys()), path)
                # not the file's own pages
                weights = {name: opened.get_tensor(name).clone() for name in names}
                return weights, opened.metadata() or {}
        except (
            SafetensorError,
            OSError,
            ValueError,
            RuntimeError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            if is_of_machine(error):
                raise
            raise CheckpointError(
                f"checkpoint {str(path)!r} cannot be read as safetensors ({error}); it is damaged or of "
                f"another format"
            ) from error
    return read_torch(path), None


def indices_of(names: Iterable[str]) -> list[str]:
    """What the indices of shards are called."""
    return [f"{name}{hugging_face.INDEX}" for name in names]


def _folder(path: Path, name: str = "", *, alone: bool = False) -> Source:
    """A Hugging Face folder, of which ``name`` is the file of weights that is meant."""
    files, notes, promised = hugging_face.weight_files(path, name)
    return replace(_read_folder(path, files, promised, alone), notes=notes)


def _read_folder(path: Path, files: list[Path], promised: Collection[str], alone: bool) -> Source:
    config = hugging_face.read_json(path / "config.json")
    weights: State = {}
    digest = hashlib.sha256()
    for file in files:
        tree, metadata = _file(file)
        if HEADER_KEY in (metadata or {}):
            return Source(file, "safetensors", tree, digest_of(file), metadata or {})
        here = {str(key): value for key, value in tree.items() if isinstance(value, Tensor)}
        twice = next((key for key in here if key in weights and not weights[key].equal(here[key])), None)
        if twice is not None:
            raise CheckpointError(
                f"folder {str(path)!r}: {file.name} and a shard before it hold {twice!r} with different values; one of "
                f"them is another model's: get the folder again"
            )
        weights |= here
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    if lacking := [key for key in promised if key not in weights]:
        raise CheckpointError(
            f"folder {str(path)!r}: its index names {lacking[0]!r}, which is in none of the shards; get the folder "
            f"again"
        )
    if alone:
        return Source(path, "huggingface", weights, digest.hexdigest())
    ready = _prepared(path, from_transformers, *hugging_face.read_processor(path))
    ready = ready or _prepared(path, from_timm, config, "pretrained_cfg of config.json")
    kind = config.get("model_type")
    if kind == "timm_wrapper":  # timm's network, as transformers saves it
        kind = None
    if kind is not None and not hugging_face.is_plain(config):
        told = {"config": config}
        return Source(
            path, "transformers", weights, digest.hexdigest(), conventions=told, preprocessing=ready
        )
    if kind is not None:
        origin = without_wrappers(weights)
        plain = {name: weights[key] for name, key in origin.items()}
        translated, keys, told = hugging_face.translate(plain, config)
        keys = {name: tuple(origin[key] for key in behind) for name, behind in keys.items()}
        used = {key for behind in keys.values() for key in behind}
        return Source(
            path,
            "huggingface",
            translated,
            digest.hexdigest(),
            keys=keys,
            left_out=dict.fromkeys(weights.keys() - used, "another part of the model: classifier, decoder"),
            conventions=told,
            preprocessing=ready,
        )
    if isinstance(config.get("lipcomp"), dict):
        return _exported(path, weights, digest.hexdigest(), config["lipcomp"])
    arch, told = config.get("architecture"), {}
    if isinstance(arch, str):  # timm's, whose names are timm's
        arch = arch if arch.startswith("timm/") else f"timm/{arch}"
        options = config.get("model_args") or {}
        if not isinstance(options, dict) or not all(_harmless(value) for value in options.values()):
            raise CheckpointError(
                f"folder {str(path)!r}: the model_args of its config.json hold more than numbers, words and short "
                f"lists ({options!r}); build the network yourself (lipcomp.wrap)"
            )
        told = {"model_args": {name: value for name, value in options.items() if name != "num_classes"}}
        told |= {
            name: config[name] for name in ("global_pool", "num_features") if config.get(name) is not None
        }
    arch = arch if isinstance(arch, str) else None
    return Source(
        path, "huggingface", weights, digest.hexdigest(), arch=arch, conventions=told, preprocessing=ready
    )


def _prepared(
    path: Path, read: Callable[[Mapping[str, Any], str], Inputs | None], told: Mapping[str, Any], origin: str
) -> Inputs | None:
    """What a configuration says of images."""
    try:
        return read(told, origin)
    except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(
            f"folder {str(path)!r}: its preprocessing cannot be read ({error}); correct it there"
        ) from error


def _harmless(value: Any) -> bool:
    """Whether a setting is a number, a word or a short list of such."""
    if isinstance(value, list):
        return len(value) <= 64 and all(_harmless(part) for part in value)
    return (
        value is None
        or isinstance(value, bool | float | str)
        or (isinstance(value, int) and abs(value) <= 1 << 16)
    )


def _exported(path: Path, weights: State, digest: str, told: Mapping[str, Any]) -> Source:
    """A folder of :func:`lipcomp.checkpoints._export.to_safetensors`."""
    try:
        ready = _tuples(told["preprocessing"])
        ready |= {"origin": "config.json", "pipeline": Preprocessing(**_tuples(ready["pipeline"]))}
        inputs, conventions, arch = Inputs(**ready), dict(told["conventions"]), str(told["architecture"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"folder {str(path)!r}: its config.json is damaged ({error!r})") from error
    keys = {name: (name,) for name in weights}
    return Source(path, "exported", weights, digest, {}, keys, {}, arch, conventions, inputs)


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _tensorflow(path: Path) -> Source:
    """A TensorFlow checkpoint."""
    bundle = Bundle(path)
    shapes = {name: entry.shape for name, entry in bundle.entries.items()}
    weights, ours = tensorflow_names.to_ours(shapes, bundle.read)
    left_out = {
        name: tensorflow_names.why_left_out(name) for name in shapes if name not in set(ours.values())
    }
    keys = {name: (variable,) for name, variable in ours.items()}
    return Source(path, "tensorflow", weights, bundle.sha256(), keys=keys, left_out=left_out)
