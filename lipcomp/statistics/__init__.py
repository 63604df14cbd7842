"""Does the one explain the other: paired effects, correlation across models and images, what n allows."""

from lipcomp.statistics.correlation import correlation, partial_correlation
from lipcomp.statistics.estimate import Estimate
from lipcomp.statistics.multiplicity import Adjusted, adjust
from lipcomp.statistics.paired import PairedEffect, paired_effect
from lipcomp.statistics.per_image import LogisticEffect, auroc, clustered_logistic
from lipcomp.statistics.power import Detectable, smallest_detectable_effect
from lipcomp.statistics.within import WithinBetween, within_pairs

__all__ = [
    "Adjusted",
    "Detectable",
    "Estimate",
    "LogisticEffect",
    "PairedEffect",
    "WithinBetween",
    "adjust",
    "auroc",
    "clustered_logistic",
    "correlation",
    "paired_effect",
    "partial_correlation",
    "smallest_detectable_effect",
    "within_pairs",
]
