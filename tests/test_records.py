"""Records: JSON lines that survive crashes, concurrent writers, other versions and merging."""

import json
import multiprocessing

import pytest

from lipcomp import records
from lipcomp.records import (
    Record,
    RecordError,
    RecordWarning,
    append_records,
    merge_records,
    provenance,
    read_records,
    to_frame,
)

CLEAN = Record(
    "accuracy.clean",
    0.97,
    n=1000,
    interval=(0.96, 0.98),
    subject={"seed": 1},
    settings={"data": "mnist5k"},
)
BOUND = Record("bound.supremum.max", 3.5, unit="1/pixel L2", subject={"seed": 2})


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new folder" / "r.jsonl"
    append_records(path, [CLEAN])
    append_records(path, [BOUND])
    assert read_records(path) == [CLEAN, BOUND]
    assert read_records([path, path]) == [CLEAN, BOUND, CLEAN, BOUND]


def test_every_cut_of_the_file_loses_at_most_the_torn_line_and_the_next_append_mends_it(tmp_path):
    path = tmp_path / "r.jsonl"
    append_records(path, [CLEAN, BOUND])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        kept = [CLEAN] if cut >= first else []
        if cut in (0, first):
            assert read_records(path) == kept
        else:
            with pytest.warns(RecordWarning, match="torn by a crash"):
                assert read_records(path) == kept
        append_records(path, [BOUND])
        assert read_records(path) == [*kept, BOUND]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    append_records(path, [CLEAN, BOUND])
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(RecordError, match="line 1: not a record"):
        read_records(path)


def test_a_newer_schema_is_refused_and_an_older_one_is_upgraded(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    newer = {**json.loads(CLEAN.to_json()), "schema": records.SCHEMA + 1}
    path.write_text(json.dumps(newer) + "\n")
    with pytest.raises(RecordError, match=r"schema 2, this lipcomp reads 1; upgrade lipcomp"):
        read_records(path)
    older = json.loads(CLEAN.to_json())
    older["schema"], older["name"] = 0, older.pop("quantity")
    path.write_text(json.dumps(older) + "\n")
    with pytest.raises(RecordError, match=r"schema 0.*measure it again"):
        read_records(path)
    monkeypatch.setitem(records.UPGRADES, 0, lambda f: {"quantity": f.pop("name"), **f})
    assert read_records(path) == [CLEAN]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": float("nan")}, "must be finite"),
        ({"value": float("inf")}, "must be finite"),
        ({"interval": (2.0, 1.0)}, "ordered"),
        ({"quantity": ""}, "must be a name"),
    ],
)
def test_what_is_no_measurement_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Record(**{"quantity": "q", "value": 1.0, **fields})


def test_a_record_that_json_cannot_hold_leaves_the_file_alone(tmp_path):
    path = tmp_path / "r.jsonl"
    append_records(path, [CLEAN])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        append_records(path, [BOUND, Record("q", 1.0, settings={"x": object()})])
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    append_records(path, [CLEAN])
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        append_records(path, [BOUND])
    assert path.read_bytes() == before


def _write_many(path, seed):
    for i in range(50):
        append_records(path, [Record("q", float(i), subject={"seed": seed})])


def test_two_processes_append_to_one_file(tmp_path):
    path = tmp_path / "r.jsonl"
    writers = [multiprocessing.Process(target=_write_many, args=(path, seed)) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = read_records(path)
    for seed in range(3):
        assert [r.value for r in found if r.subject["seed"] == seed] == list(range(50))


def test_frame_has_a_column_a_field():
    frame = to_frame([CLEAN, BOUND, Record("q", None, settings={"why": "constant"})])
    assert list(frame["value"].isna()) == [False, False, True]
    assert list(frame["low"].dropna()) == [0.96]
    assert list(frame["subject.seed"].dropna()) == [1, 2]
    assert frame["settings.why"].iloc[2] == "constant"
    assert len(to_frame([])) == 0


def test_two_studies_merge(tmp_path):
    one, two, out = tmp_path / "1", tmp_path / "2", tmp_path / "out"
    append_records(one, [CLEAN, BOUND])
    again = Record(**{**BOUND.__dict__, "provenance": {"time": "later"}})
    append_records(two, [again, Record("other", 1.0)])
    assert merge_records([one, two], out) == 3
    assert read_records(out) == [CLEAN, BOUND, Record("other", 1.0)]
    with pytest.raises(ValueError, match="exists already"):
        merge_records([one, two], out)


def test_two_studies_that_disagree_are_refused_or_decided(tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    append_records(one, [Record("q", 1.0)])
    append_records(two, [Record("q", 2.0)])
    with pytest.raises(ValueError, match=r"measured as 1\.0 and as 2\.0"):
        merge_records([one, two], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for choice, value in (("first", 1.0), ("last", 2.0)):
        merge_records([one, two], tmp_path / choice, on_conflict=choice)
        assert [r.value for r in read_records(tmp_path / choice)] == [value]


def test_provenance_names_versions_device_and_time():
    made = provenance("cuda:0", "bfloat16", seed=3, batch_size=8)
    assert made["device"] == "cuda:0"
    assert made["precision"] == "bfloat16"
    assert made["seed"] == 3
    assert made["batch_size"] == 8
    assert {"lipcomp", "torch", "python", "time"} <= set(made)
    json.dumps(made)
