"""Lower and upper bounds of the Lipschitz constant of an encoder."""

from lipcomp.bound._all_pairs import all_pairs
from lipcomp.bound._certified import certified_bound
from lipcomp.bound._certified_margin import certified_accuracy, certified_radius
from lipcomp.bound._lower import lower_bounds
from lipcomp.bound._pairs import measure_pairs, random_pairs
from lipcomp.bound._sandwich import lipschitz
from lipcomp.bound._search import search_ball

__all__ = [
    "all_pairs",
    "certified_accuracy",
    "certified_bound",
    "certified_radius",
    "lipschitz",
    "lower_bounds",
    "measure_pairs",
    "random_pairs",
    "search_ball",
]
