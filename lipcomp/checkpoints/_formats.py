"""The keys of other libraries' checkpoints, as a table: the prefix of the backbone, those of the heads, and the rest.

A row is recognised by its ``marks``, patterns that each match at the beginning of some key; rows are tried from
top to bottom, so the particular stand above the general. The wrapper's own ``module.`` (DistributedDataParallel)
and ``_orig_mod.`` (torch.compile) are taken off before, where every key has them.

Prefixes are matched as prefixes. Solo-learn's ``momentum_backbone.`` contains ``backbone.``, and
``str.lstrip("backbone.")`` eats the first letters of ``bn1``; both have cost people months of wrong features.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lipcomp.checkpoints._preprocessing import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD

# prefixes of backbone, projector, predictor
Branch = tuple[str | tuple[str, ...], tuple[str, ...], tuple[str, ...]]

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
CIFAR = (CIFAR_MEAN, CIFAR_STD)
PIXELS = ((0.0,), (1.0,))


@dataclass(frozen=True)
class Format:
    """One row: how one family of checkpoints names its parts."""

    name: str  # what ``format=`` takes
    writer: str  # whose files these are
    # patterns; each must match at the beginning of some key. Empty: never recognised, only forced
    marks: tuple[str, ...]
    # branch name -> prefixes (backbone, projector, predictor); the first of several prefixes that occurs is taken.
    # "online" is the network that is trained, "momentum" its moving average
    branches: Mapping[str, Branch]
    activation: str = "relu"  # between the layers of the heads
    # what the weights do not show (see :mod:`lipcomp.checkpoints._architectures`)
    conventions: Mapping[str, Any] = field(default_factory=dict)
    # (mean, std) that this family trains with; at CIFAR's size, ``small`` instead
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    small: tuple[tuple[float, ...], tuple[float, ...]] = CIFAR

    def fits(self, keys: Mapping[str, Any]) -> bool:
        """Whether every mark is found among the keys."""
        patterns = [re.compile(mark) for mark in self.marks]
        return bool(patterns) and all(any(pattern.match(key) for key in keys) for pattern in patterns)

    def prefix_of(self, branch: str, keys: Mapping[str, Any]) -> str | None:
        """The backbone's prefix of a branch that occurs among the keys; None if none does."""
        prefixes = self.branches[branch][0] if branch in self.branches else ()
        prefixes = (prefixes,) if isinstance(prefixes, str) else prefixes
        return next((p for p in prefixes if any(prefix_pattern(p).match(key) for key in keys)), None)

    def usual(self, keys: Mapping[str, Any]) -> str:
        """The branch that the authors evaluate: DINO's teacher, otherwise the network that is trained."""
        dino = any("last_layer." in key for key in keys)
        other = self.prefix_of("momentum", keys)
        return "momentum" if dino and other and other != self.prefix_of("online", keys) else "online"


def _row(
    name: str,
    writer: str,
    marks: tuple[str, ...],
    backbone: str | tuple[str, ...],
    projector: tuple[str, ...] = (),
    predictor: tuple[str, ...] = (),
    momentum: Branch | None = None,
    **more: Any,
) -> Format:
    branches: dict[str, Branch] = {"online": (backbone, projector, predictor)}
    if momentum is not None:
        branches["momentum"] = momentum
    return Format(name, writer, marks, branches, **more)


