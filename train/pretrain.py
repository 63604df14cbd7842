"""Train one encoder. The whole method, top to bottom.

    python -m train.pretrain mnist_c_simclr --seed 0 --out runs/c_simclr-0

Every random number of a run belongs to one of four streams (weights, order, views, noise), and each step draws
from a generator seeded by (seed, stream, step) alone. So two runs of one seed share weights, order and views
whatever their objectives draw, and a run resumed at any epoch needs no generator state to continue bitwise.

Into the folder go ``model.safetensors`` (the encoder, when training ends), ``metrics.jsonl`` (a line a step and an
epoch) and, while it runs, ``state.pt`` (weights and optimiser after the last whole epoch).
"""

import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

import lipcomp
from lipcomp.checkpoints import Metadata, save_checkpoint
from lipcomp.checkpoints.native import atomic_file
from lipcomp.commands import Parser, choose_device, run
from lipcomp.data import ImageSet, load_set
from lipcomp.encoders import Encoder, MLPHead, build_encoder
from lipcomp.objectives import Loss
from train.recipes import RECIPES, Recipe, find_recipe

Report = Callable[[str], None]


def stream(seed: int, name: str, step: int) -> Generator:
    """The generator of one step of one stream."""
    digest = hashlib.blake2b(f"{seed}/{name}/{step}".encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Trainee(nn.Module):
    """The networks of a run: the encoder, and for BYOL its slow target and (C-BYOL) the backward encoder's head."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__()
        self.online = build_encoder(recipe.encoder, seed=seed)
        self.target: Encoder | None = None
        self.backward_head: nn.Module | None = None
        if recipe.objective.family == "byol":
            spec = dataclasses.replace(recipe.encoder, predictor=None, decoder=False)
            self.target = build_encoder(spec, seed=seed).requires_grad_(False)
            hidden, out = recipe.encoder.projector or (256, 64)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.backward_head = MLPHead(out, hidden, out)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the target's weights towards the online network's. Batch norm statistics are the target's own."""
        if self.target is not None:
            online = dict(self.online.named_parameters())
            for name, parameter in self.target.named_parameters():
                parameter.lerp_(online[name], 1 - decay)


def compute_loss(
    trainee: Trainee, recipe: Recipe, view1: Tensor, view2: Tensor, generator: Generator
) -> Loss:
    """One forward pass of the method."""
    encoder, objective = trainee.online, recipe.objective
    if objective.family == "simclr":
        return objective(*encoder.embedding(torch.cat([view1, view2])).chunk(2), generator=generator)
    assert trainee.target is not None
    return objective(
        *(encoder.embedding(view) for view in (view1, view2)),
        *(trainee.target.embedding(view) for view in (view1, view2)),
        decoder=encoder.decoder,
        backward_head=trainee.backward_head,
        generator=generator,
    )


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def target_decay(step: int, total: int, start: float) -> float:
    """BYOL's moving average: from ``start`` to 1 along a cosine."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * step / total))


def build_optimizer(trainee: Trainee, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices and kernels alone."""
    trained = [p for p in trainee.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def epoch_order(images: ImageSet, recipe: Recipe, seed: int, epoch: int) -> Iterator[Tensor]:
    """The batches of an epoch, as indices; the last incomplete one is dropped."""
    order = torch.randperm(len(images), generator=stream(seed, "order", epoch))
    whole = len(images) // recipe.batch_size * recipe.batch_size
    yield from order[:whole].split(recipe.batch_size)


def pretrain(
    recipe: Recipe,
    seed: int,
    out: Path,
    *,
    device: torch.device | None = None,
    data_root: Path | None = None,
    report: Report = lambda line: print(line, flush=True),
) -> Path:
    """Train, and return the path of the checkpoint. A run that was interrupted goes on after its last whole epoch.

    Raises
    ------
    FloatingPointError
        If the loss is not finite. The state of the last whole epoch is kept.
    ValueError
        If the data does not fit the recipe, or the folder holds a run of another recipe or seed.
    """
    checkpoint, state_file, metrics_file = out / "model.safetensors", out / "state.pt", out / "metrics.jsonl"
    if checkpoint.exists():
        return checkpoint
    device = device or torch.device("cpu")
    images = load_set(recipe.data, "train", root=data_root, image_shape=recipe.encoder.image_shape)
    steps_an_epoch = len(images) // recipe.batch_size
    if steps_an_epoch == 0:
        raise ValueError(
            f"batch_size {recipe.batch_size} is larger than the {len(images)} images of {images.name}"
        )
    total, warmup = recipe.epochs * steps_an_epoch, round(recipe.warmup_epochs * steps_an_epoch)
    peak = recipe.learning_rate * recipe.batch_size / 256

    trainee = Trainee(recipe, seed).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = build_optimizer(trainee, recipe)
    out.mkdir(parents=True, exist_ok=True)
    first_epoch = restore(state_file, recipe, seed, trainee, optimizer)
    keep_lines(metrics_file, first_epoch)
    started, metrics = time.monotonic(), dict[str, float]()

    for epoch in range(first_epoch, recipe.epochs):
        lines, epoch_started = [], time.monotonic()
        for number, indices in enumerate(epoch_order(images, recipe, seed, epoch)):
            step = epoch * steps_an_epoch + number
            pixels = images.batch(indices).to(device)
            view1, view2 = recipe.views(pixels, stream(seed, "views", step))
            rate = learning_rate(step, total, warmup, peak)
            for group in optimizer.param_groups:
                group["lr"] = rate

            loss = compute_loss(trainee, recipe, view1, view2, stream(seed, "noise", step))
            if not torch.isfinite(loss.value):
                append(metrics_file, lines)
                raise FloatingPointError(
                    f"the loss of {recipe.name} (seed {seed}) became {loss.value.item()} at step {step} (epoch "
                    f"{epoch}); the state before this epoch is kept in {state_file}. Lower learning_rate (now "
                    f"{recipe.learning_rate}), or look at the images of that step"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.value.backward()
            optimizer.step()
            decay = target_decay(step, total, recipe.target_decay)
            trainee.follow(decay)

            metrics = {
                "loss": loss.value.item(),
                **{name: value.item() for name, value in loss.metrics.items()},
            }
            lines.append(
                {"epoch": epoch, "step": step, "learning_rate": rate, "target_decay": decay, **metrics}
            )
        append(metrics_file, lines)
        save_state(state_file, recipe, seed, epoch + 1, trainee, optimizer)
        speed = steps_an_epoch * recipe.batch_size / (time.monotonic() - epoch_started)
        left = (time.monotonic() - started) / (epoch + 1 - first_epoch) * (recipe.epochs - epoch - 1)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in list(metrics.items())[:3])
        report(
            f"{recipe.name} seed {seed}: epoch {epoch + 1}/{recipe.epochs}  {shown}  {speed:.0f} images/s  {left:.0f} s left"
        )

    metadata = Metadata(
        objective=recipe.objective.to_dict(),
        recipe=recipe.to_dict(),
        data={"name": images.name, "content_hash": images.content_hash(), "images": len(images)},
        seed=seed,
        epochs=recipe.epochs,
        code_version={"lipcomp": lipcomp.__version__, "torch": torch.__version__},
        metrics=metrics,
    )
    save_checkpoint(checkpoint, trainee.online.to(memory_format=torch.contiguous_format), metadata)  # type: ignore[call-overload]
    state_file.unlink(missing_ok=True)
    return checkpoint


# The state of a run between epochs.


def save_state(
    file: Path, recipe: Recipe, seed: int, epoch: int, trainee: Trainee, optimizer: torch.optim.Optimizer
) -> None:
    """Write weights and optimiser after a whole epoch; atomically."""
    state = {
        "recipe": json.dumps(recipe.to_dict(), sort_keys=True),
        "seed": seed,
        "epoch": epoch,
        "trainee": trainee.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with atomic_file(file) as temporary:
        torch.save(state, temporary)


def restore(file: Path, recipe: Recipe, seed: int, trainee: Trainee, optimizer: torch.optim.Optimizer) -> int:
    """Load a state into the networks and the optimiser; return the epoch to go on with (0 without a state)."""
    if not file.exists():
        return 0
    state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    if state["recipe"] != json.dumps(recipe.to_dict(), sort_keys=True) or state["seed"] != seed:
        raise ValueError(
            f"{file.parent} holds an unfinished run of another recipe or seed; take another folder"
        )
    trainee.load_state_dict(state["trainee"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])


def append(file: Path, lines: Sequence[dict[str, float]]) -> None:
    """Add lines of JSON."""
    with file.open("a") as handle:
        handle.write("".join(json.dumps(line) + "\n" for line in lines))


def keep_lines(file: Path, epochs: int) -> None:
    """Drop the metrics of epochs that will be trained again."""
    if file.exists():
        with atomic_file(file) as temporary:
            text = file.read_text().splitlines()
            temporary.write_text("".join(line + "\n" for line in text if json.loads(line)["epoch"] < epochs))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one encoder from the command line."""
    parser = Parser(prog="python -m train.pretrain", description=__doc__)
    parser.add_argument("recipe", help=f"one of: {', '.join(RECIPES)}")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of weights, order, views and noise (default 0)"
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/RECIPE-SEED)")
    parser.add_argument("--epochs", type=int, help="another length than the recipe's")
    parser.add_argument("--data", help="another training set: a name or a folder")
    parser.add_argument("--data-root", type=Path, help="where CIFAR lies")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    options = parser.parse_args(arguments)
    recipe = find_recipe(options.recipe)
    changes = {name: value for name in ("epochs", "data") if (value := getattr(options, name)) is not None}
    recipe = dataclasses.replace(recipe, **changes)
    out = options.out or Path("runs") / f"{recipe.name}-{options.seed}"
    path = pretrain(
        recipe, options.seed, out, device=choose_device(options.device), data_root=options.data_root
    )
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
