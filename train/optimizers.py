"""What moves the weights: LARS, a recipe's parameter groups, and the schedules of the rate and of the target's average.

LARS: momentum SGD whose step on each tensor is proportional to the tensor's norm (You, Gitman, Ginsburg 2017).

The official code's variant. With w a tensor, g its gradient, gamma the learning rate, lambda the weight decay:

    g'    = g + lambda w                                     the decay comes before the trust ratio
    trust = eta |w| / |g'|,  1 if either norm is 0           no epsilon
    v     = m v + gamma trust g'                             the rate is inside the momentum
    w     = w - v                                            (Nesterov: w - (m v + gamma trust g'))

A parameter group with ``adapt=False`` has trust 1: biases, batch norm and the concurrent linear head; the official code
names them by a regular expression, :func:`parameter_groups` by kind. This differs from the LARS of lightly and
solo-learn, which do not adapt where the decay is 0 and divide by |g| + lambda |w|.

The schedules are plain functions of the step, the official code's (tests/train/test_schedules.py). Steps count from 0,
and the value of step k is the one used *in* step k. Beta's schedules belong to the objective (``Objective.at``).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from train.networks import Trainee
from train.recipe import Recipe, Scaling

Tensors = list[Tensor] | tuple[Tensor, ...]


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling.

    Parameters
    ----------
    params
        Parameters, or groups of them. A group may set ``adapt`` and ``weight_decay``.
    lr
        Learning rate gamma.
    momentum, weight_decay
        m and lambda.
    trust
        The trust coefficient eta.
    nesterov
        The variant above.
    adapt
        Whether the trust ratio applies.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        nesterov: bool = False,
        adapt: bool = True,
    ) -> None:
        for name, value in {"lr": lr, "weight_decay": weight_decay, "trust": trust}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "nesterov": nesterov,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            velocities = [self.state[w]["momentum"] for w in weights]
            gradients = torch._foreach_add([w.grad for w in weights], weights, alpha=group["weight_decay"])
            torch._foreach_mul_(velocities, group["momentum"])
            steps = torch._foreach_mul(gradients, _rates(group, weights, gradients))
            torch._foreach_add_(velocities, steps)
            if group["nesterov"]:
                torch._foreach_sub_(weights, torch._foreach_add(steps, velocities, alpha=group["momentum"]))
            else:
                torch._foreach_sub_(weights, velocities)
        return loss


def _rates(group: dict[str, Any], weights: Tensors, updates: Tensors) -> Tensors:
    """Gamma times the trust ratio of each tensor."""
    if not group["adapt"]:
        return [torch.full((), group["lr"], dtype=w.dtype, device=w.device) for w in weights]
    norms = zip(torch._foreach_norm(weights), torch._foreach_norm(updates), strict=True)
    return [
        group["lr"] * torch.where((w > 0) & (u > 0), group["trust"] * w / u, torch.ones_like(w))
        for w, u in norms
    ]


# A recipe's optimiser.


def parameter_groups(trainee: Trainee, recipe: Recipe) -> list[dict[str, Any]]:
    """Kernels are decayed and adapted, vectors (biases, batch norm) neither; the probe's kernel is decayed alone.

    The official code adds weight_decay |w|^2 / 2 of the probe's kernel to the loss, which under LARS is this decay.
    ``rate`` multiplies the learning rate: the predictor has its own.
    """
    groups: dict[tuple[float, bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in trainee.named_parameters():
        if parameter.requires_grad:
            kernel, probe = parameter.ndim > 1, name.startswith("probe.")
            rate = recipe.predictor_rate if name.startswith("online.predictor.") else 1.0
            key = (recipe.weight_decay if kernel else 0.0, kernel and not probe, rate)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "adapt": adapt, "rate": rate}
        for (decay, adapt, rate), members in groups.items()
    ]


def build_optimizer(trainee: Trainee, recipe: Recipe) -> torch.optim.Optimizer:
    """LARS, AdamW or SGD over those groups.

    SGD is the official code's: Nesterov momentum with the rate inside it, which is LARS without its trust ratio.
    """
    groups = parameter_groups(trainee, recipe)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    if recipe.optimizer == "sgd":
        groups = [{**group, "adapt": False} for group in groups]
    return LARS(groups, lr=recipe.learning_rate, nesterov=recipe.optimizer == "sgd")


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate, times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


# Schedules.


def total_steps(images: int, batch_size: int, epochs: float) -> int:
    """Steps of a run: N * epochs // batch + 1, the images running on from one epoch into the next."""
    return int(images * epochs // batch_size) + 1


def warmup_steps(images: int, batch_size: int, epochs: float) -> int:
    """Steps of the linear warm-up."""
    return round(epochs * images // batch_size)


def scale_rate(rate: float, batch_size: int, scaling: Scaling) -> float:
    """The peak learning rate of a batch size: linear is rate * batch / 256, sqrt is rate * sqrt(batch)."""
    if scaling == "linear":
        return rate * batch_size / 256
    return rate * math.sqrt(batch_size) if scaling == "sqrt" else rate


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear from 0 over the warm-up, then a cosine to 0."""
    if step < warmup:
        return peak * step / warmup
    return peak * _falling_cosine(step - warmup, total - warmup)


def target_decay(step: int, total: int, start: float) -> float:
    """BYOL's moving average: from ``start`` to 1 along a cosine, over the whole run."""
    return 1 - (1 - start) * _falling_cosine(step, total)


def _falling_cosine(step: int, total: int) -> float:
    """From 1 at step 0 to 0 at ``total``, and 0 from there on."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))
