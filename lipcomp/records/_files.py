"""Files of records: whole batches are appended, nothing is rewritten, and other files are never touched.

**A batch is written whole or not at all.** A line that is followed by more of its batch begins with a space, which JSON
ignores; the last line of a batch does not. If an append is cut short at any byte (SIGKILL, a full disk), the file ends
in lines that begin with a space, or in a line without an end: readers leave these out, and the next append cuts them
off. The mark is at the beginning, since a line cut just before a mark at its end would look like the last one. It lies
in the lines themselves, not in a journal beside the file, so that a copy of the file, made at any moment, has it too.
Lines of schema 1 have none: each is a batch.

**Writers take turns** by a claim (:mod:`lipcomp._claims`), which needs no ``flock`` and so works on every file system
and platform. **What is not ours is refused**: the first line must be a record, and a last line is cut off only if it
begins as records do. A last line that only lacks its newline is a record, and is given one.
"""

import contextlib
import gc
import json
import lzma
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from lipcomp._atomic import FULL, check_writable, full_disk
from lipcomp._claims import claim
from lipcomp.records._record import (
    SCHEMA,
    LineParser,
    Record,
    RecordError,
    RecordWarning,
    SchemaError,
    as_records,
)

WAIT = 180.0  # seconds for another writer; longer than the claim of a lost machine lives
CHUNK = 1 << 16  # bytes read at once, from the end
HEAD = 1 << 20  # bytes that the first line may have
RESCUE = "rescue the records: python -m lipcomp.records salvage FILE --out NEW"
_BEGINNING = re.compile(rb' ?\{"schema": (\d+), "(?:identity|quantity)": "')


def append_records(path: Path | str, records: Iterable[Record]) -> None:
    """Append records to a file atomically and flush it to disk; several processes may append to one file.

    Parameters
    ----------
    path
        The file of JSON lines; it is created if it does not exist.
    records
        The records to append; with none, only check that the file can be appended to.

    Raises
    ------
    ValueError
        If a record cannot be written as JSON, or the file holds anything but records, or records of a newer schema;
        the file is then not changed.
    OSError
        If the file cannot be written, or another process holds it for minutes.

    Examples
    --------
    >>> import tempfile
    >>> from lipcomp.records import Record, append_records, read_records
    >>> path = tempfile.mkdtemp() + "/study.jsonl"
    >>> append_records(path, [Record("accuracy.clean", 0.97, n=1000)])
    >>> [record.value for record in read_records(path)]
    [0.97]
    """
    lines = [record.to_json() + "\n" for record in as_records(records)]
    text = ("".join(f" {line}" for line in lines[:-1]) + "".join(lines[-1:])).encode()
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        raise RecordError(f"{path} is not a regular file; give records their own file, such as NAME.jsonl")
    with claim(path.with_name(path.name + ".append"), wait=WAIT) as mine:
        if not mine:
            raise TimeoutError(
                f"another process has been writing {path} for {WAIT:g} s; end it, or try again"
            )
        with path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            end, completion = _end_of_whole(file, path)
            if end < size:
                file.truncate(end)
            try:
                rest = memoryview(completion + text)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(end)
                if error.errno in FULL:
                    raise full_disk(error, path) from error
                raise


def check_appendable(path: Path) -> None:
    """Refuse a file that :func:`append_records` would refuse; nothing is changed.

    Raises
    ------
    RecordError
        If the file is there and is not one of records, or holds records of a newer schema.
    """
    if path.exists():
        with path.open("rb") as file:
            _end_of_whole(file, path)


