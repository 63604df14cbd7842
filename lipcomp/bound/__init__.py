"""Lower and upper bounds of the Lipschitz constant of an encoder."""

from lipcomp.bound._all_pairs import all_pairs
from lipcomp.bound._certified import Certificate, certified_bound
from lipcomp.bound._certified_margin import certified_accuracy, certified_radius
from lipcomp.bound._fisher import fisher_largest, fisher_trace
from lipcomp.bound._lower import bounds_from_chords, lower_bounds, pair_values
from lipcomp.bound._neighbours import nearest_neighbours
from lipcomp.bound._pairs import (
    PairBlock,
    indexed_pairs,
    measure_pairs,
    paired,
    random_pairs,
    view_pairs,
)
from lipcomp.bound._results import LABELS, UNITS, Bound, LowerBounds, Witness
from lipcomp.bound._sandwich import Sandwich, measure_sandwich, sandwich, sandwich_curve
from lipcomp.bound._search import SearchResult, search_ball
