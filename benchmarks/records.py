"""Seconds of one core to write and to read a file of records.

    python -m benchmarks.records [--count 1000000] [--batch 5000]

The records are those of a study: thirty runs, what differs in every line beside what most lines share. Asked is that
a million are read in under 10 seconds.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lipcomp._commands import Parser, run, table
from lipcomp.records import Record, append_records, read_records
from lipcomp.records._origin import provenance


def main(arguments: Sequence[str] | None = None) -> int:
    """Write and read a file; print the processor seconds of each."""
    parser = Parser(prog="python -m benchmarks.records", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="records (default 1000000)")
    parser.add_argument("--batch", type=int, default=5000, help="records per append (default 5000)")
    options = parser.parse_args(arguments)
    told, count = provenance(), options.count

    def record(i: int, batch: int) -> Record:
        subject = {"run": f"run-{i % 30}", "seed": i % 10, "sha256": "a" * 64}
        settings = {"data": "mnist5k", "corruption": "fog", "severity": i % 5, "i": i}
        value = i / count
        return Record("accuracy.corruption", value, "", 300, (value, value), subject, settings,
                      told | {"seconds": batch / 8}, identity=f"{i:032x}.{i:016x}")  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        path, seconds = Path(folder) / "records.jsonl", [time.process_time()]
        for start in range(0, count, options.batch):
            append_records(path, [record(i, start) for i in range(start, min(start + options.batch, count))])
        seconds.append(time.process_time())
        assert len(read_records(path)) == count
        seconds.append(time.process_time())
        size = f"{path.stat().st_size / 2**20:.0f} MiB"
    written, read = (f"{b - a:.1f}" for a, b in itertools.pairwise(seconds))
    print(table(("records", "size", "written, s", "read, s"), [(f"{count:,}", size, written, read)]))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
