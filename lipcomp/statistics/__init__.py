"""Statistics: paired effects, verdicts, correlation across models and images, and what n allows."""

from lipcomp.statistics._correlation import correlation
from lipcomp.statistics._multiplicity import adjust
from lipcomp.statistics._paired import paired_effect
from lipcomp.statistics._power import smallest_detectable_effect
from lipcomp.statistics._units import contrast
from lipcomp.statistics._verdict import decide
from lipcomp.statistics._within import within_pairs

__all__ = [
    "adjust",
    "contrast",
    "correlation",
    "decide",
    "paired_effect",
    "smallest_detectable_effect",
    "within_pairs",
]
