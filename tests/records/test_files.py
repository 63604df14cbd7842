"""Files of records survive crashes, concurrent writers, other versions and what is not theirs."""

import errno
import gzip
import json
import lzma
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import warnings

import pytest

from lipcomp import _claims as claims
from lipcomp.records import (
    Record,
    _files as files,
    _record as record,
    append_records,
    read_records,
)
from lipcomp.records.__main__ import main
from lipcomp.records._files import iterate_records, salvage_records
from lipcomp.records._record import RecordError, RecordWarning

CLEAN = Record(
    "accuracy.clean",
    0.97,
    n=1000,
    interval=(0.96, 0.98),
    subject={"seed": 1},
    settings={"data": "mnist5k"},
)
BOUND = Record("bound.supremum.max", 3.5, unit="1/pixel L2²", subject={"seed": 2, "sizes": [1, {"a": 2}]})
OTHER = Record("other", None, settings={"why": "constant", "provenance": {"subject": 1}}, identity="ab")


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new folder" / "r.jsonl"
    append_records(path, [CLEAN])
    append_records(path, [BOUND, OTHER])
    append_records(path, [])
    assert read_records(path) == [CLEAN, BOUND, OTHER]
    assert read_records([path, path]) == [CLEAN, BOUND, OTHER] * 2
    assert next(iterate_records(path)) == CLEAN
    assert [file.name for file in path.parent.iterdir()] == ["r.jsonl"]  # no lock is left
    assert [json.loads(line)["schema"] for line in path.read_text().splitlines()] == [2, 2, 2]


def test_records_do_not_share_what_is_nested(tmp_path):
    append_records(tmp_path / "r", [CLEAN, CLEAN, BOUND, BOUND])
    one, two, three, four = read_records(tmp_path / "r")
    one.subject["seed"], three.subject["sizes"][1]["a"] = 7, 7
    assert (two, four) == (CLEAN, BOUND)


def test_every_cut_of_a_file_leaves_whole_batches_and_the_next_append_mends_it(tmp_path):
    path = tmp_path / "r.jsonl"
    append_records(path, [CLEAN])
    first = path.stat().st_size
    append_records(path, [BOUND, CLEAN, OTHER])
    whole = path.read_bytes()
    ends = {place for m in re.finditer(rb"\n", whole) for place in range(m.start() - 1, m.end() + 12)}
    for cut in sorted({*range(0, len(whole), 7), *ends, len(whole) - 1} & set(range(len(whole)))):
        path.write_bytes(whole[:cut])
        kept = [] if cut < first - 1 else [CLEAN]
        if cut == len(whole) - 1:  # all but the last newline
            kept = [CLEAN, BOUND, CLEAN, OTHER]
        if cut in (0, first - 1, first, len(whole) - 1):
            assert read_records(path) == kept
        else:
            with pytest.warns(RecordWarning, match="append was cut short"):
                assert read_records(path) == kept
        append_records(path, [BOUND])
        assert read_records(path) == [*kept, BOUND]


def test_a_file_that_is_not_ours_is_left_as_it_is(tmp_path):
    path = tmp_path / "file"
    for content in (
        b'{"lr": 0.1}',
        b'{"lr": 0.1}\n',
        b'{\n "schema": 2\n}\n',
        b'{"schema": "http://json-schema.org", "quantity": "x"}',
        b'{"schema": 2, "quantity": 3}\n',
        b"name,value\na,1\n",
        b"some text without an end",
        b"\x89PNG\r\n\x1a\n\0\0",
        bytes(range(256)) * 9000,
        b"[1, 2]\n",
        b"\0" * 100,
    ):
        path.write_bytes(content)
        for records in ([CLEAN], []):
            with pytest.raises(RecordError, match="is left as it is"):
                append_records(path, records)
        assert path.read_bytes() == content
        with pytest.raises(RecordError):
            read_records(path)
    for tail in (b"notes of mine", b'{"lr": 0.1', b"\0\0\0", b'{"a": 1}'):
        content = CLEAN.to_json().encode() + b"\n" + tail
        path.write_bytes(content)
        with pytest.raises(RecordError, match="ends in something that is not a record"):
            append_records(path, [CLEAN])
        assert path.read_bytes() == content
    ran_together = [line.to_json().encode() for line in (CLEAN, BOUND)]
    for gap in (b"", b"\r", b" ", b"\0" * 9):  # lines whose newline was lost are no line that was cut
        path.write_bytes(content := gap.join(ran_together))
        with pytest.raises(RecordError, match="ends in something that is not a record"):
            append_records(path, [CLEAN])
        assert path.read_bytes() == content
        with pytest.raises(RecordError, match="line 1: not a record"):
            read_records(path)
        salvage_records(path, rescued := tmp_path / f"rescued-{len(gap)}-{gap[:1].hex()}")
        assert read_records(rescued) == [CLEAN, BOUND]
    path.unlink()
    path.mkdir()
    with pytest.raises(RecordError, match="not a regular file"):
        append_records(path, [CLEAN])


