"""One method against another on correctness bits, with seed, run, image and corruption as groups.

Hits are counted in cells (run x corruption x block of images); the response is the empirical logit
log((hits + 1/2) / (misses + 1/2)), which keeps floors and ceilings from passing for effects, and the model

    y = method + corruption + seed + run + images + images x method + corruption x method + noise

has the method and each corruption as fixed effects and all others as crossed random intercepts, fitted by REML
(statsmodels ``MixedLM``). The methods' effect is thus tested against the spread of runs, of what images and of what
corruptions do to it, not against the number of bits. Student's interval takes the number of seeds less one for degrees
of freedom. Blocks of images stand for images: single ones would make no cell.

A Bayesian fit of the bits themselves (statsmodels ``BinomialBayesMixedGLM``) was tried and left: with five seeds its
mode puts the spread of runs at zero, and the interval is that of independent bits.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Bool, Shaped

from lipcomp._messages import needed
from lipcomp.statistics._estimate import Estimate, check_level
from lipcomp.statistics._slopes import student

BLOCKS = 8


@dataclass(frozen=True)
class HierarchicalEffect(Estimate):
    """A difference in log-odds of a hit."""

    points: float | None = None  # the same in points, at the mean accuracy; with its interval
    points_interval: tuple[float, float] | None = None  # see ``points``
    # standard deviation, in log-odds, of each random part
    spreads: dict[str, float] = field(default_factory=dict)


def hierarchical_effect(
    bits: Sequence[Bool[np.ndarray, "conditions images"]],
    corruption: Shaped[np.ndarray, " conditions"],
    treated: Sequence[bool],
    seed: Sequence[object],
    *,
    blocks: int = BLOCKS,
    level: float = 0.95,
) -> HierarchicalEffect:
    """The effect of a method on the log-odds of a hit.

    Parameters
    ----------
    bits
        One array a run: which images are right under which condition.
    corruption
        The corruption of each condition; conditions of one corruption (its severities) are counted together.
    treated, seed
        Of each run.
    blocks
        Blocks that the images are cut into.
    level
        Nominal coverage of the interval.

    Returns
    -------
    HierarchicalEffect
        Without value, and with the reason, for fewer than two seeds of both kinds or a fit that fails.

    Raises
    ------
    ValueError
        If runs differ in shape.
    ImportError
        If statsmodels is not installed.
    """
    with needed("hierarchical_effect", "lipcomp[statistics]"):
        from statsmodels.regression.mixed_linear_model import MixedLM, MixedLMParams
    check_level(level)
    if len({b.shape for b in bits}) > 1:
        raise ValueError(f"bits must have one shape, got {sorted({b.shape for b in bits})}")
    labels = [str(s) for s in seed]
    both = {s for s, t in zip(labels, treated, strict=True) if t} & {
        s for s, t in zip(labels, treated, strict=True) if not t
    }
    name, method = "log-odds of a hit", "REML of empirical logits; seed, run, images and corruption as groups"

    def missing(reason: str) -> HierarchicalEffect:
        return HierarchicalEffect(name, None, None, None, len(both), method, level, note=reason)

    if len(both) < 2:
        return missing(f"seeds that hold both methods: {len(both)}, 2 are needed")
    table = _cells(bits, corruption, treated, labels, both, blocks)
    parts = {"seed": "0 + C(seed)", "run": "0 + C(run)", "images": "0 + C(block)"}
    parts |= {"images x method": "0 + C(block_method)", "corruption x method": "0 + C(corruption_method)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = MixedLM.from_formula(
                "y ~ 0 + treated + C(corruption)", groups="one", vc_formula=parts, re_formula="0", data=table
            )
        except (np.linalg.LinAlgError, ValueError) as failure:
            return missing(f"the fit failed ({failure})")
        # Methods with gradients (L-BFGS) end at the boundary, far below the maximum; Powell's can meet a singular
        # matrix where a spread is near zero. So two ways to the maximum, from large variances and from small ones.
        fits, failures = [], []
        nothing = {"fe_params": np.zeros(model.k_fe), "cov_re": np.zeros((0, 0))}
        for variance in (1.0, 0.1, 0.01):
            start = MixedLMParams.from_components(**nothing, vcomp=np.full(model.k_vc, variance))
            try:
                fits.append(model.fit(start, reml=True, method="powell"))
            except (np.linalg.LinAlgError, ValueError) as failure:
                failures.append(failure)
            if len(fits) == 2:
                break
    fits = [found for found in fits if math.isfinite(found.llf)]
    if not fits:
        return missing(f"the fit failed ({failures[0] if failures else 'no finite likelihood'})")
    best = max(found.llf for found in fits)
    fit = next(found for found in fits if found.llf > best - 0.01)
    value, error = float(fit.fe_params["treated"]), float(fit.bse_fe["treated"])
    if not math.isfinite(error) or error <= 0:
        return missing("the fit gives no standard error")
    freedom = len(both) - 1
    interval, p_value = student(value, error, freedom, level)
    p = float(np.mean([b.mean() for b in bits]))
    scale = 100 * p * (1 - p)
    names = sorted(parts)  # the order in which MixedLM keeps them
    spreads = {n: math.sqrt(max(0.0, float(v))) for n, v in zip(names, fit.vcomp, strict=True)}
    return HierarchicalEffect(
        name=name,
        value=value,
        interval=interval,
        p_value=p_value,
        n=len(both),
        method=f"{method}; Student's interval, {freedom} degrees of freedom",
        level=level,
        note="" if fit.converged else "the fit did not converge",
        points=scale * value,
        points_interval=(scale * interval[0], scale * interval[1]),
        spreads=spreads,
    )


def _cells(
    bits: Sequence[np.ndarray],
    corruption: np.ndarray,
    treated: Sequence[bool],
    seed: Sequence[str],
    both: set[str],
    blocks: int,
) -> pd.DataFrame:
    """A row per run, corruption and block of images: the empirical logit, and the groups it belongs to."""
    names = list(dict.fromkeys(corruption.tolist()))
    images = np.array_split(np.arange(bits[0].shape[1]), min(blocks, bits[0].shape[1]))
    rows = []
    for run, (right, is_treated, label) in enumerate(zip(bits, treated, seed, strict=True)):
        if label not in both:
            continue
        for kind in names:
            of_kind = right[corruption == kind]
            for block, members in enumerate(images):
                cell = of_kind[:, members]
                hits = int(cell.sum())
                logit = math.log((hits + 0.5) / (cell.size - hits + 0.5))
                rows.append((logit, float(is_treated), str(kind), label, run, block))
    table = pd.DataFrame(rows, columns=["y", "treated", "corruption", "seed", "run", "block"])
    side = table["treated"].astype(int).map(str)
    table["block_method"] = table["block"].map(str) + "/" + side
    table["corruption_method"] = table["corruption"] + "/" + side
    return table.assign(one=1)
