"""Lower and upper bounds of the Lipschitz constant of an encoder."""

from lipcomp.bound.all_pairs import all_pairs
from lipcomp.bound.certified import Certificate, certified_bound
from lipcomp.bound.certified_margin import certified_accuracy, certified_radius
from lipcomp.bound.fisher import fisher_largest, fisher_trace
from lipcomp.bound.lower import bounds_from_chords, lower_bounds, pair_values
from lipcomp.bound.neighbours import nearest_neighbours
from lipcomp.bound.pairs import (
    PairBlock,
    indexed_pairs,
    measure_pairs,
    paired,
    random_pairs,
    view_pairs,
)
from lipcomp.bound.results import LABELS, UNITS, Bound, LowerBounds, Witness
from lipcomp.bound.sandwich import Sandwich, measure_sandwich, sandwich, sandwich_curve
from lipcomp.bound.search import SearchResult, search_ball
