"""Training objectives: SimCLR, BYOL, their compressed twins, and the controls between them."""

import lipcomp.objectives._supervised  # whose objectives are found by name, as all are
from lipcomp.objectives._byol import BYOL, CBYOL
from lipcomp.objectives._objective import Loss, Objective
from lipcomp.objectives._simclr import CSimCLR, SimCLR

__all__ = ["BYOL", "CBYOL", "CSimCLR", "Loss", "Objective", "SimCLR"]
