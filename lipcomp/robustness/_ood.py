"""Out-of-distribution detection on frozen features, scored as OpenOOD scores it (Zhang et al. 2023).

A detector gives each image a score that is larger for images of the training distribution. It is judged on images of
that distribution (in) and of another (out):

* AUROC, the chance that an in image scores above an out image (ties count half), with DeLong's interval;
* FPR95, the share of in images that are flagged at the threshold that flags 95% of the out images. OpenOOD counts out
  images as positives; papers that count in images as positives report another number under the same name.

==============  ====================================================================  ===========================
score           definition                                                            needs
==============  ====================================================================  ===========================
``msp``         largest softmax probability (Hendrycks & Gimpel 2017)                 logits
``max_logit``   largest logit                                                         logits
``energy``      log sum exp of the logits (Liu et al. 2020)                           logits
``knn``         minus the distance to the k-th nearest normalised training feature    features
                (Sun et al. 2022; k = 50 in OpenOOD)
``mahalanobis`` minus the least squared distance to a class mean under one tied       features, training labels
                covariance (Lee et al. 2018, last layer)
==============  ====================================================================  ===========================

The layer must be said: features are whatever the encoder gives at it. "Near" sets hold classes like the training
classes from elsewhere, "far" sets another kind of image; each set is reported by itself, and their means by nearness.

>>> import numpy as np
>>> from lipcomp.robustness._ood import auroc, fpr95
>>> auroc(np.array([3.0, 2.0, 1.0]), np.array([0.0, 1.5])).value
0.8333...
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy import special
from torch import Tensor

from lipcomp.robustness._estimates import LEVEL, RESAMPLES, Estimate, proportion
from lipcomp.robustness._features import unit_rows

NEIGHBOURS = 50
FROM_LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "msp": lambda logits: torch.softmax(logits.double(), 1).amax(1),
    "max_logit": lambda logits: logits.double().amax(1),
    "energy": lambda logits: torch.logsumexp(logits.double(), 1),
}
SCORES = (*FROM_LOGITS, "knn", "mahalanobis")


def auroc(inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " m"]) -> Estimate:
    """Area under the ROC curve, with DeLong's interval on the logit scale; n counts the images of both sets.

    Raises
    ------
    ValueError
        If a set is empty or a score is not finite.
    """
    from scipy.stats import rankdata  # a second to import, here alone

    _check(inside, outside)
    n, m = len(inside), len(outside)
    ranks = rankdata(np.concatenate([inside, outside]))
    # Placements: for each in image the share of out images below it, and the other way round.
    above = (ranks[:n] - rankdata(inside)) / m
    below = 1 - (ranks[n:] - rankdata(outside)) / n
    value = float(above.mean())
    if np.ptp(above) == np.ptp(below) == 0 or min(n, m) == 1:  # no spread: as if images were pairs
        low, high = proportion(np.arange(min(n, m)) < value * min(n, m)).interval or (0.0, 1.0)
        return Estimate(value, (min(low, value), max(high, value)), n + m)
    error = np.sqrt(above.var(ddof=1) / n + below.var(ddof=1) / m)
    reach = special.ndtri((1 + LEVEL) / 2) * error / (value * (1 - value))
    low, high = special.expit(special.logit(value) + np.array([-reach, reach]))
    return Estimate(value, (float(low), float(high)), n + m)


def fpr95(
    inside: Float[np.ndarray, " n"],
    outside: Float[np.ndarray, " m"],
    *,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Share of in images flagged at the threshold that flags 95% of the out images; bootstrap over both sets.

    Raises
    ------
    ValueError
        If a set is empty or a score is not finite.
    """
    _check(inside, outside)
    rng = np.random.default_rng(0)
    samples = [
        _fpr(rng.choice(inside, len(inside)), rng.choice(outside, len(outside))) for _ in range(resamples)
    ]
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = _fpr(inside, outside)
    exact = proportion(np.arange(len(inside)) < round(value * len(inside))).interval  # near 0 and 1
    assert exact is not None
    interval = (min(float(low), exact[0]), max(float(high), exact[1]))
    return Estimate(value, interval, len(inside) + len(outside))