def test_a_last_line_that_lacks_its_newline_is_completed(tmp_path):
    path = tmp_path / "r"
    path.write_text(CLEAN.to_json())
    assert read_records(path) == [CLEAN]
    append_records(path, [BOUND])
    assert read_records(path) == [CLEAN, BOUND]
    reordered = json.dumps(dict(reversed(json.loads(CLEAN.to_json()).items())))
    path.write_text(reordered)
    append_records(path, [BOUND])
    assert read_records(path) == [CLEAN, BOUND]


def test_a_damaged_line_is_named_skipped_or_rescued(tmp_path, capsys):
    path, out = tmp_path / "r.jsonl", tmp_path / "new.jsonl"
    append_records(path, [CLEAN, BOUND])
    append_records(path, [OTHER])
    lines = path.read_bytes().splitlines()
    lines[1] = lines[1][:50] + b"\0\xff" + lines[1][60:]
    path.write_bytes(b"\n".join([*lines, lines[2][:-30] + lines[2]]) + b"\n")
    before = path.read_bytes()
    with pytest.raises(RecordError, match=r"line 2: not a record.*salvage"):
        read_records(path)
    with pytest.warns(RecordWarning, match=r"line [24]: .*; skipped") as told:
        assert read_records(path, skip_damaged=True) == [CLEAN, OTHER]
    assert len(told) == 2
    assert main(["salvage", str(path), "--out", str(out)]) == 0
    assert "3 records; 2 lines" in capsys.readouterr().out
    assert read_records(out) == [CLEAN, OTHER, OTHER]
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="exists already"):
        salvage_records(path, out)
    deep = (
        b'{"schema": 2, "quantity": "q", "value": 1, "subject": '
        + b'{"a": ' * 100_000
        + b"1"
        + b"}" * 100_001
    )
    path.write_bytes(lines[0] + b"\n" + lines[2] + b"\n" + deep + b"\n")
    assert salvage_records(path, tmp_path / "shallow") == (2, 1)
    path.write_text(f"{OTHER.to_json()}\n\n{CLEAN.to_json()}\n", "utf-16")  # by > in Windows PowerShell
    assert salvage_records(path, tmp_path / "narrow") == (2, 0)
    assert read_records(tmp_path / "narrow") == [OTHER, CLEAN]
    for bad in ("NaN", "Infinity"):  # in the settings, by a script of one's own
        damaged = OTHER.to_json().replace('"constant"', bad)
        path.write_text(f"{damaged}\n{CLEAN.to_json()}\n")
        assert salvage_records(path, tmp_path / bad) == (1, 1)
    (tmp_path / "text").write_text("no record\n")
    with pytest.raises(RecordError, match="no record that could be rescued"):
        salvage_records(tmp_path / "text", tmp_path / "another")
    with pytest.raises(OSError, match=r"out .* cannot be written: .* is not a folder"):
        salvage_records(path, tmp_path / "text" / "another")


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:700] + b"\xff" + line[701:],
        lambda line: line.replace(b'"unit"', b'"colour"'),
        lambda line: b"[" + line + b"]",
        lambda line: line.replace(b'"value": ', b'"value": 1e999, "v": '),
        lambda line: b"\0" * len(line),
    ],
)
def test_a_damaged_line_is_named_in_a_line(tmp_path, damage):
    path = tmp_path / "r.jsonl"
    append_records(path, [Record("accuracy.clean", 0.5, subject={"long": "x" * 5000})])
    path.write_bytes(damage(path.read_bytes().rstrip()) + b"\n")
    with pytest.raises(RecordError, match=r"line 1: .*salvage FILE") as told:
        read_records(path)
    assert len(str(told.value)) < 400


