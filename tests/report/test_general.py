"""Any file of records becomes a page: of commands, of studies, of one value; and bad input is one paragraph."""

import re

import pandas as pd
import pytest

from lipcomp._commands import run
from lipcomp.plots._palette import styles
from lipcomp.records import Record, append_records, to_frame
from lipcomp.report import write_report
from lipcomp.report.__main__ import main
from lipcomp.report._cells import Cell, Table, provenance_rows, split
from lipcomp.report._figures import dots
from lipcomp.report._general import tidy
from lipcomp.report._marks import interval_mark
from lipcomp.report._page import CODED, Page, VerdictRow, check_page, write_page


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
    subject = {"checkpoint": "a$b^{c$.pth"}
    found = [Record("sigma_max.median", 1.0, subject=subject)]
    for corruption in ("fog", "s$g_{$"):
        told = {"corruption": corruption, "severity": 1}
        found.append(Record("accuracy.corruption", 0.5, subject=subject, settings=told))
    html = write_report(found, tmp_path / "page.html").read_text()
    assert "Heat map" in html
    assert "a$b^{c$" in html


def test_names_of_any_length_and_beginning_stand_in_a_figure_s_legend():
    """A name beginning with an underscore was left out; one of 200 letters made all else too small to read."""
    names = ["_best", "a" * 200, "b" * 50 + "0" + "c" * 50, "b" * 50 + "1" + "c" * 50]
    rows = pd.DataFrame(
        {"subject": names, "kind": names, "name": "median", "value": 1.0, "low": 0.9, "high": 1.1}
    )
    told = [text.get_text() for text in dots(rows, "sigma_max").legends[0].get_texts()]
    assert told == [" _best", "a" * 20 + "…" + "a" * 19, *names[2:]]


def test_a_subject_has_one_colour_on_the_page_and_a_value_near_zero_does_not_stretch_an_axis():
    """Where the first subject lacked a quantity, the second had its colour; a Brier score of 1e-56 gave 56 decades."""
    rows = pd.DataFrame(
        {"subject": ["b"], "kind": ["b"], "name": "brier", "value": 0.2, "low": 0.1, "high": 0.3}
    )
    alone, both = (
        dots(rows, "brier", ["a", "b"]),
        dots(rows.assign(subject="a", kind="a"), "brier", ["a", "b"]),
    )
    colours = [figure.axes[0].collections[0].get_facecolor().tolist() for figure in (alone, both)]
    assert colours[0] != colours[1]
    for least, scale in ((1e-3, "log"), (1e-56, "linear"), (0.0, "linear")):
        sure = rows.assign(subject="a", kind="a", value=least, low=least)
        assert dots(pd.concat([rows, sure]), "brier").axes[0].get_xscale() == scale


def test_devices_are_told(tmp_path):
    found = [Record("mce", 1.0, subject={"run": d}, provenance={"device": d}) for d in ("cpu", "cuda:0")]
    assert "Measured on 2 devices: cpu, cuda:0." in write_report(found, tmp_path / "page.html").read_text()


def test_provenance_is_that_of_the_machine_and_a_page_without_its_records_offers_none(tmp_path):
    told = [{"device": "cpu", "seed": s, "witness": [3, 4], "seconds": 0.3} for s in (0, 1, None)]
    frame = to_frame([Record("mce", 1.0, subject={"run": str(p)}, provenance=p) for p in told])
    assert provenance_rows(frame) == [("device", "cpu"), ("seed", "0, 1")]
    verdict = VerdictRow("Smoother?", "yes", "yes", "1%", interval_mark(1.0, None, None, ""), "2 seeds", "")
    page = Page("A", "b", "c", [], [], [], [("seed", "0")], [], 12, [verdict], findings=["Found."])
    shown = write_page(tmp_path / "page.html", page).read_text()
    assert "Download" not in shown
    assert "12 values" in shown
    markdown = (tmp_path / "page.md").read_text()
    assert "|\n\n- Found.\n" in markdown  # a line beside a table would be a row of it
    assert "## Provenance\n\n- seed: 0\n- records: 12 values" in markdown


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


def values(frame, column="what"):
    return dict(zip(frame[column], frame["value"], strict=True))


def test_methods_and_close_settings_are_no_second_measurement():
    found = [
        Record("sigma_max.max", v, settings={"method": m}) for v, m in ((0.5, "lanczos"), (0.6, "dense"))
    ]
    assert values(tidy(to_frame(found))) == {"method lanczos": 0.5, "method dense": 0.6}
    found = [Record("sigma_max.max", v, settings={"radius": r}) for v, r in ((0.5, 0.3), (0.6, 0.1 + 0.2))]
    assert len(tidy(to_frame(found))) == 2


def test_checkpoints_without_a_hash_are_told_apart_by_their_paths():
    found = [Record("mce", v, subject={"checkpoint": f"{v}/x/model.safetensors"}) for v in (0.5, 0.6)]
    assert values(tidy(to_frame(found)), "subject") == {f"{v}/x/model.safetensors": v for v in (0.5, 0.6)}


