"""A page of any file of records: what was measured, of whom, drawn and tabled; no study and no clone needed.

    python -m lipcomp.report bounds.jsonl robustness.jsonl --out page.html

Records of one quantity and unit become a dot plot with intervals, a row per setting and a mark per subject; accuracies
under corruptions a heat map. Whatever was measured twice counts with its last value.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from lipcomp._arguments import checked
from lipcomp.plots._frames import labels
from lipcomp.records import Record, read_records, to_frame
from lipcomp.report._cells import Cell, Table, provenance_rows, split
from lipcomp.report._drawn import Drawn, draw
from lipcomp.report._figures import LEGEND, SUBJECTS, dots, heat_map
from lipcomp.report._page import Page, check_page, write_page

ROWS = 12  # that a dot plot can show
DOT_PLOTS = 4  # of one group and unit: a table is easier to read than the fifth
LARGEST = 1e300  # that is drawn: an axis must hold the range of its values
# Parts of a quantity's name, and units, that a table holds and no figure needs.
NOT_DRAWN = {
    "time",
    "p_value",
    "refit",
    "q10",
    "q90",
    "q99",
    "excluded",
    "unconverged",
    "iterations",
    "residual",
}
NOT_DRAWN_UNITS = {"images", "pairs", "s"}
NOT_TOLD = {"classes", "note", "floor"}  # settings that name nothing to a reader
CONDITION = ("corruption", "severity")
NOT_COMPARED = {"dim", "seed", "candidates", "at_most"}  # that follow from the subject
LAST = ("method", "images", "data_hash")  # that are told where nothing else tells two values apart


@checked
def write_report(
    records: Path | str | Sequence[Path | str] | Sequence[Record],
    out: Path | str,
    *,
    title: str = "What was measured",
) -> Path:
    """Draw a page from files of records, or from records.

    Parameters
    ----------
    records
        Paths of JSON-lines files, or :class:`lipcomp.records.Record` objects.
    out
        The HTML file to write; one self-contained file.
    title
        Its heading.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    lipcomp.records.RecordError
        If a file cannot be read.
    ValueError
        If there is no record, or ``out`` is there and is no page of lipcomp.
    OSError
        If ``out`` cannot be written; nothing is drawn then.

    Examples
    --------
    >>> import tempfile
    >>> from lipcomp.records import Record
    >>> from lipcomp.report import write_report
    >>> page = write_report([Record("accuracy.clean", 0.97, n=1000)], tempfile.mkdtemp() + "/page.html")
    >>> page.name
    'page.html'
    """
    check_page(Path(out))
    given = [records] if isinstance(records, Path | str) else list(records)
    files = [Path(g) for g in given if not isinstance(g, Record)]
    loose = [g for g in given if isinstance(g, Record)]
    frame = to_frame([*read_records(files), *loose])
    if frame.empty:
        raise ValueError(
            f"no record in {', '.join(map(str, files)) or 'what was given'}; measure something first"
        )
    table = tidy(frame)
    subjects = list(dict.fromkeys(table["subject"]))
    quantities = table["quantity"].nunique()
    page = Page(
        title=title,
        subtitle=f"{_count(len(subjects), 'subject')}: {', '.join([*subjects[:8], *['...'] * (len(subjects) > 8)])}.",
        headline=f"{_count(len(table), 'value')} of {_count(quantities, 'quantity', 'quantities')}.",
        cautions=_cautions(frame, table),
        figures=list(_figures(table)),
        tables=[*_subjects(frame, table), *_tables(table)],
        methods=_methods(frame),
        provenance=provenance_rows(frame),
        records=files,
        record_count=len(frame),
    )
    return write_page(Path(out), page, markdown=False)


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per measured value: subject, quantity, what (the settings that distinguish its values), value, low, high.

    ``apart`` holds those of the settings that are not the corruption and its severity.

    Only settings that vary within a subject distinguish values, in as many digits as they need; of values with equal
    settings and unit, the last one counts. A setting that is null is one that is absent.
    """
    table = frame.assign(subject=labels(frame), group=frame["quantity"].str.split(".").str[0])
    named = [str(c) for c in frame if str(c).startswith("settings.")]
    settings = [c for c in named if c.removeprefix("settings.") not in NOT_TOLD]
    what, apart = pd.Series("", index=table.index), pd.Series("", index=table.index)
    for _, rows in table.groupby("quantity", sort=False):
        texts = {c.removeprefix("settings."): _texts(rows[c]) for c in settings}
        varied = {name: t.nunique() for name, t in texts.items() if t.nunique() > 1}
        # the fewest that distinguish the values of a subject
        for name in sorted(varied, key=lambda name: (name in LAST, varied[name])):
            parts = pd.DataFrame({"subject": rows["subject"], "what": what[rows.index], "new": texts[name]})
            if parts.groupby(["subject", "what"])["new"].nunique().max() < 2:
                continue
            told = texts[name].map(lambda text, name=name: "" if text == "–" else f"{name} {text}")
            between = np.where((parts["what"] != "") & (told != ""), ", ", "")
            what[rows.index] = parts["what"] + between + told
            if name not in CONDITION:
                apart[rows.index] += np.where(told != "", ", " + told, "")
    table["what"], table["apart"] = what, apart
    corruption = frame.get("settings.corruption", pd.Series(index=frame.index, dtype=object))
    table["corruption"] = corruption.map(_text).where(corruption.notna())
    table["kind"] = table["subject"]  # what shares a colour
    if table["subject"].nunique() > SUBJECTS and "subject.objective" in frame:
        objective = frame["subject.objective"]
        table["kind"] = objective.where(objective.notna(), table["subject"]).astype(str)
    return table.drop_duplicates(["subject", "quantity", "unit", "what"], keep="last")


