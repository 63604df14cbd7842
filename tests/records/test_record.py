"""One record: what is refused, its line of JSON and back, its identity, the table of many, and where it comes from."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lipcomp.records import Record, to_frame
from lipcomp.records._origin import command_line, provenance
from lipcomp.records._record import LineParser, RecordError

TEXT = st.text(max_size=8) | st.sampled_from(['", "subject": {', "}", '{"', "provenance", '\\"', "\n ", "²"])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2), max_leaves=4
)
KEYS = TEXT | st.sampled_from(["subject", "settings", "provenance", "schema"])
FIELDS = st.dictionaries(KEYS, VALUES, max_size=3)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
QUIET = settings(max_examples=60)
RECORDS = st.builds(
    Record,
    TEXT.filter(bool),
    st.none() | FINITE,
    TEXT,
    st.none() | st.integers(0),
    st.none() | st.tuples(FINITE, FINITE).map(lambda ends: (min(ends), max(ends))),
    FIELDS,
    FIELDS,
    FIELDS,
)


@QUIET
@given(RECORDS, RECORDS)
def test_a_line_is_the_record_again_and_no_other(one, two):
    parser = LineParser("here")
    for record in (one, two, one):
        line = record.to_json()
        assert "\n" not in line
        assert parser.parse(line.encode(), 1) == record
        assert parser.parse(b" " + line.encode() + b" \r\n", 1) == record
        reordered = dict(reversed(json.loads(line).items()))
        assert parser.parse(json.dumps(reordered).encode(), 1) == record


@QUIET
@given(RECORDS, st.data())
def test_a_changed_line_is_a_record_or_a_named_error(record, data):
    line = bytearray(record.to_json().encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(line) - 1))
        line[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=2))
    try:
        whole = json.dumps(json.loads(bytes(line))).encode()
        found = LineParser("here").parse(whole, 7)  # as it is without a fast way
    except (ValueError, RecursionError):
        with pytest.raises(RecordError, match="here, line 7: "):
            LineParser("here").parse(bytes(line), 7)
    else:
        assert LineParser("here").parse(bytes(line), 7) == found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": float("nan")}, "must be finite"),
        ({"value": float("inf")}, "must be finite"),
        ({"value": "0.5"}, "must be a number, got '0.5'"),
        ({"value": True}, "must be a number, got True"),
        ({"n": -4}, "n of .* must be a whole number"),
        ({"interval": (2.0, 1.0)}, "ordered"),
        ({"quantity": ""}, "must be a name"),
        ({"subject": {"x": object()}}, "cannot be written as JSON"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_what_is_no_measurement_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Record(**{"quantity": "q", "value": 1.0, **fields})


@pytest.mark.parametrize("name", ["unit", "identity", "subject", "settings", "provenance"])
@pytest.mark.usefixtures("untyped")
def test_fields_of_another_kind_are_refused_and_named_in_a_file(name):
    """A report of such lines ended in an AttributeError."""
    for value in (None, 5, ["a"]):
        with pytest.raises(TypeError, match=rf"{name} of q must be (a dictionary|text), got "):
            Record("q", 1.0, **{name: value})
        for schema in (1, 2):
            line = json.dumps({"schema": schema, "quantity": "q", "value": 1.0, name: value})
            with pytest.raises(RecordError, match=r"file, line 3: not the fields of a record.*salvage"):
                LineParser("file").parse(line.encode(), 3)


def test_identity_is_of_what_can_change_the_value():
    base = Record("q", 1.0, "", 5, None, {"a": 1, "b": 2}, {"c": 3}, {"time": "now"})
    assert (
        base.identity
        == Record("q", 2.0, "s", 6, (0.0, 1.0), {"b": 2, "a": 1}, {"c": 3}, {"time": "then"}).identity
    )
    others = [Record("p", 1.0, "", 5, None, {"a": 1, "b": 2}, {"c": 3})]
    others += [Record("q", 1.0, "", 5, None, {"a": 1, "b": 2, "c": 3}), Record("q", 1.0, subject={"a": 1})]
    assert len({base.identity, *(other.identity for other in others)}) == 4
    assert LineParser("").parse(base.to_json().encode(), 1).identity == base.identity
    assert Record("q", 1.0, identity="given").identity == "given"
    assert len(base.identity) == 32


def test_schema_1_is_read_with_the_names_of_today():
    line = {
        "schema": 1,
        "quantity": "sigma_max.q50",
        "value": 2.0,
        "unit": "1/pixel L2",
        "n": 3,
        "interval": [1.0, 2.5],
        "subject": {"concentration": 1024.0, "seed": 1},
        "settings": {"kappa": 10.0, "norm": "Linf", "other": "L2", "name": "concentration"},
        "provenance": {"device": "cpu"},
    }
    found = LineParser("").parse(json.dumps(line).encode(), 1)
    settings = {"kappa_e": 10.0, "norm": "linf", "other": "l2", "name": "concentration"}
    expected = Record(
        "sigma_max.median",
        2.0,
        "1/pixel L2",
        3,
        (1.0, 2.5),
        {"kappa_e": 1024.0, "seed": 1},
        settings,
        {"device": "cpu"},
    )
    assert found == expected
    line["settings"] = {"kappa": "of the checkpoint"}  # a word is no number
    assert LineParser("").parse(json.dumps(line).encode(), 1).settings == {"kappa": "of the checkpoint"}


def test_frame_has_a_column_per_field():
    clean = Record(
        "a", 0.97, n=1000, interval=(0.96, 0.98), subject={"seed": 1, "flag": True}, settings={"x": [1]}
    )
    bound = Record("b", 3.5, subject={"seed": 2, "flag": 1}, settings={"x": [1]}, provenance={"threads": 1})
    frame = to_frame([clean, bound, clean, Record("q", None, settings={"why": "constant"})])
    assert list(frame["value"].isna()) == [False, False, False, True]
    assert list(frame["low"].dropna()) == [0.96, 0.96]
    assert list(frame["subject.seed"].dropna()) == [1, 2, 1]
    assert [type(flag) for flag in frame["subject.flag"][:3]] == [bool, int, bool]
    assert list(frame["settings.x"][:3]) == [[1], [1], [1]]
    assert frame["settings.why"].iloc[3] == "constant"
    assert list(frame["identity"]) == [clean.identity, bound.identity, clean.identity, frame["identity"][3]]
    assert len(to_frame([])) == 0
    assert "value" in to_frame([]).columns


def test_provenance_tells_what_is_there():
    made = provenance("cpu", "bfloat16", seed=3, batch_size=8)
    assert (made["device"], made["precision"], made["seed"], made["batch_size"]) == ("cpu", "bfloat16", 3, 8)
    assert made["threads"] == torch.get_num_threads()
    assert (made["torch"], made["numpy"]) == (torch.__version__, np.__version__)
    assert {"lipcomp", "torchvision", "scipy", "time", "device_name", "command"} <= set(made)
    assert made["python"] == platform.python_version()
    assert platform.release() in made["os"]
    assert "seed" not in provenance()
    json.dumps(made)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_provenance_names_the_gpu():
    assert provenance("cuda:0")["device_name"] == torch.cuda.get_device_name(0)


def test_the_commit_of_a_clone_is_told():
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("these tests run outside a clone")
    asked = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    assert provenance()["commit"].removesuffix("+") == commit


def test_the_command_is_as_typed_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/lipcomp", "bound", "a b.pt", "--out", "r.jsonl"])
    assert provenance()["command"] == "lipcomp bound 'a b.pt' --out r.jsonl"
    (tmp_path / "lipcomp" / "bound").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])  # as -m in this folder, packages or not
    main = str(tmp_path / "lipcomp" / "bound" / "__main__.py")
    assert command_line([main, "x"]) == "python -m lipcomp.bound x"
    assert command_line([str(tmp_path / "studies" / "page.py")]) == "python -m studies.page"
    assert command_line([str(tmp_path / "run.py")]) == "python run.py"
    assert command_line(["-c", "x"]) == "-c x"
    secrets = [
        "p",
        "--wandb-api-key",
        "abc",
        "--token=abc",
        "--hf_token",
        "abc",
        "--password",
        "https://me:abc@host/x",
    ]
    assert command_line([*secrets, "--tokens", "--data", "d"]) == (
        "p --wandb-api-key HIDDEN --token=HIDDEN --hf_token HIDDEN --password HIDDEN --tokens --data d"
    )
    assert command_line(["p", "https://me:abc@host/x"]) == "p https://HIDDEN@host/x"