def _fpr(inside: np.ndarray, outside: np.ndarray) -> float:
    """Images with a score of at most the threshold are flagged."""
    needed = int(np.ceil(0.95 * len(outside) - 1e-9))
    threshold = np.partition(outside, needed - 1)[needed - 1]
    return float((inside <= threshold).mean())


def knn_score(
    train: Float[Tensor, "n features"], features: Float[Tensor, "m features"], *, k: int = NEIGHBOURS
) -> Float[np.ndarray, " m"]:
    """Minus the distance of each normalised feature to its k-th nearest among the training features.

    Raises
    ------
    ValueError
        If there are fewer than ``k`` training features.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k must lie between 1 and the {len(train)} training images, got {k}")
    bank, found = unit_rows(train), []
    middle = bank.mean(0)  # from there, distances keep their digits where all features point nearly one way
    bank = bank - middle
    squares, step = bank.square().sum(1), max(1, 2**25 // len(bank))
    for part in (unit_rows(features).to(bank) - middle).split(step):
        nearest = torch.addmm(squares, part, bank.T, alpha=-2).topk(k, dim=1, largest=False).values[:, -1]
        found.append(-(nearest.double() + part.double().square().sum(1)).clamp_min(0).sqrt())
    return torch.cat(found).cpu().numpy()


def mahalanobis_score(
    train: Float[Tensor, "n features"], labels: Int64[Tensor, " n"], features: Float[Tensor, "m features"]
) -> Float[np.ndarray, " m"]:
    """Minus the squared distance of each feature to the nearest class mean, under the classes' shared covariance.

    The covariance is inverted on the directions in which the training features vary.

    Raises
    ------
    ValueError
        If they vary in none: one image per class, or a dead encoder.
    """
    train, features = train.double().cpu(), features.double().cpu()
    classes, which = labels.cpu().unique(return_inverse=True)
    counts = torch.bincount(which, minlength=len(classes)).double()
    means = train.new_zeros(len(classes), train.shape[1]).index_add_(0, which, train) / counts[:, None]
    residual = train - means[which]
    variances, axes = torch.linalg.eigh(residual.T @ residual / len(train))
    used = variances > 1e-10 * variances[-1]
    if not variances[-1] > 1e-20 * train.square().mean():
        raise ValueError(
            f"mahalanobis needs training features that vary within a class, got {len(train)} images of {len(classes)} "
            f"classes without; give more images per class"
        )
    whiten = axes[:, used] / variances[used].sqrt()
    return -torch.cdist(features @ whiten, means @ whiten).square().amin(1).numpy()


def scores(
    name: str,
    *,
    logits: Float[Tensor, "n classes"] | None = None,
    features: Float[Tensor, "n features"] | None = None,
    train: Float[Tensor, "t features"] | None = None,
    labels: Int64[Tensor, " t"] | None = None,
    k: int = NEIGHBOURS,
) -> Float[np.ndarray, " n"]:
    """A detector's scores by its name in the table above, from what it needs.

    Raises
    ------
    ValueError
        If there is no such score, or what it needs is not given.
    """
    if name not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {name!r}")
    needed = {"knn": (features, train), "mahalanobis": (features, train, labels)}.get(name, (logits,))
    if any(thing is None for thing in needed):
        raise ValueError(
            f"score {name!r} needs {'logits' if name in FROM_LOGITS else 'features and training features'}"
        )
    if name in FROM_LOGITS:
        assert logits is not None
        return FROM_LOGITS[name](logits).cpu().numpy()
    assert features is not None
    assert train is not None
    if name == "knn":
        return knn_score(train, features, k=min(k, len(train)))
    assert labels is not None
    return mahalanobis_score(train, labels, features)


def _check(inside: np.ndarray, outside: np.ndarray) -> None:
    for name, values in (("inside", inside), ("outside", outside)):
        if not len(values) or not np.isfinite(values).all():
            raise ValueError(
                f"scores of the images {name} must be finite and at least one, got {len(values)} with "
                f"{int((~np.isfinite(values)).sum())} not finite"
            )