def _texts(column: pd.Series) -> pd.Series:
    """Values as texts that differ where the values do."""
    short, exact = column.map(_text), column.map(_exact_text)
    return short if short.nunique() == exact.nunique() else exact


def _exact_text(value: object) -> str:
    """As JSON has it: the text "1" is not the number 1, which is 1.0."""
    if isinstance(value, float) and value == value:
        return repr(int(value) if value.is_integer() else value)
    return repr(value) if isinstance(value, str) else _text(value)


def _text(value: object) -> str:
    if value is None or value in ([], ()) or (isinstance(value, float) and np.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _cautions(frame: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    found = []
    missing = table[table["value"].isna()]
    if len(missing):
        names = ", ".join(dict.fromkeys(missing["quantity"]))
        found.append(f"{_count(len(missing), 'value')} could not be estimated: {names}.")
    for column, name in (
        ("provenance.commit", "by {} commits"),
        ("provenance.lipcomp", "by {} versions of lipcomp"),
        ("provenance.device", "on {} devices"),
    ):
        values = list(frame[column].dropna().map(str).unique()) if column in frame else []
        if len(values) > 1:
            found.append(f"Measured {name.format(len(values))}: {', '.join(map(str, values[:4]))}.")
    found += _differences(table)
    again = len(frame) - len(table)
    if again:
        found.append(f"{_count(again, 'value')} measured again; the last one of each counts.")
    return found


def _differences(table: pd.DataFrame) -> Iterator[str]:
    """Settings in which the subjects of one row differ, so that their values may not be comparable."""
    settings = [c for c in map(str, table) if c.startswith("settings.")]
    texts = {c.removeprefix("settings."): _texts(table[c]) for c in settings}
    differ: dict[str, set[str]] = {}
    for name, text in texts.items():
        if name not in NOT_TOLD | NOT_COMPARED:
            rows = text.groupby([table["quantity"], table["unit"], table["what"]]).transform("nunique") > 1
            differ |= {name: set(text[rows])} if rows.any() else {}
    if {"data", "preprocessing", "images"} & differ.keys():
        differ.pop("data_hash", None)  # what it says is said
    if differ:
        told = (
            f"{name} ({', '.join(v[:40] for v in sorted(values)[:4])})" for name, values in differ.items()
        )
        listed = ", ".join(told)
        yield f"Values side by side differ in {listed}: compare them only where that makes no difference."


def _methods(frame: pd.DataFrame) -> list[str]:
    """How each quantity was measured, as far as its records say in one way for all."""
    told = []
    for quantity, rows in frame.groupby("quantity", sort=False):
        how = []
        for column in (c for c in rows if str(c).startswith("settings.")):
            values = rows[column].map(_text).unique()
            if len(values) == 1 and values[0] != "–":
                how.append(f"{str(column).removeprefix('settings.')} {values[0]}")
        if how:
            told.append(f"{quantity}: {', '.join(how)}.")
    return told


def _subjects(frame: pd.DataFrame, table: pd.DataFrame) -> list[Table]:
    named = [str(c) for c in frame if str(c).startswith("subject.")]
    columns = [c for c in named if c not in ("subject.run", "subject.sha256") and frame[c].notna().any()]
    first = frame.loc[table.drop_duplicates("subject").index]
    names = table.drop_duplicates("subject")["subject"]
    rows = [
        [Cell(name), *(Cell(_text(row[c]), words=True) for c in columns)]
        for name, (_, row) in zip(names, first.iterrows(), strict=True)
    ]
    head = ["subject", *(str(c).removeprefix("subject.") for c in columns)]
    return split(Table("subjects", "Subjects", "Whose values these are.", head, rows))


def _tables(table: pd.DataFrame) -> Iterator[Table]:
    """One table per group of quantities: rows are quantities, columns subjects, or the other way round."""
    for group, rows in table.groupby("group", sort=False):
        keys = rows[["quantity", "unit", "what"]].drop_duplicates()
        subjects = list(dict.fromkeys(rows["subject"]))
        cells = {(r.subject, r.quantity, r.unit, r.what): _cell(r) for r in rows.itertuples()}
        names = [
            f"{q}{f', {unit}' if unit else ''}{f' ({w})' if w else ''}"
            for q, unit, w in keys.itertuples(index=False)
        ]
        grid = [[cells.get((s, *key), Cell("–")) for s in subjects] for key in keys.itertuples(index=False)]
        caption = "Value, and its 95% interval where there is one."
        if len(subjects) <= SUBJECTS:
            body = [[Cell(name, words=True), *row] for name, row in zip(names, grid, strict=True)]
            yield Table(f"g-{group}", str(group), caption, ["quantity", *subjects], body)
        else:
            body = [[Cell(s), *(row[i] for row in grid)] for i, s in enumerate(subjects)]
            yield from split(Table(f"g-{group}", str(group), caption, ["subject", *names], body), columns=7)


def _cell(row: object) -> Cell:
    value, low, high = (getattr(row, name) for name in ("value", "low", "high"))
    if pd.isna(value):
        return Cell("–")
    ends = "" if pd.isna(low) else f" ({low:.4g} to {high:.4g})"
    return Cell(f"{value:.4g}{ends}", float(value))


def _over(rows: pd.DataFrame) -> str:
    """What a cell of a heat map is the mean of."""
    per_cell = rows.groupby(["corruption", "column"])
    severities = rows.get("settings.severity", pd.Series(index=rows.index, dtype=object)).map(_text)
    held = severities.groupby([rows["corruption"], rows["column"]]).agg(lambda s: ", ".join(sorted(set(s))))
    told = "Mean over severities" + (" and subjects" if (per_cell["subject"].nunique() > 1).any() else "")
    if held.nunique() > 1:
        return f"{told}, which are not the same in every cell: {'; '.join(held.unique()[:4])}. Do not compare those."
    return f"{told}." if (per_cell.size() > 1).any() else ""


def _figures(table: pd.DataFrame) -> Iterator[Drawn]:
    plain = table["quantity"].map(lambda q: NOT_DRAWN.isdisjoint(q.split(".")))
    small = ~(table[["value", "low", "high"]].abs() > LARGEST).any(axis=1)
    drawn = table[table["value"].notna() & small & plain & ~table["unit"].isin(NOT_DRAWN_UNITS)]
    corrupted = drawn[drawn["corruption"].notna()]
    corrupted = corrupted.assign(column=corrupted["kind"] + corrupted["apart"])
    in_map: list[object] = []
    for quantity, rows in corrupted.groupby("quantity", sort=False):
        wide = rows.pivot_table("value", "corruption", "column", aggfunc="mean", sort=False)
        if wide.shape[0] > 1 and wide.shape[1] <= 2 * SUBJECTS:
            in_map += rows.index.tolist()
            means = "; ".join(f"{name} {value:.3g}" for name, value in wide.mean().items())
            yield draw(
                f"heat-{quantity}", f"{quantity} by corruption", _over(rows),
                f"Heat map of {quantity} by corruption. Means: {means}",
                partial(heat_map, wide), png=False,
            )  # fmt: skip
    rest, kinds = drawn.drop(index=in_map), list(dict.fromkeys(table["kind"]))
    for (group, unit), rows in rest.groupby(["group", "unit"], sort=False):
        short = rows["quantity"].map(lambda q: q.partition(".")[2] or q)
        whole = short + rows["what"].map(lambda w: f" ({w})" if w else "")
        short = whole.map(lambda n: n if len(n) < 60 else n[:58] + "…")
        rows = rows.assign(name=short.where(whole.groupby(short).transform("nunique") == 1, whole))
        names = list(dict.fromkeys(rows["name"]))
        shown_rows = min(len(names), DOT_PLOTS * ROWS)
        for start in range(0, shown_rows, ROWS):
            part = rows[rows["name"].isin(names[start : start + ROWS])]
            label = f"{group}{f', {unit}' if unit else ''}"
            caption = "One mark per subject, with its 95% interval where there is one."
            if part["kind"].nunique() > LEGEND:
                caption += " There are too many subjects for a legend; the table names them."
            if len(names) > shown_rows:
                caption += f" Rows {start + 1} to {start + ROWS} of {len(names)}; beyond {shown_rows}, only the table."
            shown = part if len(part) <= 12 else part.loc[[part["value"].idxmin(), part["value"].idxmax()]]
            listed = "; ".join(
                f"{r.name_} {r.subject} {r.value:.3g}"
                for r in shown.rename(columns={"name": "name_"}).itertuples()
            )
            yield draw(
                f"dots-{group}-{unit}-{start}".replace("/", "-").replace(" ", "-"), label, caption,
                f"Dot plot of {label}. {'' if len(part) <= 12 else 'Smallest and largest: '}{listed}",
                partial(dots, part, label, kinds), png=False,
            )  # fmt: skip
