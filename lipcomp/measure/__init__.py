"""The measuring engine: (encoder, images, plan) -> records, the one way for every command and study.

    file -> data -> conditions -> bench (an encoder at a layer) -> estimator -> records

A :class:`Plan` names encoders, images and quantities; :func:`run` measures what is missing and appends it. Each value
is keyed by the content of everything that can change it (:mod:`lipcomp._identity`), so no number is stale, and a number
that was measured by one command is found by the other.

>>> from lipcomp.measure import CleanAccuracy, Images, Plan, Sigma, Source, run
>>> plan = Plan((Source("model.safetensors"),), Images("mnist5k", limit=100), (CleanAccuracy(), Sigma()))
>>> for done in run(plan, "records.jsonl"):  # doctest: +SKIP
...     print(done.unit.label, [record.value for record in done.records])
"""

from lipcomp.measure._accuracy import CleanAccuracy
from lipcomp.measure._corrupted import CorruptionAccuracy
from lipcomp.measure._local import Sigma
from lipcomp.measure._pairs import Pairs
from lipcomp.measure._plan import Images, Plan, Source
from lipcomp.measure._run import run

__all__ = [
    "CleanAccuracy",
    "CorruptionAccuracy",
    "Images",
    "Pairs",
    "Plan",
    "Sigma",
    "Source",
    "run",
]
