"""Records: one measured value each, with what was measured, how, and by what code; JSON lines on disk.

A line is one :class:`Record`:

==========  ====================================================================================
schema      version of this layout; this code writes 2, and reads 1 as well
identity    hash of everything that can change the value: equal for equal measurements
quantity    dotted name of the quantity: ``sigma_max.mean``, ``accuracy.corruption``
value       a number, or null where it could not be estimated (``settings`` then says why)
unit        "nats", "1/pixel L2", "" for a ratio
n           how many images, pairs or models it rests on
interval    lower and upper end of its 95% interval, or null
subject     what was measured: checkpoint, its hash, recipe, objective, beta, seed
settings    how: data, layer, pair source, corruption, severity, tolerance
provenance  versions, device, precision, command line, time
==========  ====================================================================================

A file only grows, and nothing that is not ours is ever cut. Figures and reports are drawn from records alone.

>>> from lipcomp.records import Record, append_records, read_records, to_frame
>>> append_records("study.jsonl", [Record("accuracy.clean", 0.97, n=1000)])  # doctest: +SKIP
>>> to_frame(read_records("study.jsonl"))  # doctest: +SKIP

A file with damaged lines is rescued by ``python -m lipcomp.records salvage FILE --out NEW``.
"""

from lipcomp.records._files import append_records, read_records
from lipcomp.records._frames import to_frame
from lipcomp.records._record import Record

__all__ = [
    "Record",
    "append_records",
    "read_records",
    "to_frame",
]