def corrupted(value, corruption, severity, run="a", **settings):
    told = {"corruption": corruption, "severity": severity, **settings}
    return Record("accuracy.corruption", value, subject={"run": run}, settings=told)


def test_a_heat_map_is_a_mean_over_severities_of_one_data_set(tmp_path):
    found = [corrupted(0.5, name, s, data="one") for name in ("fog", "snow") for s in (1, 2)]
    two = [corrupted(0.1, "fog", 1, data="two"), corrupted(0.3, "snow", 1, data="two")]
    html = write_report([*found, *two], tmp_path / "page.html").read_text()
    assert "Means: a, data one 0.5; a, data two 0.2" in html
    assert "which are not the same in every cell: 1, 2; 1." in html
    alone = write_report(
        [corrupted(0.5, "fog", 1), corrupted(0.4, "fog", 2)], tmp_path / "page.html"
    ).read_text()
    assert "Dot plot of accuracy" in alone


def test_what_stands_side_by_side_and_is_not_comparable_is_said(tmp_path):
    found = [
        Record("mce", 0.5, subject={"run": n}, settings={"data": f"{n}/test", "dim": len(n)}) for n in "ab"
    ]
    html = write_report(found, tmp_path / "page.html").read_text()
    assert "Values side by side differ in data (a/test, b/test): compare them only where" in html
    html = write_report(found[:1], tmp_path / "page.html").read_text()
    assert "side by side" not in html


def test_values_that_no_axis_holds_and_names_that_no_font_holds_end_no_report(tmp_path):
    huge = [
        Record("x.y", v, "u", subject={"run": n})
        for n, v in (("a\x00\ud800", 1e308), ("\U0010fffd", -1e308), ("\n", 1.0))
    ]
    html = write_report(huge, tmp_path / "page.html").read_text()
    assert "1e+308" in html
    assert "Dot plot" in html
    assert CODED not in html  # what is no number is not drawn
    small = [Record("x.y", v, "u", subject={"run": n}) for n, v in (("a", 1.0), ("\U0010fffd", 2.0))]
    assert CODED in write_report(small, tmp_path / "page.html").read_text()
    negative = Record("x.y", 1.0, "u", interval=(-1.0, 2.0))
    assert write_report([negative, Record("x.z", 100.0, "u")], tmp_path / "page.html").exists()


def test_hundreds_of_settings_are_tabled_and_the_first_of_them_drawn(tmp_path):
    found = [Record("x.y", float(i), "u", settings={"radius": i}) for i in range(200)]
    html = write_report(found, tmp_path / "page.html").read_text()
    assert html.count("<figure ") == 4
    assert "Rows 37 to 48 of 200; beyond 48, only the table." in html
    assert "radius 199" in html


def test_an_output_that_cannot_be_written_is_found_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("lipcomp.report._general.tidy", None)
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OSError, match=r"out .*page.html' cannot be written: it is a folder"):
        write_report(records(), tmp_path / "page.html")


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        ({"settings": {"radius": 1}}, {"settings": {"radius": "1"}}, True),
        ({"settings": {"radius": 1}}, {"settings": {"radius": True}}, True),
        ({"settings": {"radius": 1, "x": "a"}}, {"settings": {"radius": 1.0, "x": "a"}}, False),
        ({"settings": {"radius": None}}, {"settings": {}}, False),
        ({"unit": "nats"}, {"unit": "bits"}, True),
    ],
)
def test_what_counts_as_measured_again(tmp_path, first, second, apart):
    """Text is no number and bits are no nats, and no such value may vanish; 1 is 1.0, and null is absent."""
    found = [Record("x.y", value, **told) for value, told in ((1.0, first), (2.0, second))]
    html = write_report(found, tmp_path / "page.html").read_text()
    assert ("1 value measured again" in html) != apart
    assert ("2 values of 1 quantity" in html) == apart
    if "unit" in first:
        assert all(f"y, {unit}" in html for unit in ("nats", "bits"))


def test_fields_of_an_odd_kind_end_no_report(tmp_path):
    names = (1, "fog", ["x"], None)
    found = [
        Record(
            "accuracy.corruption", 0.5, settings={"corruption": c, "severity": 1}, interval=(0.6, 0.7), n=0
        )
        for c in names
    ]
    found[0].provenance.update(device={"name": "cpu"}, commit=["a"])
    assert "[&#39;x&#39;]" in write_report(found, tmp_path / "page.html").read_text()


def test_a_page_is_written_over_pages_alone(tmp_path):
    for text in ("<html>mine</html>", " "):
        (tmp_path / "page.html").write_text(text)
        with pytest.raises(
            ValueError, match=r"out .*page.html' exists and is not a page of lipcomp; give another"
        ):
            write_report(records(), tmp_path / "page.html")
        assert (tmp_path / "page.html").read_text() == text
    (tmp_path / "page.html").write_text("")  # as mktemp leaves it
    for _ in range(2):
        write_report(records(), tmp_path / "page.html")
    (tmp_path / "page.md").write_text("# Notes\n")
    with pytest.raises(ValueError, match=r"page.md' exists and is not a page"):
        check_page(tmp_path / "page.html", markdown=True)
