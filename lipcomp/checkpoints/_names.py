"""The backbone's keys in one dialect: torchvision's for ResNets, timm's for everything else.

=========================================  ==============================================
dialect                                    example of ``layer1.0.conv1.weight``
=========================================  ==============================================
torchvision, timm, most others             layer1.0.conv1.weight
nn.Sequential of torchvision's children    4.0.conv1.weight
nn.Sequential of lightly's ResNet          2.0.conv1.weight (3.0... behind a batch norm)
kuangliu's CIFAR ResNet, lightly's ResNet  layer1.0.conv1.weight, but shortcut, linear
SimCLRv2-Pytorch                           net.1.blocks.0.net.0.weight
=========================================  ==============================================
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lipcomp.checkpoints._index import LARGEST, lookup

Renamed = dict[str, str]  # key in the file -> name in our dialect


def to_common(keys: Iterable[str]) -> tuple[Renamed, dict[str, Any]]:
    """Every backbone key in the common dialect, and what the dialect says of the network besides."""
    keys = list(keys)
    here = set(keys)
    if "2.0.conv1.weight" in here and "0.weight" in here:
        # lightly's ResNet calls its ReLU as a function, so a Sequential of its children has none in the stem.
        return _sequential(keys, conv=0, layers=2), {"stem_relu": False}
    if "3.0.conv1.weight" in here and "1.weight" in here:
        return _sequential(keys, conv=1, layers=3), {"stem_relu": False}
    if "4.0.conv1.weight" in here and "0.weight" in here:
        return _sequential(keys, conv=0, layers=4), {}
    if any(key.startswith("net.1.blocks.0.") for key in keys):
        return _simclr_v2(keys), {}
    if any(re.match(r"layer\d\.\d+\.shortcut\.1\.", key) for key in keys) or (
        "layer1.0.conv1.weight" in here and "bn1.weight" in here and "linear.weight" in here
    ):
        return {
            key: re.sub(r"^linear\.", "fc.", key.replace(".shortcut.", ".downsample.")) for key in keys
        }, {}
    return _vit(keys), {}


def _vit(keys: list[str]) -> Renamed:
    """DINOv2's chunks of blocks and its gated MLP; DeiT-III's layer scale (BEiT, EVA, CaiT and XCiT keep that name)."""
    chunked = any(re.match(r"blocks\.\d+\.\d+\.norm1\.", key) for key in keys)
    others = re.compile(r".*(blocks_token_only|q_bias|relative_position|gamma3|local_mp)|reg_token|fc_norm")
    plain = "pos_embed" in keys and not any(map(others.match, keys))
    rules = [(r"blocks\.\d+\.(\d+)\.", r"blocks.\1.")] if chunked else []
    rules += [(r"(blocks\.\d+)\.gamma_([12])", r"\1.ls\2.gamma")] if plain else []
    rules += [(r"(blocks\.\d+\.mlp)\.w12\.", r"\1.fc1."), (r"(blocks\.\d+\.mlp)\.w3\.", r"\1.fc2.")]
    renamed = {key: key for key in keys}
    for pattern, name in rules:
        renamed = {key: re.sub(f"^{pattern}", name, new) for key, new in renamed.items()}
    return renamed if len(set(renamed.values())) == len(keys) else {key: key for key in keys}


def _sequential(keys: list[str], conv: int, layers: int) -> Renamed:
    """Numbered children: stem convolution, stem batch norm, four stages; what stands around keeps its number."""
    names = {conv: "conv1", conv + 1: "bn1", **{layers + stage: f"layer{stage + 1}" for stage in range(4)}}
    if conv == 1:
        names = {number: f"resnet.{name}" for number, name in names.items()} | {0: "input_norm", 7: "last"}
    renamed = {}
    for key in keys:
        number, _, rest = key.partition(".")
        name = names.get(int(number)) if number.isdigit() else None
        renamed[key] = f"{name}.{rest}".replace(".shortcut.", ".downsample.") if name else key
    return renamed


def _simclr_v2(keys: list[str]) -> Renamed:
    """``net.GROUP.blocks.BLOCK.net.INDEX``: convolutions at even places, batch norms in a pair with their ReLU."""
    rules: list[tuple[str, Any]] = [
        (r"net\.0\.0\.weight", lambda m: "conv1.weight"),
        (r"net\.0\.1\.0\.(.*)", lambda m: f"bn1.{m[1]}"),
        (
            r"net\.(\d)\.blocks\.(\d+)\.projection\.shortcut\.(.*)",
            lambda m: f"layer{m[1]}.{m[2]}.downsample.0.{m[3]}",
        ),
        (
            r"net\.(\d)\.blocks\.(\d+)\.projection\.bn\.0\.(.*)",
            lambda m: f"layer{m[1]}.{m[2]}.downsample.1.{m[3]}",
        ),
        (
            r"net\.(\d)\.blocks\.(\d+)\.net\.([024])\.weight",
            lambda m: f"layer{m[1]}.{m[2]}.conv{int(m[3]) // 2 + 1}.weight",
        ),
        (
            r"net\.(\d)\.blocks\.(\d+)\.net\.([135])\.0\.(.*)",
            lambda m: f"layer{m[1]}.{m[2]}.bn{int(m[3]) // 2 + 1}.{m[4]}",
        ),
    ]
    renamed = {}
    for key in keys:
        for pattern, name in rules:
            if match := re.fullmatch(pattern, key):
                renamed[key] = name(match)
                break
        else:
            renamed[key] = key
    return renamed


# Two keys that together say: behind this prefix stands a backbone.
SIGNS = (
    ("conv1.weight", "layer1.0.conv1.weight"),
    ("conv1.0.weight", "layer1.0.conv1.weight"),
    ("0.weight", "4.0.conv1.weight"),
    ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
    ("patch_embed.proj.weight", "blocks.0.0.attn.qkv.weight"),  # DINOv2's chunks
    ("conv1.weight", "block1.layer.0.conv1.weight"),
)
FEWEST, DEEPEST, MOST = 12, 5, 200  # keys of a network, parts of its prefix, prefixes that are tried

# What wrappers add to a key, as whole parts of it: DistributedDataParallel and AveragedModel, torch.compile, FSDP,
# activation checkpointing.
WRAPPERS = re.compile(r"module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_fpw_module")


def without_wrappers(keys: Iterable[str]) -> dict[str, str]:
    """Key without the wrappers' parts -> key; where two would become one, they are left as they are."""
    keys = list(keys)
    plain = [".".join(part for part in key.split(".") if not WRAPPERS.fullmatch(part)) or key for key in keys]
    twice = {name for name, count in Counter(plain).items() if count > 1}
    return {key if name in twice else name: key for name, key in zip(plain, keys, strict=True)}


