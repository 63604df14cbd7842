"""Show what a checkpoint contains, or export its encoder to another format.

    python -m lipcomp.checkpoints list moco_v2_800ep_pretrain.pth.tar
    python -m lipcomp.checkpoints export moco_v2_800ep_pretrain.pth.tar --to timm --out moco_timm

No code in a checkpoint is ever executed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from lipcomp import _commands as commands
from lipcomp.checkpoints._export import TARGETS
from lipcomp.checkpoints._formats import FORMATS
from lipcomp.measure import _options as measure_options

PROGRAMS = ("torchscript", "torch-export")


def build_parser() -> commands.Parser:
    """The command's options."""
    parser = commands.Parser(prog="python -m lipcomp.checkpoints", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="print how each key of a checkpoint was read")
    measure_options.add_encoder_arguments(listing)
    export = actions.add_parser("export", help="write the encoder in another format")
    measure_options.add_encoder_arguments(export)
    # fmt: off
    export.add_argument("--to", required=True, choices=tuple(TARGETS), help="target format")
    export.add_argument("--out", required=True, type=Path, help="file to write; for timm and safetensors, a folder")
    export.add_argument("--layer", default="latent",
        help="output of torchscript and torch-export: backbone, projection, prediction or latent")
    # fmt: on
    actions.add_parser("formats", help="list the formats that are recognised")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """List, or export."""
    options = build_parser().parse_args(arguments)
    if options.action == "formats":
        print(commands.table(("format", "written by"), ((row.name, row.writer) for row in FORMATS)))
        return 0
    if options.action == "list":
        options.list = True
    (checkpoint, *more) = measure_options.load_listed(options)
    if more:
        raise ValueError(f"export takes one checkpoint, got {1 + len(more)}")
    layer = {"layer": options.layer} if options.to in PROGRAMS else {}
    if options.layer not in checkpoint.encoder.layers():
        raise ValueError(
            f"--layer must be one of {', '.join(checkpoint.encoder.layers())}, got {options.layer!r}"
        )
    print(TARGETS[options.to](checkpoint, options.out, **layer))
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
