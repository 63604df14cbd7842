"""Vision transformers read off their weights, built by timm (the extra ``timm``).

The names are timm's ``VisionTransformer``, which DINO, MoCo v3 and DINOv2 share. Shapes give width, depth, patch,
image size and what else there is; the number of heads they do not give, since one matrix holds all of them: 64
features per head is the rule of DINO and of timm's named models but the largest, MoCo v3's ViT-S has twelve of 32.

The pooled feature is the class token after the last layer norm.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipcomp.checkpoints._backbone import Backbone, State, import_timm
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._settings import disagreement

USUAL = (192, 384, 768, 1024)  # widths whose heads have 64 features in every library
# widths that have 16 heads in every library: SO-400M, huge, giant, gigantic
SIXTEEN = (1152, 1280, 1408, 1664)


def prepare_vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2's names and habits in timm's: register tokens, and no position for the class token beside them."""
    state = dict(state)
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
        positions = state["pos_embed"]
        if positions.ndim == 3 and positions.shape[1] > 1 and "cls_token" in state:
            state["cls_token"] = state["cls_token"] + positions[:, :1]
            state["pos_embed"] = positions[:, 1:]
    return state


def heads_of(conventions: Mapping[str, Any], state: State) -> int | None:
    """The number of heads that a format or a configuration says for a width; None where neither does."""
    heads, patch = conventions.get("heads"), state.get("patch_embed.proj.weight")
    if isinstance(heads, Mapping):
        return None if patch is None else heads.get(int(patch.shape[0]))
    return heads