def _end_of_whole(file: IO[bytes], path: Path) -> tuple[int, bytes]:
    """Where the last whole batch ends, and its newline if that is missing; refuses what is not ours."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return 0, b""
    first, newline = _first_line(file)
    parser = LineParser(f"records {str(path)!r}")
    if not _begins_like_ours(first + newline):
        try:
            parser.parse(first, 1)  # the fields in another order
        except SchemaError:
            raise
        except RecordError as error:
            raise RecordError(
                f"{path} holds no records (it begins with {first[:40]!r}) and is left as it is; give another file, or "
                f"if its first line was damaged, {RESCUE}"
            ) from error
    end = size
    for start, line in _lines_from_the_end(file, size):
        known = _BEGINNING.match(line)
        if known and int(known[1]) > SCHEMA:
            parser.parse(line, -1)
        if end == size and not line.endswith(b"\n") and not _is_torn(line):
            try:
                parser.parse(line, -1)
            except RecordError as error:
                raise RecordError(
                    f"{path} ends in something that is not a record ({line[:40]!r}) and is left as it is; "
                    f"remove it, or {RESCUE}"
                ) from error
            return size, b"\n"
        if not _is_torn(line) and not (line.startswith(b" ") and _begins_like_ours(line)):
            break
        end = start
    return end, b""


def _first_line(file: IO[bytes]) -> tuple[bytes, bytes]:
    """The first line that is not empty, and its newline if that is in the file's first :data:`HEAD` bytes."""
    file.seek(0)
    data = file.read(1 << 13)
    first, newline, _ = data.lstrip(b"\r\n").partition(b"\n")
    if not newline:
        first, newline, _ = (data + file.read(HEAD - len(data))).lstrip(b"\r\n").partition(b"\n")
    return first, newline


def _lines_from_the_end(file: IO[bytes], size: int) -> Iterator[tuple[int, bytes]]:
    """(where it starts, line with its newline), from the last line to the first."""
    rest, position = b"", size
    while position > 0:
        start = max(0, position - CHUNK)
        file.seek(start)
        data = file.read(position - start) + rest
        rest, *lines = re.findall(rb"[^\n]*\n|[^\n]+", data)
        end = start + len(data)
        for line in reversed(lines):
            end -= len(line)
            yield end, line
        position = start
    yield 0, rest


def _begins_like_ours(line: bytes) -> bool:
    """Whether a line begins as a record does; without its end it may be cut anywhere."""
    if _BEGINNING.match(line):
        return True
    head = re.sub(rb"\d+", b"1", line.removeprefix(b" "), count=1)
    return any(
        whole.startswith(head) for whole in (b'{"schema": 1, "identity": "', b'{"schema": 1, "quantity": "')
    )