def test_a_newer_schema_is_refused_by_readers_and_writers(tmp_path):
    path = tmp_path / "r.jsonl"
    newer = json.dumps({**json.loads(CLEAN.to_json()), "schema": record.SCHEMA + 1}) + "\n"
    for text in (newer, CLEAN.to_json() + "\n" + newer):
        path.write_text(text)
        for act in (
            read_records,
            lambda p: append_records(p, [CLEAN]),
            lambda p: salvage_records(p, tmp_path / "x"),
        ):
            with pytest.raises(RecordError, match=r"schema 3, this lipcomp reads 1 to 2; upgrade lipcomp"):
                act(path)
        with pytest.raises(RecordError, match="upgrade lipcomp"):
            read_records(path, skip_damaged=True)
        assert path.read_text() == text
    path.write_text(newer.replace('"schema": 3', '"schema": 0'))
    with pytest.raises(RecordError, match=r"schema 0.*measure it again"):
        read_records(path)


def test_a_reader_is_not_confused_by_a_writer_that_mends_the_end(tmp_path):
    path = tmp_path / "r"
    long = [Record("q", float(i), subject={"filler": "x" * 300}) for i in range(100)]
    append_records(path, [CLEAN])
    append_records(path, long)
    path.write_bytes(path.read_bytes()[:-10])  # killed there
    reading = iterate_records(path)
    assert next(reading) == CLEAN  # and some of the torn batch is in the reader's buffer
    append_records(path, [BOUND] * 300)
    assert list(reading) == [BOUND] * 300


def test_published_files_are_unpacked_as_they_are_read(tmp_path):
    append_records(tmp_path / "r.jsonl", [Record("a", float(i)) for i in range(30)])
    packed = lzma.compress((tmp_path / "r.jsonl").read_bytes())
    (tmp_path / "r.jsonl.xz").write_bytes(packed)
    assert read_records(tmp_path / "r.jsonl.xz") == read_records(tmp_path / "r.jsonl")
    for damaged in (packed[: len(packed) // 2], b"{" + packed):
        (tmp_path / "r.jsonl.xz").write_bytes(damaged)
        with pytest.raises(RecordError, match="cannot be read"):
            read_records(tmp_path / "r.jsonl.xz")


def test_a_compressed_file_is_named_with_what_unpacks_it(tmp_path):
    """The advice was to rescue its records, which found none."""
    append_records(tmp_path / "r", [CLEAN])
    for pack, how in ((gzip, "gunzip -k"), (lzma, "xz -dk")):
        path = tmp_path / "packed"
        path.write_bytes(pack.compress((tmp_path / "r").read_bytes()))
        held = path.read_bytes()
        for act in (
            lambda p: read_records(p, skip_damaged=True),
            lambda p: append_records(p, [CLEAN]),
            lambda p: salvage_records(p, tmp_path / "x"),
        ):
            with pytest.raises(RecordError, match=f"compressed; unpack it first: {how} FILE"):
                act(path)
        assert path.read_bytes() == held


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"cannot be read .*No such file"):
        read_records(tmp_path / "nothing")


def test_a_record_that_json_cannot_hold_leaves_the_file_alone(tmp_path):
    path = tmp_path / "r.jsonl"
    append_records(path, [CLEAN])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        append_records(path, [BOUND, Record("q", 1.0, settings={"x": object()}, identity="a")])
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    append_records(path, [CLEAN])
    before = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*as it was before; make room"):
            append_records(path, [BOUND])
    assert path.read_bytes() == before
    # A write that stops half-way: the limit on the size of a file.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5000, limits[1]))
        with pytest.raises(
            OSError, match=r"File too large: .*as it was before; raise the limit \(ulimit -f\)"
        ):
            append_records(path, [BOUND] * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before


def test_no_lock_of_the_system_is_needed(tmp_path):
    code = """
import sys, builtins, errno
class Refusing:
    LOCK_EX = LOCK_NB = LOCK_UN = 0
    def flock(*_): raise OSError(errno.ENOSYS, "Function not implemented")
    lockf = flock
sys.modules["fcntl"] = None  # as on Windows: importing it fails
from lipcomp.records import Record, append_records, read_records
append_records(sys.argv[1], [Record("q", 1.0)])
sys.modules["fcntl"] = Refusing  # as on Lustre without -o flock
append_records(sys.argv[1], [Record("q", 2.0)])
assert [r.value for r in read_records(sys.argv[1])] == [1.0, 2.0]
assert not {"torch", "pandas", "numpy"} & set(sys.modules)  # and importing is cheap
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_writer_that_does_not_end_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WAIT", 0.1)
    with (
        claims.claim(tmp_path / "r.append"),
        pytest.raises(TimeoutError, match=r"has been writing .*r for 0.1 s"),
    ):
        append_records(tmp_path / "r", [CLEAN])


def write_many(path, seed, batches, size):
    for i in range(batches):
        append_records(path, [Record("q", float(i), subject={"seed": seed, "i": j}) for j in range(size)])


def test_processes_append_to_one_file(tmp_path):
    path = tmp_path / "r.jsonl"
    writers = [multiprocessing.Process(target=write_many, args=(path, seed, 20, 3)) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = read_records(path)
    for seed in range(3):
        mine = [(r.value, r.subject["i"]) for r in found if r.subject["seed"] == seed]
        assert mine == [(float(i), j) for i in range(20) for j in range(3)]


def write_forever(path, seed, size):
    for i in range(10**6):
        subject = {"seed": seed, "round": i, "filler": "x" * 200}
        append_records(
            path, [Record("q", 1.0, subject={**subject, "i": j}, identity="a") for j in range(size)]
        )


def grown(path, size):
    """Wait until the file is larger than that, but not for ever: its writers may be between two writes."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_size > size):
        pass


def kill_while_they_write(path, size, writers, moment):
    """Start writers, kill one as the file grows and the others later; the file then holds whole batches."""
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=write_forever, args=(path, seed, size)) for seed in range(writers)]
    for process in running:
        process.start()
    grown(path, 0)
    time.sleep(moment)
    for process in running:
        grown(path, path.stat().st_size)
        process.kill()
        process.join()
        time.sleep(moment)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordWarning)
        found = read_records(path)
    cut = path.stat().st_size
    append_records(path, [CLEAN])
    assert read_records(path) == [*found, CLEAN]
    whole = [(r.subject["seed"], r.subject["round"]) for r in found[::size]]
    expected = [(*batch, j) for batch in whole for j in range(size)]
    assert [(r.subject["seed"], r.subject["round"], r.subject["i"]) for r in found] == expected
    assert len(set(whole)) == len(whole)
    return cut > path.stat().st_size - len(CLEAN.to_json()) - 1  # whether something was torn


