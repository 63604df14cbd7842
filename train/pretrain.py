"""Train one encoder. The whole method, top to bottom.

    python -m train.pretrain mnist_c_simclr --seed 0 --out runs/c_simclr-0
    python -m train.pretrain cifar10_byol --data-root /data --set epochs=200 --precision bf16
    torchrun --nproc-per-node 8 -m train.pretrain imagenet_c_simclr_300 --data /data/imagenet --precision bf16

Every random number of a run belongs to one of five streams (weights, order, views, noise, layers such as dropout), and
each step draws from a generator seeded by (seed, stream, step) alone. So two runs of one seed share weights, order and
views whatever their objectives draw, and a run that was killed at any moment goes on bitwise without any generator's
state.

What the folder of a run holds is listed in :mod:`train.folder`.
"""

import dataclasses
import errno
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lipcomp._atomic import FULL, atomic_file, room
from lipcomp._commands import progress
from lipcomp.data._loading import ViewBatch, in_memory, view_batches
from lipcomp.data._sets import ImageSet
from lipcomp.jobs._options import available_cores
from train.data import (
    check_split,
    check_views,
    draw,
    global_generators,
    held_out_set,
    order,
    seed_globals,
    stream,
    training_set,
)
from train.folder import CHECKPOINT, DIVERGED, Keeper, find_states, held, keep_lines, tidy
from train.monitor import HeldOut, Line, Monitor, geometry, tensorboard_sink, wandb_sink
from train.networks import Step, Trainee
from train.optimizers import (
    build_optimizer,
    learning_rate,
    scale_rate,
    set_rate,
    target_decay,
    total_steps,
    warmup_steps,
)
from train.parallel import Interruption, Ranks, local_device, lost_rank, started_ranks, synchronise_batch_norm
from train.recipe import Recipe
from train.settings import DTYPES, Settings

Report = Callable[[str], None]


def pretrain(
    recipe: Recipe,
    seed: int,
    out: Path,
    settings: Settings | None = None,
    *,
    data: Any = None,
    report: Report = lambda line: print(line, flush=True),
) -> Path:
    """Train, and return the path of the checkpoint. An interrupted run continues from its last saved state.

    Parameters
    ----------
    recipe, seed
        What is trained; :func:`train.data.fit` fits a recipe to other images.
    out
        Folder of the run.
    settings
        How it is run.
    data
        Images to train on instead of the recipe's own: an image set, or a torchvision or Hugging Face dataset. A
        mapping of splits to datasets has the held-out images too. Random crops are cut from the own pixels of larger
        items, unless a preprocessing of yours reduces them first; items of a dataset are decoded in one thread, so
        give photographs as a folder or as shards.
    report
        Called with each line of progress and each warning.

    Raises
    ------
    FloatingPointError
        If the loss is not finite. The last state is kept.
    ValueError
        If the data does not fit the recipe, or the folder holds another run, or one that is training now.
    OSError
        If the folder cannot be written to, or another rank was lost. The last state is kept.
    """
    settings = settings or Settings()
    with ExitStack() as stack:
        ranks = stack.enter_context(started_ranks(settings.device))
        settings = dataclasses.replace(settings, device=local_device(settings.device))
        if not ranks.first:
            report = _silent
        images = training_set(recipe, settings, report, data)
        check_split(recipe, images, ranks, settings)
        ranks.of_first(lambda: stack.enter_context(held(out)))
        data_hash = ranks.of_first(images.content_hash)
        keeper = Keeper(recipe, seed, out, settings, images, data_hash, ranks.size)
        if (checkpoint := keeper.finished()) is not None:
            if ranks.first:  # a kill after the last write leaves them
                tidy(out)
            return checkpoint
        interruption = stack.enter_context(Interruption())
        stack.enter_context(global_generators(settings.device))
        try:
            out.mkdir(parents=True, exist_ok=True)
            return Run(recipe, seed, out, settings, ranks, images, report, keeper, data).train(interruption)
        except OSError as error:
            if error.errno not in FULL:
                raise
            what = "a file" if error.errno == errno.EFBIG else "the disk"
            raise OSError(
                f"{what} of the run's folder {str(out)!r} is full ({error.strerror}); {room(error)} and run the same "
                f"command again to continue"
            ) from error
        except RuntimeError as error:
            if not lost_rank(error, ranks):
                raise
            raise ConnectionError(
                f"another rank of this run was lost ({str(error).splitlines()[0]}); the last state is kept in "
                f"{str(out / 'states')!r}: run the same command again to continue"
            ) from error


