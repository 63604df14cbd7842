"""The metrics of corruption benchmarks (theory, section 6).

With E_{s,c} the top-1 error at severity s of corruption c, and E^ref that of a reference model (AlexNet):

    CE_c          = sum_s E_{s,c} / sum_s E^ref_{s,c}                         mCE: its mean over corruptions
    relative CE_c = sum_s (E_{s,c} - E_clean) / sum_s (E^ref_{s,c} - E^ref_clean)
    mean corruption accuracy = 1 - mean over c and s of E_{s,c}

Each function takes per-image results, a row a severity, true where the image is *right*, and gives an interval over
images. Published errors, of which no image is known, are rows of one image that is right to 1 - E:

>>> import numpy as np
>>> from lipcomp.robustness._metrics import ALEXNET, estimate_mce
>>> round(estimate_mce({name: np.full((5, 1), 1 - error) for name, error in ALEXNET.items()}).value, 6)
1.0
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

from lipcomp.robustness._estimates import Estimate, bounded_mean

# Mean error of AlexNet over the five severities, and its clean error (Hendrycks & Dietterich 2019, in the digits of
# google-research/augmix).
ALEXNET: dict[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
ALEXNET_CLEAN = 0.4348

Right = Mapping[str, np.ndarray]


def estimate_corruption_accuracy(right: Right) -> Estimate:
    """Mean accuracy over corruptions and severities (every corruption counts alike), with its interval."""
    weights = np.concatenate([np.full(len(rows), 1 / len(rows) / len(right)) for rows in right.values()])
    return bounded_mean(weights @ _stack(right), (0.0, 1.0))


def estimate_mce(right: Right, reference: Mapping[str, float] = ALEXNET) -> Estimate:
    """MCE with its interval over images (the same images in every condition, as these sets are built)."""
    _check(right, reference)
    weights = np.concatenate(
        [np.full(len(rows), 1 / len(rows) / reference[name] / len(right)) for name, rows in right.items()]
    )
    return bounded_mean(weights @ (1 - _stack(right)), (0.0, float(weights.sum())))


def estimate_relative_mce(right: Right, clean: Shaped[np.ndarray, " n"]) -> Estimate:
    """Relative mCE with its interval; ``clean`` says which of the same images are right without corruption."""
    _check(right, ALEXNET)
    lost = np.asarray(clean, dtype=float) - _stack(right)
    gains = {name: 1 / (ALEXNET[name] - ALEXNET_CLEAN) / len(right) for name in right}
    weights = np.concatenate([np.full(len(cell), gains[name] / len(cell)) for name, cell in right.items()])
    most = float(weights.sum())
    return bounded_mean(weights @ lost, (-most, most))


def flip_rate(predictions: np.ndarray, *, noise: bool = False) -> Estimate:
    """How often the prediction changes along a perturbation sequence (ImageNet-P), with its interval over sequences.

    Parameters
    ----------
    predictions
        (sequences, frames) predicted classes.
    noise
        For noise every frame is compared with the first one, since neighbours share nothing; else with the one before.
    """
    predictions = np.asarray(predictions)
    if predictions.ndim != 2 or predictions.shape[1] < 2:
        raise ValueError(
            f"predictions must be (sequences, frames) with at least 2 frames, got {predictions.shape}"
        )
    before = predictions[:, :1] if noise else predictions[:, :-1]
    flips = predictions[:, 1:] != before
    return bounded_mean(flips.mean(1), (0.0, 1.0))


def top5_distances(
    logits: Float[np.ndarray, "sequences frames classes"], *, noise: bool = False
) -> Float[np.ndarray, " sequences"]:
    """How far the top five move along each perturbation sequence.

    The class of rank i <= 5 in one frame and r in the next adds |i - min(r, 6)|; averaged over the pairs of frames that
    :func:`flip_rate` compares. mT5D is the mean over perturbations of its ratio to AlexNet's.

    Parameters
    ----------
    logits
        Of every frame of every sequence, at least six classes.
    noise
        As for :func:`flip_rate`.
    """
    logits = np.asarray(logits)
    if logits.ndim != 3 or logits.shape[1] < 2 or logits.shape[2] < 6:
        raise ValueError(
            f"logits must be (sequences, at least 2 frames, at least 6 classes), got {logits.shape}"
        )
    order = np.argsort(-logits, axis=2, kind="stable")
    ranks = np.argsort(order, axis=2, kind="stable")[:, 1:]
    leaders = (order[:, :1] if noise else order[:, :-1])[:, :, :5]
    leaders = np.broadcast_to(leaders, (*ranks.shape[:2], 5))
    moved = np.minimum(np.take_along_axis(ranks, leaders, 2), 5)
    return np.abs(moved - np.arange(5)).sum(2).mean(1)


def read_flip_reference(path: Path | str) -> dict[str, dict[str, float]]:
    """A reference model's flip rates (and T5D) by perturbation, from a CSV file, for mFR and mT5D.

    Raises
    ------
    FileNotFoundError
        If the file is missing.
    ValueError
        If it is no table, a column is missing, a perturbation comes twice, or a value is no positive number.
    """
    table = read_table(path, "flip reference", "perturbation")
    if not {"perturbation", "flip_rate"} <= {*table}:
        raise ValueError(
            f"flip reference {str(path)!r} needs the columns perturbation and flip_rate (and top5_distance for mT5D), "
            f"it has {', '.join(map(str, table))}"
        )
    if table["perturbation"].duplicated().any():
        twice = table["perturbation"][table["perturbation"].duplicated()].iloc[0]
        raise ValueError(
            f"flip reference {str(path)!r} has perturbation {twice} twice; leave one of the rows out"
        )
    columns = [name for name in ("flip_rate", "top5_distance") if name in table]
    found = {
        name: dict(zip(table["perturbation"], numbers(path, table, name), strict=True)) for name in columns
    }
    for name, values in found.items():
        if not all(0 < value < np.inf for value in values.values()):
            raise ValueError(
                f"column {name} of {str(path)!r} must hold positive numbers: mFR and mT5D divide by them"
            )
    return found


def read_table(path: Path | str, what: str, row: str) -> pd.DataFrame:
    """A CSV table of the user's."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{what} {str(path)!r} does not exist; give a CSV file, one row per {row}")
    try:
        return pd.read_csv(path)
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{what} {str(path)!r} is no CSV table ({error})") from error


