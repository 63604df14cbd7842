"""Distributed training: what the ranks of a run share. Plain torch.distributed, started by torchrun.

    torchrun --nproc-per-node 8 -m train.pretrain imagenet_c_simclr_300 --data /data/imagenet

Every rank holds the whole model and a slice of each batch. So that many ranks compute what one process would:

- the contrastive candidates of all ranks are gathered *with gradients* (:meth:`Ranks.gather`),
- batch norm takes its statistics over all ranks (:func:`synchronise_batch_norm`),
- order, augmentation and vMF noise are drawn for the whole batch on every rank, and sliced (:meth:`Ranks.rows`),
- DistributedDataParallel averages the gradients.

Two ranks then give the losses and weights of one process (tests/train/test_ranks.py).
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """A process among those of a run."""

    rank: int = 0
    size: int = 1
    beside: int = 1  # that share this machine's cores

    @property
    def first(self) -> bool:
        """Whether this rank writes and prints."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """The rank's rows of a whole batch."""
        each = batch_size // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in rank order; gradients return to the rank that owns the row, summed."""
        return rows if self.size == 1 else _Gather.apply(rows)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks, detached."""
        value = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def everyones(self, value: Any) -> list[Any]:
        """What every rank says, in rank order."""
        said: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(said, value)
        return said

    def of_first(self, work: Callable[[], T]) -> T:
        """What ``work`` returns on the first rank, where alone it is called; what it raises, every rank raises."""
        found: tuple[T | None, Exception | None] = None, None
        if self.first:
            try:
                found = work(), None
            except Exception as error:
                found = None, error
        value, failure = self.everyones(found)[0]
        if failure is not None:
            raise failure
        return value


@contextmanager
def started_ranks(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun started; one rank without it. Leaves the process group as it was found."""
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(beside))
        return
    if (size := os.environ.get("WORLD_SIZE", "1")) == "1":
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(local_device(device))
    try:
        if int(rank := os.environ.get("RANK", "0")) >= int(size) or not 1 <= int(beside) <= int(size):
            raise ValueError(f"RANK={rank!r}, LOCAL_WORLD_SIZE={beside!r}")  # others would wait for minutes
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:  # wrong variables, a port that is taken
        raise ConnectionError(
            f"the ranks of WORLD_SIZE={size!r} could not start ({str(error).splitlines()[0]}); start them with "
            f"torchrun, or unset WORLD_SIZE to train on one rank"
        ) from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(beside))
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The device of this rank: with several GPUs, the one of its local rank."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def lost_rank(error: RuntimeError, ranks: Ranks) -> bool:
    """Whether an error of a collective says that another rank is gone."""
    signs = ("gloo", "nccl", "connection", "peer", "timed out", "timeout", "process group")
    return ranks.size > 1 and any(sign in str(error).lower() for sign in signs)


class _Gather(torch.autograd.Function):
    """All ranks' rows; the backward pass sums what every rank's loss says of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


class _Sum(torch.autograd.Function):
    """The sum over ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


class CrossRankBatchNorm(_BatchNorm):
    """Batch norm over all ranks, for CPU, where PyTorch has none. Mean first, then centred squares: no cancellation."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalise over the batch of all ranks in training, by the running statistics in evaluation."""
        if not self.training:
            return super().forward(input)
        dims = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        count = input.numel() // input.shape[1] * dist.get_world_size()
        mean = _Sum.apply(input.sum(dims)) / count
        centred = input - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * (count / (count - 1)), share)
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            normal = normal * self.weight.view(shape)
        return normal if self.bias is None else normal + self.bias.view(shape)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch norm of a network one over all ranks; weights, statistics and names stay.

    Raises
    ------
    ValueError
        If one does more than normalise, which the one over all ranks would not do.
    """
    timm = sys.modules.get("timm.layers")
    with_activation = timm.BatchNormAct2d if timm else ()
    kind = nn.SyncBatchNorm if device.type == "cuda" else CrossRankBatchNorm
    for name, module in network.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if type(module) is with_activation:
            module.register_forward_hook(_drop_and_activate)
        elif type(module).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            raise ValueError(
                f"{name} is a batch norm of another kind ({type(module).__name__}), which cannot be one over all "
                f"ranks; build the network with torch.nn.BatchNorm2d and a layer behind it, or train on one rank"
            )
        module.__class__ = kind
        module.process_group = None  # type: ignore[assignment]  # all ranks
    return network


def _drop_and_activate(module: Any, inputs: Any, output: Tensor) -> Tensor:
    """What timm's BatchNormAct2d does after the normalisation."""
    found: Tensor = module.act(module.drop(output))
    return found


class Interruption:
    """Ctrl-C, SIGTERM (a cluster's notice) and SIGHUP (a closed terminal) end a run after its step, its state written.

    A context in which the first of each only sets ``requested``; the second acts as it always does. A signal that was
    ignored before stays so: Ctrl-C reaches a worker beside its parent, which asks for the end by SIGTERM.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            hangup = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # not on Windows
            for number in (signal.SIGINT, signal.SIGTERM, *hangup):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._before[number])
