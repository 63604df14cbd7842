"""A recipe's optimiser, with its parameter groups: who is decayed, who is adapted, whose rate is multiplied."""

from typing import Any

import torch

from train.lars import LARS
from train.networks import Trainee
from train.recipe import Recipe


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