FORMATS: tuple[Format, ...] = (
    _row(
        "moco",
        "MoCo v1, v2",
        (r"encoder_q\.",),
        "encoder_q.",
        ("encoder_q.fc.",),
        momentum=("encoder_k.", ("encoder_k.fc.",), ()),
    ),
    _row(
        "moco-v3",
        "MoCo v3, ResNet and ViT",
        (r"base_encoder\.",),
        "base_encoder.",
        ("base_encoder.fc.", "base_encoder.head."),
        ("predictor.",),
        ("momentum_encoder.", ("momentum_encoder.fc.", "momentum_encoder.head."), ()),
        conventions={"heads": {192: 12, 384: 12, 768: 12, 1024: 16}},
    ),
    _row(
        "simsiam",
        "SimSiam",
        (r"encoder\.fc\.0\.", r"predictor\.0\."),
        "encoder.",
        ("encoder.fc.",),
        ("predictor.",),
    ),
    _row(
        "vissl",
        "VISSL",
        (r"(trunk\.)?(base_model\.)?_feature_blocks\.",),
        r"(trunk\.)?(base_model\.)?_feature_blocks\.",
        ("heads.",),
    ),
    _row(
        "lightly-train",
        "LightlyTrain .ckpt",
        (r"(student_|teacher_)?embedding_model\.wrapped_model\.",),
        r"(student_)?embedding_model\.wrapped_model\.(_features\.|_model\.)?",
        (r"(student_)?projection_head\.layers\.",),
        (r"(student_)?prediction_head\.layers\.",),
        (
            r"teacher_embedding_model\.wrapped_model\.(_features\.|_model\.)?",
            (r"teacher_projection_head\.layers\.",),
            (),
        ),
    ),
    _row(
        "lightly-zoo",
        "lightly's old zoo",
        (r"model\.backbone\.\d",),
        "model.backbone.",
        ("model.projection_head.layers.", "model.projection_head."),
    ),
    _row(
        "lightly",
        "lightly, Lightning .ckpt",
        (
            r"(student_|teacher_)?backbone\.",
            r"(student_|teacher_)?(projection_head|prediction_head|head|dino_head)\.layers\.",
        ),
        # lightly's benchmarks call DINO's teacher backbone; its masked transformers wrap a vit
        (r"student_backbone\.(vit\.)?", r"backbone\.(vit\.)?"),
        (
            "student_projection_head.layers.",
            r"student_(dino_)?head\.layers\.",
            "projection_head.layers.",
        ),
        ("student_prediction_head.layers.", "prediction_head.layers."),
        (
            (r"teacher_backbone\.(vit\.)?", "backbone_momentum.", r"backbone\.(vit\.)?"),
            (
                "teacher_projection_head.layers.",
                r"teacher_(dino_)?head\.layers\.",
                "projection_head_momentum.layers.",
                "projection_head.layers.",
            ),
            (),
        ),
    ),
    _row(
        "solo-learn",
        "solo-learn, Lightning .ckpt",
        (
            r"(backbone|encoder)\.(conv1|0|cls_token|patch_embed|layer1|stem|stages|downsample_layers)",
            r"classifier\.|momentum_(backbone|projector|head|classifier|encoder\.(?!\d))",
        ),
        r"(backbone|encoder)\.",
        ("projector.", "head.mlp."),
        ("predictor.",),
        (r"momentum_(backbone|encoder)\.", ("momentum_projector.", "momentum_head.mlp."), ()),
        conventions={"stem_padding": 2},
    ),
    _row(
        "dino",
        "DINO, full checkpoint",
        (r"backbone\.", r"head\.(mlp|last_layer)\."),
        "backbone.",
        ("head.mlp.",),
        activation="gelu",
    ),
    _row(
        "swav",
        "SwAV, DeepCluster-v2",
        (r"conv1\.", r"prototypes"),
        "",
        ("projection_head.",),
    ),
    _row(
        "mmselfsup",
        "MMSelfSup, MMPretrain",
        (r"backbone\.(?!body\.|fpn\.)", r"(neck|head)\."),
        "backbone.",
        (r"neck\.mlp\.",),
    ),
    _row(
        "barlow-twins",
        "Barlow Twins, full checkpoint",
        (r"backbone\.", r"projector\.\d", r"bn\.running_mean"),
        "backbone.",
        ("projector.",),
    ),
    _row(
        "vicreg",
        "VICReg, full checkpoint; stable-pretraining .ckpt",
        (r"backbone\.", r"projector\."),
        "backbone.",
        ("projector.",),
        ("predictor.",),
    ),
    _row(
        "byol-pytorch",
        "sthalles/PyTorch-BYOL",
        (r"encoder\.0\.", r"proje(c)?tion\.net\."),
        "encoder.",
        (r"proje(c)?tion\.net\.",),
    ),
    _row(
        "simclr-pytorch",
        "sthalles/SimCLR",
        (r"backbone\.conv1\.", r"backbone\.fc\.0\."),
        "backbone.",
        ("backbone.fc.",),
    ),
    _row(
        "simclr-v2-pytorch",
        "Separius/SimCLRv2-Pytorch",
        (r"(resnet\.)?net\.0\.0\.weight",),
        r"(resnet\.)?",
        ("head.layers.",),
        normalisation=PIXELS,
        small=PIXELS,
    ),
    _row(
        "robustbench",
        "RobustBench's zoo",
        (
            r"(normalize\.(mean|std)|(model\.)?(mu|sigma|block1\.layer\.0\.conv1\.weight))$|(model\.)?layer2\.0\.shortcut\.",
        ),
        r"(model\.)?",
        normalisation=PIXELS,
        small=PIXELS,
    ),
    # Forced by name only: their files carry torchvision's bare names.
    _row(
        "byol-converted",
        "byol-convert, from DeepMind's JAX files",
        (),
        "",
        conventions={"pool_padding": "same"},
    ),
    _row(
        "simclr-converted",
        "simclr-converter, from SimCLR's TensorFlow files",
        (),
        "",
        normalisation=PIXELS,
        small=PIXELS,
    ),
    _row("plain", "torchvision, timm, and bare backbones", (r".",), ""),
)

