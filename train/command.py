"""The command line of a run: python -m train.pretrain RECIPE."""

from collections.abc import Sequence
from pathlib import Path

from lipcomp.commands import Parser, choose_device
from train.pretrain import pretrain
from train.recipe import change
from train.recipes import RECIPES, find_recipe
from train.settings import DTYPES, Settings

EPILOG = """
examples:
  python -m train.pretrain mnist_c_simclr --seed 0
  python -m train.pretrain cifar10_c_byol --data-root /data --precision bf16 --compile --tensorboard
  python -m train.pretrain imagenet100_c_simclr --data /data/imagenet100 --set epochs=100 --set objective.beta=0.3
  torchrun --nproc-per-node 8 -m train.pretrain imagenet_c_byol_1000 --data /data/imagenet --precision bf16
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one encoder from the command line."""
    parser = Parser(
        prog="python -m train.pretrain",
        description="Train one encoder; go on where a run was stopped.",
        epilog=EPILOG,
    )
    parser.add_argument("recipe", help=f"one of: {', '.join(RECIPES)}")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of weights, order, views and noise (default 0)"
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/RECIPE-SEED)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field, as objective.beta=0.3",
    )
    parser.add_argument("--epochs", help="short for --set epochs=N")
    parser.add_argument("--data", help="another training set: a name or a folder (short for --set data=NAME)")
    parser.add_argument("--data-root", type=Path, help="where CIFAR lies")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    parser.add_argument(
        "--precision", choices=DTYPES, default="fp32", help="autocast to bf16 or fp16 (default fp32)"
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        default=1,
        help="parts of a batch passed one after the other; batch norm and negatives then see one part",
    )
    parser.add_argument("--compile", action="store_true", help="compile the backbones (torch.compile)")
    parser.add_argument("--no-channels-last", action="store_true", help="keep the channels first in memory")
    parser.add_argument(
        "--workers", type=int, default=0, help="threads that decode images (default one a core)"
    )
    parser.add_argument("--save-steps", type=int, help="steps between two states (default one epoch)")
    parser.add_argument("--keep-epochs", type=int, help="keep an encoder every so many epochs")
    parser.add_argument(
        "--evaluate-epochs", type=int, help="epochs between held-out measurements; 0 for none"
    )
    parser.add_argument(
        "--log-steps", type=int, default=10, help="steps between two writes of metrics (default 10)"
    )
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard's event files")
    parser.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases")
    options = parser.parse_args(arguments)

    recipe = find_recipe(options.recipe)
    changes = list(options.set)
    changes += [
        f"{name}={value}" for name in ("epochs", "data") if (value := getattr(options, name)) is not None
    ]
    for text in changes:
        path, found, value = text.partition("=")
        if not found:
            raise ValueError(f"--set needs FIELD=VALUE, got {text!r}; for example --set objective.beta=0.3")
        recipe = change(recipe, path, value)
    settings = Settings(
        device=choose_device(options.device),
        data_root=options.data_root,
        precision=options.precision,
        accumulate=options.accumulate,
        compile=options.compile,
        channels_last=not options.no_channels_last,
        workers=options.workers,
        save_steps=options.save_steps,
        keep_epochs=options.keep_epochs,
        evaluate_epochs=options.evaluate_epochs,
        log_steps=options.log_steps,
        skip_unreadable=options.skip_unreadable,
        tensorboard=options.tensorboard,
        wandb=options.wandb,
    )
    out = options.out or Path("runs") / f"{recipe.name}-{options.seed}"
    print(pretrain(recipe, options.seed, out, settings))
    return 0