def test_batches_are_whole_whoever_is_killed_and_when(tmp_path):
    rng = random.Random(0)
    for kill in range(4):
        kill_while_they_write(tmp_path / f"{kill}.jsonl", 1000, 3, rng.random() * 0.02)


@pytest.mark.slow
def test_two_hundred_thousand_records_are_read_as_they_were_written(tmp_path):
    """In batches as a study's, with what they share and what differs in each line."""
    path, told = tmp_path / "r.jsonl", {"torch": "2", "command": "python -m x", "threads": 1}

    def written(i):
        settings = {"corruption": "fog", "severity": i % 5, "i": i, "classes": ["a", "b"]}
        subject = {"run": f"r{i % 30}", "seed": i % 10}
        interval = None if i % 3 == 0 else (i / 3e5, i / 2e5)
        value = None if i % 7 == 0 else i / 2.5e5
        return Record("q.x", value, "s", i, interval, subject, settings, told | {"seconds": i // 5000 / 8})

    for start in range(0, 200_000, 5000):
        append_records(path, [written(i) for i in range(start, start + 5000)])
    found = read_records(path)
    assert len(found) == 200_000
    assert all(record == written(i) for i, record in enumerate(found))
    assert found[0].provenance is not found[1].provenance


@pytest.mark.slow
def test_large_batches_are_whole_whoever_is_killed_and_when(tmp_path):
    rng = random.Random(1)
    torn = 0
    for kill in range(20):
        torn += kill_while_they_write(tmp_path / f"{kill}.jsonl", 20_000, 2, rng.random() * 0.02)
        (tmp_path / f"{kill}.jsonl").unlink()
    assert torn  # some kills fell into a write


def test_lines_are_found_from_the_end_whatever_the_chunk(tmp_path, monkeypatch):
    data = b"a\n\nbcd\n" + b"e" * 10 + b"\nf"
    (tmp_path / "f").write_bytes(data)
    expected = [(m.start(), m[0]) for m in re.finditer(rb"[^\n]*\n|[^\n]+", data)][::-1]
    for chunk in range(1, 25):
        monkeypatch.setattr(files, "CHUNK", chunk)
        with (tmp_path / "f").open("rb") as file:
            assert list(files._lines_from_the_end(file, os.fstat(file.fileno()).st_size)) == expected
