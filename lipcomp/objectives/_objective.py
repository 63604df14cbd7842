"""What every objective is: a frozen dataclass that is called on embeddings and returns a :class:`Loss`.

Calling conventions, by ``family``:

==========  =====================================================================================================
simclr      ``objective(h1, h2, generator=...)``: embeddings of two views, (batch, d), not normalised
byol        ``objective(online1, online2, target1, target2, decoder=..., backward_head=..., generator=...)``
supervised  ``objective(h, labels, class_directions, generator=...)``
==========  =====================================================================================================

A family's call is written once, in its base class. Every objective also takes, by keyword,

``generator``
    Source of the draws of z; ignored where nothing is drawn.
``gather``, ``rank``
    Training on several replicas. ``gather`` maps this replica's rows (b, ...) to the rows of all replicas
    (ranks * b, ...), concatenated in rank order, *with gradients* (a gradient that arrives at another replica's
    row must come back to it, summed, as ``torch.distributed.nn.functional.all_gather`` and Fabric's
    ``all_gather(sync_grads=True)`` do); ``rank`` says which of them are this replica's. Its loss is the mean
    over its own rows, each against the candidates of all replicas. The mean of the replicas' losses is then the
    loss of one process with the whole batch, and the mean of the replicas' gradients (what DistributedDataParallel
    computes) is its gradient.
``distances``
    Pixel L2 distance of the two views of each image, (batch,); read where ``pair_normalised`` is set.
``kappa_e``
    Concentrations of e(z|x), one per example, instead of the objective's constant: a tensor for each view.
``draw``
    How z is drawn from e(z|x), called view after view; the default is ``rsample``.

The last two are for objectives that draw.

The arithmetic is at least float32, autocast or not: a logit at kappa_b = 10 has three digits in bfloat16.
"""

import dataclasses
import math
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from lipcomp.distributions import VonMisesFisher
from lipcomp.distributions._bessel import LARGEST_CONCENTRATION, check_concentration

Number = float | int  # a float, as a user may write it; kept as a float
Gather = Callable[[Tensor], Tensor]
Draw = Callable[[VonMisesFisher], Tensor]
Concentration = float | Tensor
Family = Literal["simclr", "byol", "supervised"]
SCHEDULES = ("constant", "cosine", "linear_warmup")


