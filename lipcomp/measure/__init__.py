"""The measuring engine: (encoder, images, plan) -> records, the one way for every command and study.

    file -> data -> conditions -> bench (an encoder at a layer) -> estimator -> records

A :class:`Plan` names encoders, images and quantities; :func:`run` measures what is missing and appends it. Each value
is keyed by the content of everything that can change it (:mod:`lipcomp.identity`), so no number is stale, and a number
that was measured by one command is found by the other.

>>> from lipcomp.measure import CleanAccuracy, Images, Plan, Sigma, Source, run
>>> plan = Plan((Source("model.safetensors"),), Images("mnist5k", limit=100), (CleanAccuracy(), Sigma()))
>>> for done in run(plan, "records.jsonl"):  # doctest: +SKIP
...     print(done.unit.label, [record.value for record in done.records])
"""

from lipcomp.measure._accuracy import (
    CleanAccuracy,
    CorruptionAccuracy,
    FlipRate,
    KNNAccuracy,
    ProbeRefits,
    RobustAccuracy,
    ShiftAccuracy,
    VideoAccuracy,
    correctness_bits,
)
from lipcomp.measure._bench import Bench
from lipcomp.measure._beyond import (
    ClassAccuracy,
    EmbeddingRobustness,
    LeaderboardRow,
    OutOfDistribution,
    ShapeBias,
    StreamAccuracy,
    WatermarkGap,
)
from lipcomp.measure._compression import Compression, EffectiveRank
from lipcomp.measure._local import Ball, Frobenius, Sigma
from lipcomp.measure._pairs import Map, Pairs
from lipcomp.measure._plan import Images, Plan, Probe, Source
from lipcomp.measure._run import Done, Outputs, dry_run, open_benches, run
from lipcomp.measure._unit import Finding, Quantity, Result, Unit

__all__ = [
    "Ball",
    "Bench",
    "ClassAccuracy",
    "CleanAccuracy",
    "Compression",
    "CorruptionAccuracy",
    "Done",
    "EffectiveRank",
    "EmbeddingRobustness",
    "Finding",
    "FlipRate",
    "Frobenius",
    "Images",
    "KNNAccuracy",
    "LeaderboardRow",
    "Map",
    "OutOfDistribution",
    "Outputs",
    "Pairs",
    "Plan",
    "Probe",
    "ProbeRefits",
    "Quantity",
    "Result",
    "RobustAccuracy",
    "ShapeBias",
    "ShiftAccuracy",
    "Sigma",
    "Source",
    "StreamAccuracy",
    "Unit",
    "VideoAccuracy",
    "WatermarkGap",
    "correctness_bits",
    "dry_run",
    "open_benches",
    "run",
]
