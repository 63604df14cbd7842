"""Any file of records becomes a page: of commands, of studies, of one value; and bad input is one paragraph."""

import re

import pytest

from lipcomp._commands import run
from lipcomp.plots._palette import styles
from lipcomp.records import Record, append_records, to_frame
from lipcomp.report import write_report
from lipcomp.report.__main__ import main
from lipcomp.report._cells import Cell, Table, split
from lipcomp.report._general import tidy
from lipcomp.report._marks import interval_mark


def records():
    found = []
    for checkpoint in ("a/model.safetensors", "b/model.safetensors", "<i>&c.pth"):
        subject = {"checkpoint": checkpoint, "sha256": checkpoint[0] * 8}
        for pairs in ("views", "random"):
            settings = {"pairs": pairs, "data_hash": "0123", "layer": "latent"}
            found.append(Record("bound.direction.max", 0.5, "1/pixel L2", 10, (0.4, 0.6), subject, settings))
        for corruption in ("fog", "snow"):
            for severity in (1, 5):
                settings = {"corruption": corruption, "severity": severity}
                found.append(
                    Record("accuracy.corruption", 0.7 / severity, n=10, subject=subject, settings=settings)
                )
        found.append(Record("mce", None, n=10, subject=subject))
    return found


def test_a_file_of_records_is_a_page_that_needs_nothing_else(tmp_path):
    append_records(tmp_path / "r.jsonl", records())
    path = write_report(tmp_path / "r.jsonl", tmp_path / "page.html", title="Mine & yours")
    html = path.read_text()
    assert "Mine &amp; yours" in html
    assert "<i>&c" not in html
    assert not re.findall(r'(?:src|srcset|href)="(?!data:|#)', html)
    assert html.count("<figure") == 2  # the heat map of corruptions, and the bound from both kinds of pairs
    assert all(re.search(r'alt="[^"]{30,}"', image) for image in re.findall(r"<img [^>]*>", html))
    assert "3 values could not be estimated: mce" in html
    assert "direction.max (pairs views)" in re.sub(r"\s+", " ", html) or "pairs views" in html
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "r.jsonl"]
    again = write_report(records(), tmp_path / "two.html", title="Mine & yours").read_text()
    assert again.count("<figure") == 2


def test_settings_that_tell_values_apart_are_named_and_no_others():
    table = tidy(to_frame(records()))
    assert set(table.loc[table["quantity"] == "bound.direction.max", "what"]) == {
        "pairs views",
        "pairs random",
    }
    assert set(table.loc[table["quantity"] == "mce", "what"]) == {""}
    assert set(table["subject"]) == {"a", "b", "<i>&c"}


def test_the_last_of_what_was_measured_twice_counts_and_names_are_told_apart_by_hash():
    twice = [Record("mce", v, subject={"checkpoint": "m.pth", "sha256": "aa"}) for v in (1.0, 2.0)]
    other = Record("mce", 3.0, subject={"checkpoint": "m.pth", "sha256": "bb"})
    table = tidy(to_frame([*twice, other]))
    assert dict(zip(table["subject"], table["value"], strict=True)) == {"m aa": 2.0, "m bb": 3.0}


def test_two_networks_of_a_file_two_sets_of_a_name_and_near_settings_are_told_apart():
    """The last one counted, as one that was measured again."""
    subject = {"checkpoint": "m.pth", "sha256": "aa"}
    networks = [Record("mce", v, subject=subject | {"encoder": e}) for v, e in ((1.0, "x"), (2.0, "y"))]
    table = tidy(to_frame(networks))
    assert dict(zip(table["subject"], table["value"], strict=True)) == {"m x": 1.0, "m y": 2.0}
    for setting, values in (
        ("data_hash", ("0a", "0b")),
        ("images", (6, 12)),
        ("radius", (0.123456, 0.123457)),
    ):
        found = tidy(to_frame([Record("mce", 1.0, subject=subject, settings={setting: v}) for v in values]))
        assert list(found["what"]) == [f"{setting} {v}" for v in values]


def test_a_dollar_in_a_name_is_no_mathematics(tmp_path):
    record = Record("sigma_max.median", 1.0, subject={"checkpoint": "a$b^{c$.pth"})
    assert "a$b^{c$" in write_report([record], tmp_path / "page.html").read_text()


def test_devices_are_told(tmp_path):
    found = [Record("mce", 1.0, subject={"run": d}, provenance={"device": d}) for d in ("cpu", "cuda:0")]
    assert "Measured on 2 devices: cpu, cuda:0." in write_report(found, tmp_path / "page.html").read_text()


def test_wide_tables_become_several_that_fit():
    wide = Table("t", "T", "c", list("abcdefgh"), [[Cell(x) for x in "abcdefgh"]])
    parts = split(wide, columns=4)
    assert [p.head for p in parts] == [list("abcd"), list("aefg"), list("ah")]
    assert [c.text for c in parts[1].rows[0]] == list("aefg")
    assert [p.name for p in parts] == ["t", "t-2", "t-3"]


def test_a_mark_is_drawn_for_an_interval_and_for_nothing_else():
    mark = interval_mark(-0.5, (-1.0, 0.0), (-0.1, 0.1), 'a "quoted" text')
    assert "&#34;quoted&#34;" in mark
    assert mark.count("class=") == 5
    assert interval_mark(None, None, None, "") == ""
    assert interval_mark(1.0, (0.0, float("inf")), None, "") == ""


def test_methods_keep_their_colour_on_every_page():
    assert styles(["x", "C-SimCLR"])["C-SimCLR"] == styles(["C-SimCLR"])["C-SimCLR"]
    assert len({colour for colour, _ in styles(map(str, range(8))).values()}) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{none}"], "cannot be read"),
        (["{empty}"], "no record in"),
        (["{file}", "--out", "page.pdf"], "--out must end in .html"),
    ],
)
def test_bad_input_is_one_paragraph(tmp_path, capsys, arguments, message):
    (tmp_path / "empty").write_text("")
    append_records(tmp_path / "file", records())
    places = {name: tmp_path / name for name in ("none", "empty", "file")}
    assert run(main, [a.format(**places) for a in arguments]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_command_prints_the_page_s_place(tmp_path, capsys):
    append_records(tmp_path / "r.jsonl", records())
    assert run(main, [str(tmp_path / "r.jsonl"), "--out", str(tmp_path / "p.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "p.html")
