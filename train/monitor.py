"""Monitoring of training: metrics as JSON lines (TensorBoard, W&B on request), held-out accuracy, collapse.

One line per step: loss and its parts (nats), alignment, uniformity, effective rank, rate, the target's decay, beta, the
 concurrent head's accuracy. One line per evaluation: the held-out accuracy of that head and of the nearest
neighbours among training images, in pooled features. Nothing here draws a random number or changes the run.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lipcomp._messages import needed
from lipcomp.data import batches
from lipcomp.data._sets import ImageSet
from lipcomp.robustness._features import evaluation_mode
from lipcomp.robustness._probes import NearestNeighbours
from train.networks import Trainee

Line = dict[str, float | int | str]
COLLAPSED_RANK = 1.5
BANK, QUERIES = 2000, 1000


class Sink(Protocol):
    """Where lines go besides the file."""

    def __call__(self, line: Line) -> None:
        """Take one line."""


class Monitor:
    """Writes lines, warns of collapse once.

    Parameters
    ----------
    file
        metrics.jsonl.
    report
        Where warnings go.
    sinks
        TensorBoard, W&B.
    """

    def __init__(self, file: Path, report: Callable[[str], None], sinks: Sequence[Sink] = ()) -> None:
        self.file, self.report, self.sinks = file, report, sinks
        self.waiting: list[Line] = []
        self.warned = False

    def add(self, line: Line) -> None:
        """Take a line; it is on disk after the next :meth:`flush`."""
        self.waiting.append(line)
        for sink in self.sinks:
            sink(line)

    def flush(self) -> None:
        """Append the waiting lines to the file."""
        if self.waiting:
            text = "".join(json.dumps(line) + "\n" for line in self.waiting)
            with self.file.open("a") as handle:
                handle.write(text)
            self.waiting.clear()

    def watch(self, step: int, line: Line) -> None:
        """Warn, once, when all images have the same direction."""
        rank = line.get("effective_rank")
        if isinstance(rank, float) and rank < COLLAPSED_RANK and not self.warned:
            self.warned = True
            resultant = line.get("mean_resultant", float("nan"))
            warning = (
                f"warning: the representations have collapsed at step {step}: effective rank {rank:.2f} of "
                f"{line.get('dimensions')}, mean resultant length {resultant:.3f}. In BYOL look at the predictor, the "
                f"target's decay and the learning rate; elsewhere at beta and the temperature"
            )
            self.report(warning)
            self.add({"step": step, "warning": warning})


def geometry(embeddings: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Uniformity and effective rank of a batch's mean directions."""
    directions = F.normalize(torch.cat(embeddings).float(), dim=1)
    return {"uniformity": uniformity(directions), "effective_rank": effective_rank(directions)}


def uniformity(directions: Float[Tensor, "n dim"], most: int = 1024) -> Float[Tensor, ""]:
    """Log of the mean of exp(-2 |mu - mu'|^2) over pairs (Wang and Isola 2020); lower is more uniform."""
    return torch.pdist(directions[:most]).square().mul(-2).exp().mean().log()


def effective_rank(directions: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    """Exponential of the entropy of the normalised singular values (Roy and Vetterli 2007), not centred.

    1 when all directions agree, dim when they fill the sphere evenly, NaN when one is not finite.
    """
    singular = torch.linalg.svdvals(directions.nan_to_num())  # which raises where they are not finite
    singular = torch.where(directions.isfinite().all(), singular, torch.nan)
    share = singular / singular.sum()
    return torch.special.entr(share).sum().exp()


class HeldOut:
    """Accuracy on held-out images while training: the concurrent head's, and the nearest neighbours'.

    Parameters
    ----------
    train, test
        Labelled images; a fixed part of each is used.
    """

    def __init__(self, train: ImageSet, test: ImageSet) -> None:
        chosen = torch.Generator().manual_seed(0)
        self.train, self.test = train, test
        self.bank = torch.randperm(len(train), generator=chosen)[:BANK]
        self.queries = torch.randperm(len(test), generator=chosen)[:QUERIES]

    def evaluate(self, trainee: Trainee, device: torch.device) -> dict[str, float]:
        """Accuracies in [0, 1]; the networks' mode is left as it was."""
        with evaluation_mode(trainee):
            bank, queries = (
                torch.cat(
                    [
                        trainee.online.features(b.to(device)).float()
                        for b in batches(images, batch_size=256, indices=indices)
                    ]
                )
                for images, indices in ((self.train, self.bank), (self.test, self.queries))
            )
            labels = self.test.labels[self.queries].to(device)
            classes = len(self.train.classes)
            bank_labels = self.train.labels[self.bank].to(device)
            neighbours = NearestNeighbours(bank, bank_labels, k=min(20, len(bank)), classes=classes)
            found = {"knn_accuracy": _share(neighbours(queries), labels)}
            if trainee.probe is not None:
                read = queries if trainee.probe_layer == "backbone" else trainee.online.projector(queries)
                found["held_out_probe_accuracy"] = _share(trainee.probe(read), labels)
            return found


def _share(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def tensorboard_sink(folder: Path) -> Sink:
    """Lines to TensorBoard's event files.

    Raises
    ------
    ImportError
        If tensorboard is not installed.
    """
    with needed("--tensorboard", "lipcomp[train]"):
        from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(folder, flush_secs=10)

    def take(line: Line) -> None:
        step = int(line["step"])
        for name, value in line.items():
            if isinstance(value, str):
                writer.add_text(name, value, step)
            elif name != "step":
                writer.add_scalar(name, value, step)

    return take


def wandb_sink(project: str, name: str, settings: dict[str, Any], folder: Path) -> Sink:
    """Lines to Weights & Biases.

    Raises
    ------
    ImportError
        If wandb is not installed.
    """
    with needed("--wandb", "lipcomp[wandb]"):
        import wandb  # type: ignore[import-not-found]
    # found again
    identity = hashlib.blake2b(f"{name}/{folder.resolve()}".encode(), digest_size=8).hexdigest()
    run = wandb.init(project=project, name=name, config=settings, dir=folder, id=identity, resume="allow")

    def take(line: Line) -> None:
        run.log({k: v for k, v in line.items() if k != "step"}, step=int(line["step"]))

    return take
