"""Statistics: paired effects, verdicts, correlation across models and images, and what n allows."""

from lipcomp.statistics._correlation import correlation, partial_correlation
from lipcomp.statistics._estimate import Estimate
from lipcomp.statistics._hierarchical import HierarchicalEffect, hierarchical_effect
from lipcomp.statistics._mediation import Mediation, mediation, robustness_value
from lipcomp.statistics._multiplicity import Adjusted, adjust
from lipcomp.statistics._paired import PairedEffect, paired_effect
from lipcomp.statistics._per_image import LogisticEffect, auroc, clustered_logistic
from lipcomp.statistics._power import Detectable, smallest_detectable_effect
from lipcomp.statistics._sequential import SequentialErrors, sequential_errors
from lipcomp.statistics._slopes import Slope, block_slope
from lipcomp.statistics._units import Contrast, contrast, shared_image_variance
from lipcomp.statistics._verdict import Verdict, Zone, decide, equivalence_p, units_needed
from lipcomp.statistics._within import WithinBetween, within_pairs

__all__ = [
    "Adjusted",
    "Contrast",
    "Detectable",
    "Estimate",
    "HierarchicalEffect",
    "LogisticEffect",
    "Mediation",
    "PairedEffect",
    "SequentialErrors",
    "Slope",
    "Verdict",
    "WithinBetween",
    "Zone",
    "adjust",
    "auroc",
    "block_slope",
    "clustered_logistic",
    "contrast",
    "correlation",
    "decide",
    "equivalence_p",
    "hierarchical_effect",
    "mediation",
    "paired_effect",
    "partial_correlation",
    "robustness_value",
    "sequential_errors",
    "shared_image_variance",
    "smallest_detectable_effect",
    "units_needed",
    "within_pairs",
]