def find_prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """The prefixes behind which backbones stand, by keys that only they have or by the index of architectures."""
    found = set()
    for first, second in SIGNS:
        for key in state:
            if key.endswith(first) and (prefix := key.removesuffix(first)) + second in state:
                found.add(prefix)
    found = {prefix for prefix in found if not prefix or prefix.endswith(".")}
    if not found:
        counts: Counter[str] = Counter("" for _ in state)
        for key in state:
            parts = key.split(".")
            counts.update(".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), DEEPEST)))
        tried = [prefix for prefix, count in counts.items() if FEWEST <= count <= LARGEST]
        for prefix in sorted(tried, key=lambda prefix: (prefix.count("."), prefix))[:MOST]:
            inside = any(prefix.startswith(known) for known in found)
            if not inside and lookup(below(state, prefix)):
                found.add(prefix)
        inner = tuple(found)
        for prefix in {
            name for name in tried if inner and any(one.startswith(name) for one in inner)
        } - found:
            own = {key: value for key, value in state.items() if not key.startswith(inner)}
            if lookup(below(own, prefix)):  # a network around a copy of itself
                found.add(prefix)
    return sorted(found)


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state behind a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def matching_prefixes(state: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """The prefixes behind which most of the wanted names stand, those with the most of them."""
    keys, wanted = set(state), [name for name in wanted if not name.endswith("num_batches_tracked")]
    if not wanted:
        return []
    starts = {key.removesuffix(name) for name in wanted[:3] for key in keys if key.endswith(name)}
    scores = {
        prefix: sum(prefix + name in keys for name in wanted)
        for prefix in starts
        if not prefix or prefix.endswith(".")
    }
    best = max(scores.values(), default=0)
    return (
        sorted(prefix for prefix, score in scores.items() if score == best) if 2 * best >= len(wanted) else []
    )


def join_heads(head: dict[str, str]) -> dict[str, str]:
    """VISSL's heads one after the other: ``0.clf.0``, ``1.clf.0`` become ``0`` and, behind a ReLU, ``2``."""
    pattern = re.compile(r"(\d+)\.(?:clf|projection_head)\.(\d+)\.(\w+)")
    found = {name: match for name in head if (match := pattern.fullmatch(name))}
    joined: dict[str, str] = {}
    offset = 0
    for number in sorted({int(match[1]) for match in found.values()}):
        mine = {name: match for name, match in found.items() if int(match[1]) == number}
        for name, match in mine.items():
            joined[f"{offset + int(match[2])}.{match[3]}"] = head[name]
        offset += max(int(match[2]) for match in mine.values()) + 2
    return joined
