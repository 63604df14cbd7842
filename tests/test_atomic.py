"""Files that appear whole: what is written, and what is left alone."""

import os

import pytest

from lipcomp._atomic import atomic_file, check_writable
from lipcomp.measure._outputs import ImageTable


def write(path, text):
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def test_a_link_is_kept_and_its_file_written(tmp_path):
    for name in ("there", "missing/there"):
        link = tmp_path / name.replace("/", "-")
        link.symlink_to(tmp_path / "folder" / name)
        write(link, "new")
        assert link.is_symlink()
        assert (tmp_path / "folder" / name).read_text() == "new"


def test_a_folder_is_named_and_left_alone(tmp_path):
    with pytest.raises(OSError, match=rf"'{tmp_path}' is a folder; give the path of a file"):
        write(tmp_path, "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_file_to_be_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="is not a regular file; give the path of a file"):
            write(tmp_path / name, "new")
        with pytest.raises(OSError, match="cannot be written: it is not a regular file"):
            check_writable(tmp_path / name, "out")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_file_that_takes_what_is_printed_is_refused(tmp_path, monkeypatch):
    """``--out /dev/stdout > file``: the table was written over the records."""
    place = tmp_path / "out"
    place.touch()
    check_writable(place, "out")
    monkeypatch.setattr("os.fstat", lambda stream: place.stat())
    with pytest.raises(OSError, match=r"out .*out' cannot be written: what is printed goes into this file"):
        check_writable(place, "out")


@pytest.mark.parametrize("length", [230, 241, 245, 255])
def test_a_name_too_long_to_be_written_beside_is_found_before(tmp_path, length):
    """A path of almost all letters that there may be was found after the measuring."""
    place = tmp_path / ("n" * length)
    try:
        check_writable(place, "out")
    except OSError:
        with pytest.raises(OSError, match="too long"), atomic_file(place):
            pass
    else:
        with atomic_file(place) as temporary:
            temporary.write_text("whole")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    write(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write(tmp_path / "file", "half \ud800")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_table_of_somebody_else_is_refused_and_names_are_kept(tmp_path):
    (tmp_path / "theirs.csv").write_text("unit,length\nkm,3\n")
    with pytest.raises(ValueError, match="is not a table of lipcomp; give another path"):
        ImageTable(tmp_path / "theirs.csv").check()
    (tmp_path / "ours.csv").write_text("checkpoint,unit,image,file,sigma\nNA,1,0,null,\n")
    row = ImageTable(tmp_path / "ours.csv").read().iloc[0]
    assert (row["checkpoint"], row["file"]) == ("NA", "null")
    assert row.isna().tolist() == [False] * 4 + [True]


def test_a_file_in_a_folder_that_takes_no_other_is_refused_before_the_work(tmp_path, monkeypatch):
    """It is written beside its place, or claimed there: a writable table there was lost after it was measured."""

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "t.csv").write_text("mine")
    check_writable(tmp_path / "t.csv", "table")
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match=r"table .*t.csv' cannot be written: Permission denied"):
        check_writable(tmp_path / "t.csv", "table")
    assert (tmp_path / "t.csv").read_text() == "mine"