@dataclass(frozen=True)
class Loss:
    """The value to minimise, and what to log: detached scalars, means over examples and over both directions.

    ========================  =====================================================================================
    residual_information      estimate or closed form of E[log e(z|x) - log b(z|y)], nats (2.2)
    excess_residual           the part above the floor of kappa_e, kappa_b and d (2.4), nats
    i_yz                      InfoNCE lower bound of I(Y;Z), nats (2.3)
    alignment                 mean cosine between the mean directions of the two views
    mean_resultant            length of the batch's mean direction; near 1 when the encoder has collapsed
    ========================  =====================================================================================

    Parameters
    ----------
    value
        The loss to minimise.
    metrics
        The logged quantities, by name.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.objectives import CSimCLR
    >>> loss = CSimCLR()(torch.randn(8, 16), torch.randn(8, 16))
    >>> loss.value.ndim, "residual_information" in loss.metrics
    (0, True)
    """

    value: Float[Tensor, ""]
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """What training minimises: hashable, comparable, written to a checkpoint by :meth:`to_dict`.

    Examples
    --------
    >>> from lipcomp.objectives import Objective, SimCLR
    >>> Objective.from_dict(SimCLR(temperature=0.5).to_dict())
    SimCLR(temperature=0.5, bidirectional=True, double_batch=True)
    """

    family: ClassVar[Family]
    known: ClassVar[dict[str, type["Objective"]]] = {}
    __call__: Callable[..., Loss]

    def __init_subclass__(cls, family: Family | None = None) -> None:
        if family is not None:
            cls.family = family  # the base class of a family
        elif not hasattr(cls, "family"):
            raise ValueError(f"{cls.__name__} must say how it is called: family = one of {get_args(Family)}")
        else:
            Objective.known[cls.__name__] = cls

    def to_dict(self) -> dict[str, Any]:
        """Name and options, JSON-safe; :meth:`from_dict` goes back."""
        return {"name": type(self).__name__, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    @staticmethod
    def from_dict(description: dict[str, Any]) -> "Objective":
        """The objective that :meth:`to_dict` described.

        Raises
        ------
        ValueError
            If the name or an option is unknown.
        """
        options = dict(description)
        name = options.pop("name", None)
        if name not in Objective.known:
            raise ValueError(f"objective name must be one of {', '.join(Objective.known)}, got {name!r}")
        try:
            return Objective.known[name](**options)
        except TypeError as error:
            raise ValueError(f"the options of {name} do not fit: {error}") from None

    def at(self, step: int, total_steps: int, warmup_steps: int = 0) -> "Objective":
        """The objective of one step: beta scaled by its schedule. Without a schedule, the objective itself."""
        schedule: str = getattr(self, "beta_schedule", "constant")
        if schedule == "constant":
            return self
        beta = getattr(self, "beta", 0.0) * beta_factor(schedule, step, total_steps, warmup_steps)
        return dataclasses.replace(self, beta=beta, beta_schedule="constant")  # type: ignore[type-var]

    @property
    def needs_distances(self) -> bool:
        """Whether a call needs ``distances``."""
        return bool(getattr(self, "pair_normalised", False))


def mean_directions(embedding: Float[Tensor, "..."], name: str = "embedding") -> Float[Tensor, "batch dim"]:
    """Mu = h / |h|, in float32 or wider."""
    if embedding.ndim != 2 or embedding.shape[1] < 2:
        raise ValueError(f"{name} must have shape (batch, d) with d >= 2, got {tuple(embedding.shape)}")
    if embedding.dtype not in (torch.float32, torch.float64):
        embedding = embedding.float()
    return F.normalize(embedding, dim=1)


def check_views(*views: Tensor) -> None:
    """Refuse views that are not of one batch."""
    shapes = {tuple(view.shape) for view in views}
    if len(shapes) != 1:
        raise ValueError(
            f"the views' embeddings must have one shape (batch, d), got {', '.join(str(tuple(v.shape)) for v in views)}"
        )


def check_rows(tensor: Tensor, rows: int, name: str) -> None:
    """Refuse what is not one finite number >= 0 for each example (values are looked at on a CPU only)."""
    if tensor.shape != (rows,):
        raise ValueError(
            f"{name} must have one value per example, shape ({rows},), got {tuple(tensor.shape)}"
        )
    check_concentration(tensor, name)


def inverse_temperature(objective: Any) -> float:
    """kappa_b, of an uncompressed objective 1/temperature."""
    return float(objective.kappa_b if hasattr(objective, "kappa_b") else 1 / objective.temperature)


def draw_latents(
    objective: Any,
    mu: Sequence[Tensor],
    kappa_e: Sequence[Tensor] | None,
    draw: Draw | None,
    generator: Generator | None,
) -> tuple[Sequence[Tensor], Sequence[Concentration]]:
    """Latents of each view and the concentrations they were drawn with: of an objective without noise mu, and none."""
    if not hasattr(objective, "kappa_e"):
        if kappa_e is not None or draw is not None:
            raise TypeError(f"{type(objective).__name__} draws no latents: leave out kappa_e and draw")
        return mu, ()
    kappas: Sequence[Concentration] = kappa_e or [objective.kappa_e] * len(mu)
    for view, (direction, kappa) in enumerate(zip(mu, kappas, strict=True), 1):
        if isinstance(kappa, Tensor):
            check_rows(kappa, len(direction), f"kappa_e of view {view}" if len(mu) > 1 else "kappa_e")
    if not objective.sampling:
        return mu, kappas
    drawn = draw or (lambda density: density.rsample(generator=generator))
    densities = [VonMisesFisher(m, k, validate_args=False) for m, k in zip(mu, kappas, strict=True)]
    return [drawn(density) for density in densities], kappas


def full_precision(tensor: Tensor) -> torch.autocast:
    """The context in which an objective computes: no autocast."""
    return torch.autocast(tensor.device.type, enabled=False)


def positive(objective: Objective, names: str) -> None:
    """Refuse fields that are not positive and finite (beta: not negative), and an unknown schedule of beta.

    A concentration is at most :data:`LARGEST_CONCENTRATION`: on an accelerator nothing looks at it later.

    Numbers become floats, so that 1024 and 1024.0 are one objective with one description.
    """
    for name in names.split():
        value = float(getattr(objective, name))
        object.__setattr__(objective, name, value)
        if name == "beta" and not 0 <= value < math.inf:
            raise ValueError(f"beta must be finite and not negative, got {value}")
        if name != "beta" and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
        if name.startswith("kappa") and value > LARGEST_CONCENTRATION:
            raise ValueError(f"{name} must be at most {LARGEST_CONCENTRATION:g}, got {value:g}")
    check_schedule(getattr(objective, "beta_schedule", "constant"))


def direction_metrics(
    mu_1: Float[Tensor, "batch dim"], mu_2: Float[Tensor, "batch dim"]
) -> dict[str, Tensor]:
    """Alignment, and the sign of collapse."""
    with torch.no_grad():
        return {
            "alignment": (mu_1 * mu_2).sum(1).mean(),
            "mean_resultant": 0.5 * (mu_1.mean(0) + mu_2.mean(0)).norm(),
        }


def beta_factor(schedule: str, step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """How beta moves over training, as in the official code: a factor in [0, 1] at a step, counted from 0.

    =============  =========================================================
    constant       1 (what the published models use)
    cosine         (1 - cos(pi step / total)) / 2, from 0 to 1; then 1
    linear_warmup  step / warmup_steps, then 1
    =============  =========================================================
    """
    check_schedule(schedule)
    if step < 0 or total_steps < 1 or warmup_steps < 0:
        raise ValueError(
            f"need step >= 0, total_steps >= 1 and warmup_steps >= 0; got {step}, {total_steps}, {warmup_steps}"
        )
    if schedule == "cosine":
        return math.sin(0.5 * math.pi * min(1.0, step / total_steps)) ** 2
    if schedule == "linear_warmup" and warmup_steps:
        return min(1.0, step / warmup_steps)
    return 1.0


def check_schedule(schedule: str) -> None:
    """Refuse an unknown schedule."""
    if schedule not in SCHEDULES:
        raise ValueError(f"beta_schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