# Containers whose keys arrive translated.
TENSORFLOW = _row(
    "tensorflow",
    "Lee et al. 2021, SimCLR v1 and v2, TensorFlow",
    (),
    "backbone.",
    ("projector.",),
    ("predictor.",),
    ("momentum_backbone.", ("momentum_projector.",), ("momentum_predictor.",)),
    conventions={"pool_padding": "tensorflow"},
)
HUGGINGFACE = _row("huggingface", "transformers, save_pretrained", (), "", small=IMAGENET)
EXPORTED = _row(
    "exported", "lipcomp's export to safetensors", (), "backbone.", ("projector.",), ("predictor.",)
)

NAMES = ("lipcomp", "tensorflow", "huggingface", *(row.name for row in FORMATS), "torchvision", "timm")


# What an unused key is, by its beginning; the first that matches.
REASONS: tuple[tuple[str, str], ...] = (
    (r"(.*\.)?(queue|queue_ptr)$", "MoCo's queue"),
    (r"(momentum_|teacher|target|encoder_k|.*_momentum\.)", "another branch"),
    (r"(.*\.)?(prototypes?\d*|last_layer)\b", "prototypes"),
    (r"(online_)?(classifier|knn|linear_classifier)", "classifier"),
    (r"(.*\.)?(fc|classifier|linear|head|logits|heads)\.", "classifier or head"),
    (r"(projection_head|projector|neck|heads|head|projetion|projection|proj)", "projection head"),
    (r"(prediction_head|predictor)", "prediction head"),
    (r"(normalize\.|(model\.)?(mu|sigma)$)", "normalisation, kept as mean and std"),
    (r"(.*\.)?(criterion|loss|center|temperature|logit_scale)", "part of the loss"),
    (r"(student|online)", "another branch"),
)


def prefix_pattern(prefix: str) -> re.Pattern[str]:
    """A prefix of the table as a pattern: those without backslash or bracket are meant literally."""
    return re.compile(prefix if "\\" in prefix or "(" in prefix else re.escape(prefix))


def reason(key: str, branch: str) -> str:
    """Why a key that was not used was not used."""
    for pattern, why in REASONS:
        if re.match(pattern, key):
            return why
    return f"not part of the {branch} backbone or its heads"
