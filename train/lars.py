"""LARS: momentum SGD whose step on each tensor is proportional to the tensor's norm (You, Gitman, Ginsburg 2017).

The official code's variant. With w a tensor, g its gradient, gamma the learning rate, lambda the weight decay:

    g'    = g + lambda w                                     the decay comes before the trust ratio
    trust = eta |w| / |g'|,  1 if either norm is 0           no epsilon
    v     = m v + gamma trust g'                             "classic": the rate is inside the momentum
    w     = w - v                                            (Nesterov: w - (m v + gamma trust g'))

``classic=False`` is the popular variant, v = m v + g' with the trust ratio taken on the update. A parameter group with
``adapt=False`` has trust 1: biases, batch norm and the concurrent linear head; the official code names them by a
regular expression, :func:`train.optimizers.parameter_groups` by kind. This differs from the LARS of lightly and
solo-learn, which do not adapt where the decay is 0 and divide by |g| + lambda |w|.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

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
    nesterov, classic
        The variants above.
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
        classic: bool = True,
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
            "classic": classic,
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
            move = _classic if group["classic"] else _popular
            updates = move(group, weights, gradients, velocities)
            torch._foreach_sub_(weights, updates)
        return loss


def _classic(group: dict[str, Any], weights: Tensors, gradients: Tensors, velocities: Tensors) -> Tensors:
    steps = torch._foreach_mul(gradients, _rates(group, weights, gradients))
    torch._foreach_mul_(velocities, group["momentum"])
    torch._foreach_add_(velocities, steps)
    if group["nesterov"]:
        return torch._foreach_add(steps, velocities, alpha=group["momentum"])
    return velocities


def _popular(group: dict[str, Any], weights: Tensors, gradients: Tensors, velocities: Tensors) -> Tensors:
    torch._foreach_mul_(velocities, group["momentum"])
    torch._foreach_add_(velocities, gradients)
    updates = velocities
    if group["nesterov"]:
        updates = torch._foreach_add(gradients, velocities, alpha=group["momentum"])
    return torch._foreach_mul(updates, _rates(group, weights, updates))


def _rates(group: dict[str, Any], weights: Tensors, updates: Tensors) -> Tensors:
    """Gamma times the trust ratio of each tensor."""
    if not group["adapt"]:
        return [torch.full((), group["lr"], dtype=w.dtype, device=w.device) for w in weights]
    norms = zip(torch._foreach_norm(weights), torch._foreach_norm(updates), strict=True)
    return [
        group["lr"] * torch.where((w > 0) & (u > 0), group["trust"] * w / u, torch.ones_like(w))
        for w, u in norms
    ]
