"""Pictures of records and results, as matplotlib axes (``pip install 'lipcomp[plots]'``).

Each function takes records (a list, or their data frame) or results, and returns the axes it drew on: ``ax``, or new
ones. One colour and one marker per encoder, told apart by colour-blind readers, as in the reports.

>>> import lipcomp
>>> records = lipcomp.read_records("study.jsonl")  # doctest: +SKIP
>>> lipcomp.plots.smoothness_against_robustness(records).figure.savefig("picture.png")  # doctest: +SKIP
"""

from lipcomp._messages import needed

with needed("lipcomp.plots", "lipcomp[plots]"):
    import seaborn

from lipcomp.plots._pictures import (
    accuracy_against_severity,
    bounds_against_distance,
    certificate_against_radius,
    local_constants,
    smoothness_against_robustness,
)

__all__ = [
    "accuracy_against_severity",
    "bounds_against_distance",
    "certificate_against_radius",
    "local_constants",
    "smoothness_against_robustness",
]
