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
from lipcomp.report._figures import SUBJECTS, dots, heat_map
from lipcomp.report._page import Page, write_page

ROWS = 12  # that a dot plot can show
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
NOT_TOLD = {
    "classes",
    "note",
    "method",
    "floor",
}  # settings that name nothing to a reader
LAST = ("images", "data_hash")  # that are told where nothing else tells two values apart


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
        If there is no record.

    Examples
    --------
    >>> import tempfile
    >>> from lipcomp.records import Record
    >>> from lipcomp.report import write_report
    >>> page = write_report([Record("accuracy.clean", 0.97, n=1000)], tempfile.mkdtemp() + "/page.html")
    >>> page.name
    'page.html'
    """
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

    Only settings that vary within a subject distinguish values, in as many digits as they need; of values with equal
    settings, the last one counts.
    """
    table = frame.assign(subject=labels(frame), group=frame["quantity"].str.split(".").str[0])
    named = [str(c) for c in frame if str(c).startswith("settings.")]
    settings = [c for c in named if c.removeprefix("settings.") not in NOT_TOLD]
    what = pd.Series("", index=table.index)
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
    table["what"] = what
    table["corruption"] = frame.get("settings.corruption", pd.Series(index=frame.index, dtype=object))
    table["kind"] = table["subject"]  # what shares a colour
    if table["subject"].nunique() > SUBJECTS and "subject.objective" in frame:
        objective = frame["subject.objective"]
        table["kind"] = objective.where(objective.notna(), table["subject"]).astype(str)
    return table.drop_duplicates(["subject", "quantity", "what"], keep="last")


def _texts(column: pd.Series) -> pd.Series:
    """Values as texts that differ where the values do."""
    short, exact = column.map(_text), column.map(partial(_text, digits=15))
    return short if short.nunique() == exact.nunique() else exact


def _text(value: object, digits: int = 4) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


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
        values = list(frame[column].dropna().unique()) if column in frame else []
        if len(values) > 1:
            found.append(f"Measured {name.format(len(values))}: {', '.join(map(str, values[:4]))}.")
    again = len(frame) - len(table)
    if again:
        found.append(f"{_count(again, 'value')} measured again; the last one of each counts.")
    return found


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
        keys = rows[["quantity", "what"]].drop_duplicates()
        subjects = list(dict.fromkeys(rows["subject"]))
        cells = {(r.subject, r.quantity, r.what): _cell(r) for r in rows.itertuples()}
        unit = dict(zip(rows["quantity"], rows["unit"], strict=True))
        names = [
            f"{q}{f', {unit[q]}' if unit[q] else ''}{f' ({w})' if w else ''}"
            for q, w in keys.itertuples(index=False)
        ]
        grid = [[cells.get((s, q, w), Cell("–")) for s in subjects] for q, w in keys.itertuples(index=False)]
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


def _figures(table: pd.DataFrame) -> Iterator[Drawn]:
    plain = table["quantity"].map(lambda q: NOT_DRAWN.isdisjoint(q.split(".")))
    drawn = table[table["value"].notna() & plain & ~table["unit"].isin(NOT_DRAWN_UNITS)]
    corrupted = drawn[drawn["corruption"].notna()]
    for quantity, rows in corrupted.groupby("quantity", sort=False):
        wide = rows.pivot_table("value", "corruption", "kind", aggfunc="mean", sort=False)
        if wide.shape[0] > 1 and wide.shape[1] <= 2 * SUBJECTS:
            means = "; ".join(f"{name} {value:.3g}" for name, value in wide.mean().items())
            yield draw(
                f"heat-{quantity}", f"{quantity} by corruption", "Mean over severities.",
                f"Heat map of {quantity} by corruption. Means: {means}",
                partial(heat_map, wide),
            )  # fmt: skip
    rest = drawn.drop(index=corrupted.index)
    for (group, unit), rows in rest.groupby(["group", "unit"], sort=False):
        short = rows["quantity"].map(lambda q: q.partition(".")[2] or q)
        whole = short + rows["what"].map(lambda w: f" ({w})" if w else "")
        short = whole.map(lambda n: n if len(n) < 60 else n[:58] + "…")
        rows = rows.assign(name=short.where(whole.groupby(short).transform("nunique") == 1, whole))
        names = list(dict.fromkeys(rows["name"]))
        for start in range(0, len(names), ROWS):
            part = rows[rows["name"].isin(names[start : start + ROWS])]
            label = f"{group}{f', {unit}' if unit else ''}"
            shown = part if len(part) <= 12 else part.loc[[part["value"].idxmin(), part["value"].idxmax()]]
            listed = "; ".join(
                f"{r.name_} {r.subject} {r.value:.3g}"
                for r in shown.rename(columns={"name": "name_"}).itertuples()
            )
            yield draw(
                f"dots-{group}-{unit}-{start}".replace("/", "-").replace(" ", "-"), label,
                "One mark per subject, with its 95% interval where there is one.",
                f"Dot plot of {label}. {'' if len(part) <= 12 else 'Smallest and largest: '}{listed}",
                partial(dots, part, label),
            )  # fmt: skip
