"""Probes: what a frozen encoder's features say about the classes.

The linear probe minimises, over standardised features f (one that varies less than 1e-6 of the largest counts as dead)
and without penalising the bias,

    mean_i -log softmax(W f_i + b)[y_i] + (penalty / 2) |W|^2.

This is convex, with one minimum for a penalty above 0 (up to a constant on all biases), which L-BFGS reaches to a
tolerance, so that a probe adds no noise of its own: no learning rate, no epochs, no augmentation. The penalty is chosen
on held-out *training* images along a path (from strong to weak, each solution the start of the next, until two in a
row do not improve), and the probe is fitted again on all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lipcomp._arguments import checked
from lipcomp.robustness._estimates import Estimate, accuracy
from lipcomp.robustness._features import unit_rows

PENALTIES = tuple(10.0 ** (-k / 2) for k in range(0, 13))  # 1 .. 1e-6, two a decade
PATIENCE = 2
# Largest entry of the gradient: of the last fit, and of fits on the path, whose held-out losses are then right to 1e-4.
TOLERANCE, PATH_TOLERANCE = 1e-7, 1e-5
ROWS_AT_ONCE = 65536
LEAST_VARIANCE = 1e-4  # added to p (1 - p): what is certain at the start need not stay so
NO_VOTE = 1e-30  # stands for the zero of a class without a neighbour, whose logarithm has no gradient


class Probe(nn.Module):
    """Features -> class scores, with what every probe offers."""

    def logits(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Class scores."""
        return self(features)

    def soft(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Scores with a gradient everywhere, whose largest is the prediction or close to it; attacks ascend these."""
        return self(features)

    def predict(self, features: Float[Tensor, "n features"]) -> Int64[Tensor, " n"]:
        """The class with the largest score."""
        with torch.no_grad():
            return self(features).argmax(1)

    def accuracy(self, features: Float[Tensor, "n features"], labels: Int64[Tensor, " n"]) -> Estimate:
        """Top-1 accuracy with its bootstrap interval over images."""
        return accuracy(self.predict(features).cpu(), labels.cpu())

    def on(self, encoder: nn.Module) -> "Classifier":
        """The classifier of images that this probe makes of an encoder."""
        return Classifier(encoder, self)


class Classifier(nn.Module):
    """Pixels in [0, 1] -> logits: a probe on ``encoder.features``."""

    def __init__(self, encoder: nn.Module, probe: Probe) -> None:
        super().__init__()
        self.encoder, self.probe = encoder, probe

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Class scores of images."""
        return self.probe(self.encoder.features(images))  # type: ignore[operator]

    def surrogate(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """The probe's soft scores, whose gradient attacks ascend."""
        return self.probe.soft(self.encoder.features(images))  # type: ignore[operator]


@dataclass(frozen=True)
class PathPoint:
    """One penalty of the path: how the probe fitted with it does on held-out training images."""

    penalty: float
    loss: float
    accuracy: float
    iterations: int


class LinearProbe(Probe):
    """W f + b on features as the encoder gives them (the standardisation is folded in).

    Attributes
    ----------
    penalty
        The chosen penalty.
    path
        What every penalty gave on the held-out images; empty if only one was given.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Float[Tensor, "classes features"],
        bias: Float[Tensor, " classes"],
        penalty: float = 0.0,
        path: Sequence[PathPoint] = (),
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.penalty, self.path = penalty, tuple(path)

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        return nn.functional.linear(features, self.weight.to(features.dtype), self.bias.to(features.dtype))


class NearestNeighbours(Probe):
    """Weighted vote of the k nearest training features by cosine: weights exp(cosine / temperature) (Wu et al. 2018).

    Its scores are the votes' logarithms, so that their softmax is the vote's distribution.
    """

    bank: Tensor
    labels: Tensor

    def __init__(
        self,
        features: Float[Tensor, "n features"],
        labels: Int64[Tensor, " n"],
        *,
        k: int = 20,
        temperature: float = 0.07,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        _, labels = _check(features, labels, classes)
        if not 1 <= k <= len(features):
            raise ValueError(f"k must lie between 1 and the {len(features)} training images, got {k}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        self.register_buffer("bank", unit_rows(features))
        self.register_buffer("labels", labels)
        self.k, self.temperature = k, temperature
        self.classes = classes or int(labels.max()) + 1

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Log of the votes."""
        votes = []
        step = max(1, 2**25 // len(self.bank))
        for part in unit_rows(features).to(self.bank).split(step):
            cosine, nearest = (part @ self.bank.T).topk(self.k, dim=1)
            weight = ((cosine - cosine[:, :1]) / self.temperature).exp()
            scores = part.new_zeros(len(part), self.classes)
            votes.append(scores.scatter_add_(1, self.labels[nearest], weight))
        return torch.cat(votes).clamp_min(NO_VOTE).log().to(features.dtype)

    def soft(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """The vote of all training features, not of k: log sum exp(cosine / temperature) of each class.

        The vote of one neighbour does not change until the neighbour does, so it has no gradient.
        """
        cosine = unit_rows(features).to(self.bank) @ self.bank.T
        weight = (cosine - cosine.amax(1, keepdim=True).detach()) / self.temperature
        scores = cosine.new_zeros(len(features), self.classes)
        votes = scores.index_add(1, self.labels, weight.exp())
        return votes.clamp_min(NO_VOTE).log().to(features.dtype)


@checked
def fit_linear_probe(
    features: Float[Tensor, "n features"],
    labels: Int64[Tensor, " n"],
    *,
    classes: int | None = None,
    penalties: Sequence[float] = PENALTIES,
    held_out: float = 0.2,
    choose_by: Literal["loss", "accuracy"] = "loss",
    generator: torch.Generator | None = None,
    max_iterations: int = 500,
    tolerance: float = TOLERANCE,
    start: LinearProbe | None = None,
    dtype: torch.dtype | None = None,
) -> LinearProbe:
    """Fit a linear probe by L-BFGS, its penalty chosen on held-out training images.

    Parameters
    ----------
    features, labels
        Cached features of the training images, and their classes from 0.
    classes
        Count of classes; the largest label plus one if not given.
    penalties
        Values to choose from. With one value nothing is held out.
    held_out
        Share of the training images of each class that are used to choose the penalty.
    choose_by
        "loss" (cross-entropy: smooth in the penalty, so the choice is stable) or "accuracy" (ties go to the
        stronger penalty).
    generator
        Randomness of the held-out images (CPU); by default seeded with 0.
    max_iterations
        Maximum number of L-BFGS iterations per penalty.
    tolerance
        Largest entry of the gradient at which the last fit stops. Fits on the path stop at 1e-5.
    start
        A probe from which the first fit starts; it changes the time, not the minimum.
    dtype
        Precision of the fit: float64 on the CPU, float32 elsewhere if not given.

    Raises
    ------
    ValueError
        If the arguments are not valid, or no class has an image to hold out.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.robustness import fit_linear_probe
    >>> features, labels = torch.randn(200, 16), torch.arange(200) % 4
    >>> probe = fit_linear_probe(features, labels)
    >>> probe.predict(features).shape, probe.accuracy(features, labels).n
    (torch.Size([200]), 200)
    """
    classes, labels = _check(features, labels, classes)
    if not len(penalties) or not all(0 <= penalty < math.inf for penalty in penalties):
        raise ValueError(f"penalties must be at least one finite number >= 0, got {tuple(penalties)}")
    if max_iterations < 1 or not 0 <= tolerance < math.inf:
        raise ValueError(
            f"max_iterations must be at least 1 and tolerance a number >= 0, got {max_iterations} and {tolerance}"
        )
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    if start is not None and start.weight.shape != (classes, features.shape[1]):
        raise ValueError(
            f"start must be a probe of {classes} classes on {features.shape[1]} features, got one of shape "
            f"{tuple(start.weight.shape)}"
        )
    if choose_by not in ("loss", "accuracy"):
        raise ValueError(f'choose_by must be "loss" or "accuracy", got {choose_by!r}')
    dtype = dtype or (torch.float64 if features.device.type == "cpu" else torch.float32)
    given, labels = features.detach(), labels.to(features.device)
    wide = given.to(torch.promote_types(given.dtype, dtype))
    # a power of two, so that it rounds nothing: squares of 1e30 or 1e-30 leave the range of float32
    scale = 2.0 ** (math.frexp(float(wide.abs().max()) or 1.0)[1] - 1)
    features = (wide / scale).to(dtype)
    ordered = sorted(set(penalties), reverse=True)
    path: list[PathPoint] = []
    first = best_start = None
    if start is not None:
        first = best_start = torch.cat(
            [start.weight.to(features) * scale, start.bias[:, None].to(features)], 1
        )
    if len(ordered) > 1:
        train, test = split_by_class(labels, held_out, generator)
        held, targets = features[test], labels[test]
        for penalty in ordered:
            first, iterations = _minimise(
                features[train], labels[train], classes, penalty, first, max_iterations, PATH_TOLERANCE
            )
            logits = held @ first[:, :-1].T + first[:, -1]
            loss = float(nn.functional.cross_entropy(logits, targets))
            right = float((logits.argmax(1) == targets).double().mean())
            path.append(PathPoint(penalty, loss, right, iterations))
            best = min(path, key=lambda point: point.loss if choose_by == "loss" else -point.accuracy)
            if best is path[-1]:
                best_start = first
            elif len(path) - path.index(best) > PATIENCE:
                break
        penalty = best.penalty
    else:
        penalty = ordered[0]
    solution, _ = _minimise(features, labels, classes, penalty, best_start, max_iterations, tolerance)
    kind = torch.promote_types(given.dtype, torch.float32) if given.is_floating_point() else torch.float32
    weight, bias = (solution[:, :-1] / scale).to(kind), solution[:, -1].to(kind)
    return LinearProbe(weight.contiguous(), bias.contiguous(), penalty, path)


def split_by_class(
    labels: Int64[Tensor, " n"], share: float, generator: torch.Generator | None = None
) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " test"]]:
    """Split indices so that ``share`` of each class (at least one image, never all) is held out.

    The one image of a class is kept: long-tailed sets have such classes.
    """
    if not 0 < share < 1:
        raise ValueError(f"held_out must lie between 0 and 1, got {share}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    train, test = [], []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1).cpu()
        if len(members) > 1:
            members = members[
                torch.randperm(len(members), generator=generator, device=generator.device).cpu()
            ]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        test.append(members[:count])
        train.append(members[count:])
    if not len(torch.cat(test)):
        raise ValueError(
            f"each of the {len(train)} classes has one training image, so none can be held out to choose the penalty; "
            f"give more images, one penalty, or a probe of nearest neighbours"
        )
    return torch.cat(train).sort().values.to(labels.device), torch.cat(test).sort().values.to(labels.device)


def class_indices(labels: Tensor) -> Int64[Tensor, " labels"]:
    """Labels of any type of whole numbers as int64.

    Raises
    ------
    ValueError
        If they are no tensor, or not whole numbers.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        got = str(labels.dtype) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must be a tensor of whole numbers, one class per image, got {got}")
    return labels.long()


def _check(features: Tensor, labels: Tensor, classes: int | None) -> tuple[int, Int64[Tensor, " labels"]]:
    labels = class_indices(labels)
    if not isinstance(features, Tensor):
        raise ValueError(f"features must be a tensor (n, features), got {type(features).__name__}")  # noqa: TRY004
    if features.ndim != 2 or labels.shape != (len(features),):
        raise ValueError(
            f"features must be (n, features) and labels (n,), got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if features.is_complex() or not features.shape[1]:
        raise ValueError(
            f"features must be real numbers, one or more per image, got {features.dtype} {tuple(features.shape)}"
        )
    if len(features) == 0:
        raise ValueError("features must hold at least one training image, got none")
    if not torch.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or infinity; is the encoder's checkpoint intact?")
    highest = int(labels.max()) + 1
    if labels.min() < 0 or (classes is not None and highest > classes):
        raise ValueError(
            f"labels must lie between 0 and classes - 1 ({'?' if classes is None else classes - 1}), got "
            f"{int(labels.min())} to {highest - 1}"
        )
    return classes or highest, labels


def _minimise(
    features: Tensor,
    labels: Tensor,
    classes: int,
    penalty: float,
    start: Tensor | None,
    max_iterations: int,
    tolerance: float,
) -> tuple[Float[Tensor, "classes features_and_bias"], int]:
    """The minimum, as weights and bias on the features as given, and the iterations it took.

    L-BFGS works in coordinates in which the Hessian is near the identity: the standardised features turned to their
    principal axes, and the weights of each class times the root of the Hessian's diagonal at the start, which is
    mean_i p_i (1 - p_i) f_i^2 + penalty, p_i the probability of the class. The objective is the same; the iterations
    fall by several times.
    """
    mean, std = features.mean(0), features.std(0, unbiased=False)
    std = torch.where(std > 1e-6 * std.max(), std, 1.0)  # a dead feature stays as it is: zero
    scaled = nn.functional.pad((features - mean) / std, (0, 1), value=1.0)  # the last column is the bias's
    n = len(features)
    principal = torch.linalg.eigh((scaled.T @ scaled / n)[:-1, :-1]).eigenvectors
    axes = torch.block_diag(principal, scaled.new_ones(1, 1))
    scaled = scaled @ axes
    blocks = list(zip(scaled.split(ROWS_AT_ONCE), labels.split(ROWS_AT_ONCE), strict=True))
    penalties = torch.full_like(scaled[0], penalty)
    penalties[-1] = 0.0
    first = scaled.new_zeros(classes, scaled.shape[1])
    if start is not None:
        weight, bias = start[:, :-1], start[:, -1:]
        first = torch.cat([weight * std, bias + weight @ mean[:, None]], 1) @ axes
    curvature = (penalties + 1e-9).repeat(classes, 1)
    for rows, _ in blocks:
        p = torch.softmax(rows @ first.T, 1)
        curvature += (p * (1 - p) + LEAST_VARIANCE).T @ rows.square() / n
    stretch = curvature.sqrt()
    parameters = (first * stretch).requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [parameters],
        max_iter=max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-5 * tolerance,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        with torch.no_grad():
            weight = parameters / stretch
            loss, gradient = 0.5 * (penalties * weight.square()).sum(), penalties * weight
            for rows, targets in blocks:
                log_p = torch.log_softmax(rows @ weight.T, 1)
                loss = loss - log_p.gather(1, targets[:, None]).sum() / n
                residual = log_p.exp()
                residual[torch.arange(len(rows), device=rows.device), targets] -= 1
                gradient = gradient + residual.T @ rows / n
        parameters.grad = gradient / stretch
        return loss

    optimiser.step(closure)
    iterations = int(optimiser.state[parameters]["n_iter"])
    with torch.no_grad():
        found = parameters / stretch @ axes.T
        weight = found[:, :-1] / std
        return torch.cat([weight, found[:, -1:] - weight @ mean[:, None]], 1), iterations