def read_vit(state: State, conventions: Mapping[str, Any]) -> Backbone | None:
    """The ViT whose weights these are; None if they are of another family.

    Raises
    ------
    CheckpointError
        If it is a ViT of a kind that needs its name (a gated or convolutional one).
    """
    if (
        "patch_embed.proj.weight" not in state
        or "pos_embed" not in state
        or "blocks.0.attn.qkv.weight" not in state
    ):
        return None
    patch, positions = state["patch_embed.proj.weight"], state["pos_embed"]
    if patch.ndim != 4 or positions.ndim != 3 or "blocks.0.mlp.fc1.weight" not in state:
        raise CheckpointError(
            "the weights are of a vision transformer of a particular kind (gated MLP or other patches); name it "
            "with arch= (vit_giant_patch14_dinov2 and so on)"
        )
    timm = import_timm("a vision transformer, which timm builds,")
    width, channels = int(patch.shape[0]), int(patch.shape[1])
    registers = int(state["reg_token"].shape[1]) if "reg_token" in state else 0
    class_token = "cls_token" in state
    # with positions of their own, or without as DINOv2's and DeiT-III's
    tokens = registers + int(class_token)
    prefixes = (0, tokens) if registers else (tokens, 0)
    count, sides = positions.shape[1], patch.shape[2:]
    configured = conventions.get("native_size")
    asked = configured or conventions.get("image_size")
    shapes = [(n, asked) for n in prefixes if asked]
    if not configured:
        shapes += [(n, tuple(math.isqrt(max(count - n, 0)) * side for side in sides)) for n in prefixes]
    fitting = [
        (n, shape) for n, shape in shapes if (shape[0] // sides[0]) * (shape[1] // sides[1]) + n == count
    ]
    if not fitting:
        raise CheckpointError(
            f"the ViT has {count} positions, which make up no square image (a distilled one has a token more) nor "
            f"what its config.json says; pass image_size=(height, width) if its images are not square, name its "
            f"architecture with arch=, or give the folder with its config.json"
        )
    prefix, native = fitting[0]
    size = conventions.get("image_size") or native
    if size[0] % patch.shape[2] or size[1] % patch.shape[3]:
        raise CheckpointError(
            f"images of {size} do not divide into the ViT's patches of {tuple(patch.shape[2:])}"
        )
    activation = conventions.get("hidden_act", None if "norm_pre.weight" in state else "gelu")
    if activation is None:
        raise CheckpointError(
            "ambiguous: the weights are of a CLIP with QuickGELU, as OpenAI's, or with GELU, as LAION's, which its "
            "config.json (OpenCLIP's open_clip_config.json) says; give the folder in which both lie, or pass arch= "
            "(timm/vit_base_patch32_clip_224, timm/vit_base_patch32_clip_quickgelu_224 or the like)"
        )
    heads = heads_of(conventions, state)
    known = heads is not None
    unusual = width % 64 if not conventions.get("configured") else width not in USUAL
    if not known and unusual and width not in SIXTEEN:
        raise CheckpointError(
            f"ambiguous: a ViT of width {width} may have {max(1, width // 64)} heads or others, which its config.json "
            f"says; give the folder in which both lie, pass arch=, or build it yourself (lipcomp.wrap)"
        )
    heads = int(heads or (16 if width in SIXTEEN else width // 64))
    if width % heads:
        raise CheckpointError(
            f"a ViT of width {width} cannot have {heads} heads; name its architecture with arch="
        )
    pool = conventions.get("global_pool") or ("token" if class_token else "avg")
    epsilon = float(conventions.get("layer_norm_eps", 1e-6))
    if not known and (said := disagreement(conventions.get("said", {}), heads, epsilon, pool)):
        raise CheckpointError(
            f"ambiguous: the settings in the file say {said}, which the weights of a vision transformer do not show; "
            f"pass arch=, give the folder with its config.json, or build the network yourself (lipcomp.wrap)"
        )
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    for number in range(depth):  # before anything is allocated for a claim
        for part, shape in (
            ("attn.qkv", (3 * width, width)),
            ("mlp.fc1", (hidden, width)),
            ("mlp.fc2", (width, hidden)),
        ):
            have = state.get(f"blocks.{number}.{part}.weight")
            if have is None or tuple(have.shape) != shape:
                raise CheckpointError(
                    f"the weights are of no plain vision transformer: blocks.{number}.{part}.weight "
                    f"{'is not there' if have is None else f'is {tuple(have.shape)}'}, not {shape}"
                )
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=size,
        patch_size=tuple(patch.shape[2:]),
        in_chans=channels,
        num_classes=0,
        global_pool=pool,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=hidden / width,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        init_values=1.0 if "blocks.0.ls1.gamma" in state else None,
        class_token=class_token,
        no_embed_class=prefix < tokens,
        reg_tokens=registers,
        pre_norm="norm_pre.weight" in state,
        fc_norm="fc_norm.weight" in state,
        act_layer=timm.layers.get_act_layer(activation),
    )
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = epsilon
    told = (
        f"{heads} heads of {width // heads}",
        f"layer norms with epsilon {epsilon:g} before each part",
        "GELU",
    )
    notes: tuple[str, ...] = (
        () if known else (f"assumed, since a ViT's weights do not say it: {', '.join(told)}",)
    )
    notes += (f"pooled by {'the class token' if pool == 'token' else 'the mean over patches'}",)
    if tokens and not registers and not prefix:
        notes += ("the class token has no position, as DeiT-III's",)
    name = f"vit_{width}x{len(network.blocks)}_patch{patch.shape[2]}"
    return Backbone(name, network, ("head", "head_dist"), None, size, notes)


def resize_positions(network: nn.Module, state: dict[str, Tensor], antialias: bool) -> str | None:
    """Resample the position embeddings in ``state`` to the network's grid, where the checkpoint's differs.

    Bicubic, as timm does with antialiasing and transformers without. Returns a note, or None if nothing was done.
    """
    wanted, have = dict(network.named_parameters()).get("pos_embed"), state.get("pos_embed")
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if wanted is None or have is None or grid is None or have.ndim != 3 or have.shape == wanted.shape:
        return None
    prefix = wanted.shape[1] - grid[0] * grid[1]
    side = math.isqrt(max(have.shape[1] - prefix, 0))
    if math.prod(grid) > 64 * max(have.shape[1], 256):
        raise CheckpointError(
            f"images of {grid[0]} x {grid[1]} patches need a position table 64 times the file's {side} x {side}; "
            "give a smaller image_size="
        )
    if (
        not 0 <= prefix <= getattr(network, "num_prefix_tokens", 1)
        or side * side + prefix != have.shape[1]
        or side == 0
    ):
        return None
    tokens, places = have[:, :prefix].float(), have[:, prefix:].float()
    places = places.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    places = functional.interpolate(places, grid, mode="bicubic", align_corners=False, antialias=antialias)
    state["pos_embed"] = torch.cat([tokens, places.flatten(2).transpose(1, 2)], 1)
    return f"position embeddings resampled from {side}x{side} to {grid[0]}x{grid[1]} patches"
