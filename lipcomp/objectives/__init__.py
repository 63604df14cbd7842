"""Training objectives: SimCLR, BYOL, their compressed twins, and the controls between them."""

from typing import Any

from lipcomp.objectives._byol import BYOL, CBYOL
from lipcomp.objectives._ceb import CSimCLR, NoisySimCLR
from lipcomp.objectives._nt_xent import SimCLR, WeightedSimCLR, info_nce
from lipcomp.objectives._objective import Loss, Objective
from lipcomp.objectives._residual import closed_residual, pair_weights, residual_floor, sampled_residual
from lipcomp.objectives._schedules import beta_factor
from lipcomp.objectives._supervised import ClassEncoder, CosineClassifier, SupervisedCEB

OBJECTIVES: dict[str, type[Objective]] = {
    objective.__name__: objective
    for objective in (
        SimCLR,
        WeightedSimCLR,
        NoisySimCLR,
        CSimCLR,
        BYOL,
        CBYOL,
        SupervisedCEB,
        CosineClassifier,
    )
}


def objective_from_dict(description: dict[str, Any]) -> Objective:
    """The objective that :meth:`Objective.to_dict` described.

    Raises
    ------
    ValueError
        If the name or an option is unknown.
    """
    options = dict(description)
    name = options.pop("name", None)
    if name not in OBJECTIVES:
        raise ValueError(f"objective name must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    try:
        return OBJECTIVES[name](**options)
    except TypeError as error:
        raise ValueError(f"the options of {name} do not fit: {error}") from None