class Run:
    """The loop, and what it carries from step to step."""

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        out: Path,
        settings: Settings,
        ranks: Ranks,
        images: ImageSet,
        report: Report,
        keeper: Keeper | None = None,
        data: Any = None,
    ) -> None:
        self.recipe, self.seed, self.out, self.settings = recipe, seed, out, settings
        self.ranks, self.report = ranks, report
        self.keeper = keeper or Keeper(recipe, seed, out, settings, images, images.content_hash(), ranks.size)
        with progress(len(images), "reading the images") as advance:
            self.images = images = in_memory(images, recipe.views, advance)
        count, batch = len(images), recipe.batch_size
        self.total = total_steps(count, batch, recipe.epochs)
        self.warmup = warmup_steps(count, batch, recipe.warmup_epochs)
        if self.warmup >= self.total and ranks.first:
            report(
                f"warning: the warm-up of {recipe.warmup_epochs:g} epochs takes the whole run of {recipe.epochs:g}, so "
                f"the learning rate never reaches its peak; set a shorter one, as in --set warmup_epochs=0"
            )
        self.peak = scale_rate(recipe.learning_rate, batch, recipe.scaling)
        self.epoch_steps = max(1, count // batch)
        evaluate = settings.evaluate_epochs
        self.evaluate_steps = self.total // 4 if evaluate is None else evaluate * self.epoch_steps

        backbone = recipe.encoder.backbone
        self.foreign = ":" in backbone or backbone.startswith("timm/")
        self.trainee = Trainee(recipe, seed, len(images.classes)).to(settings.device).train()
        if settings.channels_last:
            self.trainee.to(memory_format=torch.channels_last)
        if not type(recipe.views).__module__.startswith("lipcomp."):
            check_views(recipe.views, images, settings.device)
        each = batch // ranks.size // settings.accumulate
        self.skips = self.foreign and self.trainee.check_draws(ranks, each)
        if ranks.size > 1:
            synchronise_batch_norm(self.trainee, settings.device)
        self.optimizer = build_optimizer(self.trainee, recipe)
        self.scaler = torch.amp.GradScaler(settings.device.type, enabled=settings.precision == "fp16")
        held_out = held_out_set(recipe, settings, images, report, data) if self.evaluate_steps else None
        self.held_out = None if held_out is None else HeldOut(images, held_out)
        self.monitor = Monitor(out / "metrics.jsonl", report, self._sinks())

    def _sinks(self) -> list[Any]:
        sinks: list[Any] = []
        if self.ranks.first and self.settings.tensorboard:
            sinks.append(tensorboard_sink(self.out / "tensorboard"))
        if self.ranks.first and self.settings.wandb:
            name = f"{self.recipe.name}-seed{self.seed}"
            sinks.append(wandb_sink(self.settings.wandb, name, self.recipe.to_dict(), self.out))
        return sinks

    def train(self, interruption: Interruption) -> Path:
        """Train from the last state to the end."""
        first = self.keeper.restore(
            self.trainee, self.optimizer, self.scaler, self.report, tidy=self.ranks.first
        )
        if self.ranks.first:
            keep_lines(self.monitor.file, first)
        if len(set(self.ranks.everyones(first))) > 1:
            raise ValueError(
                f"the ranks do not see the same states in {str(self.out)!r}; give a folder that all "
                f"of them share with --out"
            )
        if first:
            self.report(f"{self.recipe.name} seed {self.seed}: going on after step {first} of {self.total}")
        network = self.prepare()
        save_every = self.settings.save_steps or self.epoch_steps
        keep_every = (self.settings.keep_epochs or 0) * self.epoch_steps
        started = shown = time.monotonic()
        waiting: list[tuple[int, dict[str, Tensor | float]]] = []
        self.seed_layers(first)
        for batch in self.batches(first):
            step = batch.step
            if step == first:
                self.check_pixels(batch.views)
            waiting.append((step, self.step(network, batch)))
            done = step + 1
            if self.foreign and step == first:
                self.check_weights(step)
                self.ranks.of_first(lambda: self.keeper.rehearse(self.trainee, batch.views[0][:8]))  # noqa: B023
            last = done == self.total
            stop = self.stops(interruption, done)
            evaluating = self.held_out is not None and (last or done % self.evaluate_steps == 0)
            saving = not last and (stop or done % save_every == 0)
            if len(waiting) >= self.settings.log_steps or saving or evaluating or last:
                line = self.log(waiting)  # looks for a loss that is not finite, before anything is saved
                waiting.clear()
                self.check_weights(step)
                now = time.monotonic()
                if (now - shown > 5 and not stop) or last:  # a terminal that was closed takes no line
                    shown, speed = now, (done - first) / (now - started)
                    self.show(done, line, speed)
            if evaluating:
                self.evaluate(step)
            if keep_every and done % keep_every == 0 and self.ranks.first:
                self.keeper.keep(self.out / "every" / f"step-{done:08d}.safetensors", self.trainee, done)
            if saving:
                self.monitor.flush()
                if self.ranks.first:
                    self.keeper.save(done, self.trainee, self.optimizer, self.scaler)
            if stop and not last:
                raise KeyboardInterrupt
            self.seed_layers(done)
        self.monitor.flush()
        checkpoint = self.out / CHECKPOINT
        if self.ranks.first:
            numbers = {name: float(value) for name, value in line.items() if not isinstance(value, str)}
            # JSON has no others
            metrics = {name: value for name, value in numbers.items() if math.isfinite(value)}
            self.keeper.keep(checkpoint, self.trainee, self.total, metrics)
            tidy(self.out)
        return checkpoint

    def stops(self, interruption: Interruption, done: int) -> bool:
        """Whether to end after this step; ranks agree on it where they meet anyway."""
        if self.ranks.size == 1:
            return interruption.requested
        return done % self.settings.log_steps == 0 and any(self.ranks.everyones(interruption.requested))

    # One step.

    def seed_layers(self, step: int) -> None:
        """What layers draw in a step from global generators (dropout, stochastic depth) belongs to the step too."""
        seed_globals(self.seed, self.ranks.rank, step)

    def batches(self, first: int) -> Iterator[ViewBatch]:
        """The rank's views of every step from ``first`` on."""
        rows = self.ranks.rows(self.recipe.batch_size)

        def plan() -> Iterator[tuple[int, Tensor, Tensor]]:
            for step, indices in enumerate(order(len(self.images), self.recipe, self.seed, first), first):
                numbers = draw(self.recipe.views, len(indices), stream(self.seed, "views", step))
                yield step, indices[rows], numbers[rows]
                if step + 1 == self.total:
                    return

        workers = self.settings.workers or max(1, available_cores() // self.ranks.beside)
        return view_batches(self.images, self.recipe.views, plan(), self.settings.device, workers=workers)

    def step(self, network: Any, batch: ViewBatch) -> dict[str, Tensor | float]:
        """Forward, backward, optimiser, target; returns what to log."""
        step, device = batch.step, self.settings.device
        rate = learning_rate(step, self.total, self.warmup, self.peak)
        set_rate(self.optimizer, rate)
        objective = self.recipe.objective.at(step, self.total, self.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.settings.accumulate
        size = len(batch.labels) // parts
        start = self.ranks.rows(self.recipe.batch_size).start
        results: list[Step] = []
        for part in range(parts):
            rows = slice(part * size, (part + 1) * size)
            views = (batch.views[0][rows], batch.views[1][rows])
            if self.settings.channels_last:
                views = tuple(view.contiguous(memory_format=torch.channels_last) for view in views)  # type: ignore[assignment]
            network.require_backward_grad_sync = part == parts - 1
            with torch.autocast(
                device.type, DTYPES[self.settings.precision], self.settings.precision != "fp32"
            ):
                result: Step = network(
                    objective,
                    views,
                    batch.labels[rows],
                    stream(self.seed, "noise", step, device if device.type == "cuda" else "cpu"),
                    self.ranks,
                    slice(start + rows.start, start + rows.stop),
                    self.recipe.batch_size,
                )
            self.scaler.scale(result.value / parts).backward()
            results.append(result)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        decay = target_decay(step, self.total, self.recipe.target_decay)
        self.trainee.follow(decay)

        names = results[0].metrics
        logged: dict[str, Tensor | float] = {
            name: torch.stack([r.metrics[name].float() for r in results]).mean() for name in names
        }
        logged["learning_rate"] = rate
        if self.trainee.target is not None:
            logged["target_decay"] = decay
        for name in ("beta", "kappa_e", "kappa_b"):
            if hasattr(objective, name):
                logged[name] = getattr(objective, name)
        if step % self.settings.log_steps == 0 or step + 1 == self.total:
            logged |= geometry(results[-1].embeddings)
            logged["dimensions"] = results[-1].embeddings[0].shape[1]
        return logged

    def check_pixels(self, views: tuple[Tensor, Tensor]) -> None:
        """Refuse views of your own that normalise, as the encoder does it."""
        beyond = torch.stack([(view - view.clamp(0, 1)).abs().mean() for view in views]).max()
        if beyond > 0.1:
            raise ValueError(
                f"{type(self.recipe.views).__name__}.apply must return pixels in [0, 1]; those of the first batch are "
                f"{beyond:.2g} beyond it on average. Leave the normalisation to the encoder, which has mean and std"
            )

    def prepare(self) -> Any:
        """The network as it is called: compiled and wrapped for many ranks, where asked for."""
        spare = self.ranks.size > 1 and self.foreign and (self.skips or self.trainee.has_spare_weights())
        if self.settings.compile:
            self.trainee.online.backbone.compile()
            if self.trainee.target is not None:
                self.trainee.target.backbone.compile()
        if self.settings.accumulate > 1:
            self.report(
                f"note: accumulating over {self.settings.accumulate} parts approximates the recipe: batch norm's "
                f"statistics and the negatives come from {self.recipe.batch_size // self.settings.accumulate} images, "
                f"not from {self.recipe.batch_size}"
            )
        if self.ranks.size == 1:
            return self.trainee
        with warnings.catch_warnings():  # newer torch has another name for it
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                self.trainee,
                broadcast_buffers=False,
                find_unused_parameters=spare,
            )

    # What is seen and kept.

    def log(self, waiting: Sequence[tuple[int, dict[str, Tensor | float]]]) -> Line:
        """Write the waiting steps; stop at the first loss that is not finite."""
        line: Line = {}
        for step, logged in waiting:
            line = {"step": step, "epoch": step * self.recipe.batch_size // len(self.images)}
            for name, value in logged.items():
                line[name] = self.ranks.mean(value).item() if isinstance(value, Tensor) else value
            if not torch.isfinite(torch.tensor(line["loss"])):
                self.monitor.flush()
                raise FloatingPointError(self._diverged(step, f"the loss became {line['loss']}"))
            if self.ranks.first:
                self.monitor.add(line)
                self.monitor.watch(step, line)
        if self.ranks.first:
            self.monitor.flush()
        return line

    def check_weights(self, step: int) -> None:
        """Stop before weights that are not finite are measured or kept."""
        norms = torch.stack(torch._foreach_norm(list(self.trainee.online.parameters())))
        if not torch.isfinite(norms).all():
            raise FloatingPointError(self._diverged(step, "weights became infinite or NaN"))

    def _diverged(self, step: int, what: str) -> str:
        """What to say of a loss that is not finite; kept beside the run, so that a sweep need not try again."""
        if states := find_states(self.out):
            kept = f"the last good state is kept: {str(states[0])!r}"
        else:
            kept = "no state had been written"
        reason = (
            f"{self.recipe.name} (seed {self.seed}): {what} at step {step} of {self.total}; {kept}. "
            f"Lower learning_rate (now {self.recipe.learning_rate}), or look at the images of that step"
        )
        if self.ranks.first:
            with atomic_file(self.out / DIVERGED) as temporary:
                temporary.write_text(json.dumps({"reason": reason, "identity": self.keeper.identity}))
        return reason

    def show(self, done: int, line: Line, speed: float) -> None:
        """One line of progress."""
        names = ("loss", "residual_information", "i_yz", "byol", "probe_accuracy")
        shown = "  ".join(f"{name} {line[name]:.3f}" for name in names if name in line)
        self.report(
            f"{self.recipe.name} seed {self.seed}: step {done}/{self.total}  {shown}  "
            f"{speed * self.recipe.batch_size:.0f} images/s  {(self.total - done) / speed:.0f} s left"
        )

    def evaluate(self, step: int) -> None:
        """Measure on held-out images; keep the encoder if it is the best so far."""
        assert self.held_out is not None
        if not self.ranks.first:
            return
        found = self.held_out.evaluate(self.trainee, self.settings.device)
        self.monitor.add({"step": step, **found})
        score = found.get("held_out_probe_accuracy", found["knn_accuracy"])
        if score > self.keeper.best:
            self.keeper.best = score
            self.keeper.keep(self.out / "best.safetensors", self.trainee, step + 1)


def _silent(line: str) -> None:
    pass


if __name__ == "__main__":
    from lipcomp._commands import run
    from train.command import main

    sys.exit(run(main))