def _is_torn(line: bytes) -> bool:
    """Whether this is the beginning of one line, cut before its end; several that ran into one are damage."""
    alone = not line.endswith(b"\n") and _begins_like_ours(line) and len(_BEGINNING.findall(line)) < 2
    return alone and (line.startswith(b" ") or not _is_json(line))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def read_records(paths: Path | str | Sequence[Path | str], *, skip_damaged: bool = False) -> list[Record]:
    """Read one file of records, or several in order.

    Parameters
    ----------
    paths
        The file or files; those that end in ``.xz``, as published results do, are unpacked on the way.
    skip_damaged
        Skip damaged lines, with a :class:`RecordWarning` for each, instead of raising an error.

    Raises
    ------
    RecordError
        If a file is missing, or a line cannot be read or is of a schema this code does not know. An incomplete
        batch at the end of a file is skipped with a :class:`RecordWarning`.

    Examples
    --------
    >>> import lipcomp
    >>> lipcomp.to_frame(lipcomp.read_records("study.jsonl"))  # doctest: +SKIP
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    with _without_collection():
        return [record for path in paths for record in iterate_records(path, skip_damaged=skip_damaged)]


def read_more(path: Path, begin: list[int]) -> list[Record]:
    """The records of whole batches from ``begin`` (bytes, lines) on, which is moved to where the last one ends."""
    size = path.stat().st_size if path.exists() else 0
    if size < begin[0]:  # another file by now
        begin[:] = [0, 0]
    if size == begin[0]:
        return []
    with _without_collection(), warnings.catch_warnings():
        if begin[0]:  # what is torn was told before, or is being written
            warnings.simplefilter("ignore", RecordWarning)
        return list(_iterate(path, _refuse, begin))


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Without the collector of garbage, which would look through all records again and again, and find nothing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def iterate_records(path: Path | str, *, skip_damaged: bool = False) -> Iterator[Record]:
    """Iterate over the records of one file without loading the whole file; otherwise as :func:`read_records`."""
    return _iterate(Path(path), _skip if skip_damaged else _refuse)


def _refuse(line: bytes, error: RecordError) -> list[Record]:
    raise error


def _skip(line: bytes, error: RecordError) -> list[Record]:
    warnings.warn(f"{error}; skipped", RecordWarning, stacklevel=3)
    return []


def _iterate(
    path: Path, mend: Callable[[bytes, RecordError], list[Record]], begin: list[int] | None = None
) -> Iterator[Record]:
    """The records of all whole batches from ``begin`` on; ``mend`` says what a damaged line stands for."""
    begin = [0, 0] if begin is None else begin  # where the batch begins, and after which line
    parser = LineParser(f"records {str(path)!r}")
    batch: list[Record] = []
    (position, number), torn = begin, False
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            seen = _state(file)
            file.seek(position)
            for line in file:
                number, position = number + 1, position + len(line)
                torn = not line.endswith(b"\n") and _is_torn(line)
                if torn or line.isspace():
                    continue
                try:
                    batch.append(parser.parse(line, number))
                except SchemaError:
                    raise
                except RecordError as error:
                    # a writer cut off what it was read from, and wrote something else
                    if seen != _state(file):
                        seen, (position, number) = _state(file), begin
                        file.seek(position)
                        batch.clear()
                        continue
                    batch += mend(line, error)
                if not line.startswith(b" "):
                    yield from batch
                    batch.clear()
                    begin[:] = position, number
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise RecordError(
            f"records {str(path)!r} cannot be read ({getattr(error, 'strerror', None) or error}); give the path of a "
            f".jsonl file"
        ) from error
    if batch or torn:
        warnings.warn(
            f"{path}: {len(batch) + torn} lines before and in line {number} are left out: their append was cut short, "
            "or is still going on",
            RecordWarning,
            stacklevel=3,
        )


def _state(file: IO[bytes] | lzma.LZMAFile) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def salvage_records(path: Path | str, out: Path | str) -> tuple[int, int]:
    """Copy the readable records of a damaged file to a new file; the old one is not changed.

    Returns
    -------
    kept, damaged : int, int
        Records in the new file, and damaged lines of the old one. Of a damaged line, records that are whole within it
        are kept, as where two lines ran into one; so are those of a batch that was cut short.

    Raises
    ------
    ValueError
        If ``out`` exists, or there is no record to rescue, or one is of a newer schema.
    """
    out = _new_file(out)
    damaged = 0
    parser = LineParser(f"records {str(path)!r}")
    records: list[Record] = []
    with Path(path).open("rb") as file:
        for number, line in enumerate(_utf16(Path(path)) or file, 1):
            try:
                records += [parser.parse(line, number)] if line.strip() else []
            except SchemaError:
                raise
            except RecordError:
                damaged += 1
                records += _records_within(line, parser)
    records, found = [record for record in records if _is_writable(record)], len(records)
    damaged += found - len(records)
    if not records:
        raise RecordError(f"{path} holds no record that could be rescued")
    append_records(out, records)
    return len(records), damaged


def _is_writable(record: Record) -> bool:
    """Whether a record is JSON: Python reads NaN and Infinity, which are none."""
    try:
        record.to_json()
    except ValueError:
        return False
    return True


def _utf16(path: Path) -> list[bytes]:
    """The lines of a file in UTF-16, as the > of Windows PowerShell writes it; none of any other."""
    with path.open("rb") as file:
        marked = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    return path.read_bytes().decode("utf-16", errors="replace").encode().splitlines() if marked else []


def _records_within(line: bytes, parser: LineParser) -> Iterator[Record]:
    text, end = line.decode(errors="replace"), 0
    for found in re.finditer(_BEGINNING.pattern.decode(), text):
        if found.start() >= end:
            with contextlib.suppress(ValueError, RecursionError):
                _, end = json.JSONDecoder().raw_decode(text, text.index("{", found.start()))
                yield parser.parse(text[found.start() : end].encode(), -1)


def _new_file(out: Path | str) -> Path:
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already; give the path of a new file")
    check_writable(out, "out")
    return out