def numbers(path: Path | str, table: pd.DataFrame, column: str) -> Float[np.ndarray, " rows"]:
    """A column of numbers; what is no number is named."""
    found = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
    odd = np.isnan(found) & table[column].notna().to_numpy()
    if odd.any():
        raise ValueError(
            f"column {column} of {str(path)!r} must hold numbers, got {table[column][odd].iloc[0]!r}"
        )
    return found


def mean_flip_rate(rates: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """mFR: the mean over perturbations of the flip rate divided by a reference model's (AlexNet's, in the paper)."""
    missing = [name for name in rates if name not in reference]
    if missing or not rates:
        raise ValueError(f"the reference flip rates lack {', '.join(missing) or 'everything'}; give them all")
    useless = [name for name in rates if not 0 < reference[name] < np.inf]
    if useless:
        raise ValueError(
            f"the reference of {useless[0]} must be a positive number to divide by, got {reference[useless[0]]}"
        )
    return float(np.mean([rate / reference[name] for name, rate in rates.items()]))


def _stack(right: Right) -> np.ndarray:
    rows = [np.atleast_2d(np.asarray(cell, dtype=float)) for cell in right.values()]
    lengths = {name: np.atleast_2d(cell).shape[1] for name, cell in right.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"every corruption must have the same images, got counts {lengths}")
    return np.concatenate(rows)


def _check(right: Right, reference: Mapping[str, float]) -> None:
    if not right:
        raise ValueError("right must hold at least one corruption, got none")
    missing = [name for name in right if name not in reference]
    if missing:
        raise ValueError(
            f"the reference errors lack {', '.join(missing)}; give a reference that has them, or leave them out"
        )
    for name, values in right.items():
        if not (np.min(values) >= 0 and np.max(values) <= 1):
            raise ValueError(f"rows must lie in [0, 1], got {np.min(values)} to {np.max(values)} for {name}")
