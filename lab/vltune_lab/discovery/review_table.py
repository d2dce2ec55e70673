"""The table in which a person reviews a cache: CSV that spreadsheets open and save.

A cell that a spreadsheet would run as a formula gets an apostrophe in front, which reading takes
away. Excel in many countries cuts cells at ";", so what follows a separator counts as a start too.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vltune.conditions import MAX_CONDITIONS, ConditionError, condition_cache_mapping
from vltune.files import write_bytes_atomic
from vltune_lab.discovery.origins import Origin, same_name

READ = ("keep", "condition", "gloss")
COLUMNS = (*READ, "score", "origin", "reason")
SHOWN_PROBLEMS = 10

# Full-width forms too: some editions of Excel take them for the same.
_STARTS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
_GUARD = re.compile(rf"(^|[,;\t]) *'*(?=[{_STARTS}])")
_GUARDED = re.compile(rf"((?:^|[,;\t]) *'*)'(?=[{_STARTS}])")


class ReviewError(ValueError):
    """A review table cannot be used; the message names file, row, column, value and cure."""


@dataclass(frozen=True)
class Row:
    """A row of an edited table; `number` is the one that a spreadsheet shows, the header's is 1."""

    number: int
    keep: bool
    name: str
    gloss: str


def write_table(path: Path, rows: Iterable[Origin]) -> None:
    """Write a new table, UTF-8 with the mark that Excel needs, all cells in quotes.

    Raises:
        ReviewError: `path` does not end in .csv, or is there and may hold somebody's edits.
        OutputError: It cannot be written.
    """
    if path.suffix.lower() != ".csv":
        raise ReviewError(f"--table {path}: expected the name of a file that ends in .csv.")
    if path.exists():
        raise ReviewError(
            f"--table {path}: is there already and may hold edits. Name a new file, or delete it."
        )
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for row in rows:
        score = "" if row.score is None else f"{row.score:.4f}"
        words = [guard(cell) for cell in (row.name, row.gloss)]
        keep = "yes" if row.keep else "no"
        writer.writerow([keep, *words, score, guard(row.origin), guard(row.reason)])
    write_bytes_atomic(path, text.getvalue().encode("utf-8-sig"))


def read_table(path: Path) -> list[tuple[str, str]]:
    """Return name and gloss of the rows to keep, in their order.

    `keep`, `condition` and `gloss` are read; the other columns may be missing, in another form or
    out of date. Commas or semicolons; empty rows are passed over; text becomes Unicode NFC.

    Raises:
        ReviewError: No readable CSV with these columns, or rows that a cache refuses; the message
            names up to ten of them.
    """
    records = _records(path)
    columns = _columns(path, next(records, []))
    rows: list[Row] = []
    problems: list[str] = []
    for number, cells in enumerate(records, start=2):
        if any(cell.strip() for cell in cells):
            row, found = _row(number, cells, columns)
            rows.append(row)
            problems += found
    problems += _repeated(rows)
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = problems[:SHOWN_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise ReviewError("\n".join(f"{path}: {problem}" for problem in shown))
    kept = [(row.name, row.gloss) for row in rows if row.keep]
    if not 1 <= len(kept) <= MAX_CONDITIONS:
        raise ReviewError(
            f"{path}: column keep: {len(kept)} rows say yes; expected 1 to {MAX_CONDITIONS}. "
            "Write yes in the rows of the conditions to use, no in the others."
        )
    return kept


def guard(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would take for a formula."""
    return _GUARD.sub(lambda found: f"{found[0]}'", text)


def unguard(text: str) -> str:
    """Undo `guard`."""
    return _GUARDED.sub(r"\1", text)


def _records(path: Path) -> Iterator[list[str]]:
    """Read all cells; each row of the spreadsheet is one, empty ones included."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReviewError(
            f"{path}: byte {error.start} is not UTF-8. Save it as 'CSV UTF-8'."
        ) from error
    except OSError as error:
        raise ReviewError(f"{path}: cannot be read ({error.strerror}). Correct --table.") from error
    header = text.split("\n", 1)[0]
    separator = ";" if header.count(";") > header.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        yield from reader
    except csv.Error as error:
        raise ReviewError(
            f"{path}: line {reader.line_num}: no CSV ({error}). Save it as CSV from a spreadsheet."
        ) from error


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """Return where each column is."""
    names = [name.strip() for name in header]
    while names and not names[-1]:
        names.pop()
    wrong = [name for name in names if name not in COLUMNS or names.count(name) > 1]
    missing = [name for name in READ if name not in names]
    if wrong or missing:
        raise ReviewError(
            f"{path}: row 1: columns {', '.join(map(repr, names)) or 'none'}; expected each of "
            f"{', '.join(COLUMNS)} once, of which the first three are needed. Restore the row."
        )
    return {name: index for index, name in enumerate(names)}


def _row(number: int, cells: list[str], columns: Mapping[str, int]) -> tuple[Row, list[str]]:
    """Read a row, and say what is wrong with it."""
    where = f"row {number}, column"
    problems = []
    for index, cell in enumerate(cells[len(columns) :], start=len(columns) + 1):
        if cell.strip():
            problems.append(
                f"{where} {index}: {cell[:40]!r}, but there are {len(columns)} columns. Delete it, "
                "or put the text that was cut in quotes."
            )
    keep, name, gloss = (cells[columns[key]] if columns[key] < len(cells) else "" for key in READ)
    name, gloss = (unicodedata.normalize("NFC", unguard(text)) for text in (name, gloss))
    answer = keep.strip().casefold()
    if answer not in ("yes", "no"):
        problems.append(f"{where} keep: {keep[:40]!r}; expected yes or no. Write one of them.")
    if answer == "yes":
        for column, pair in (("condition", (name, "gloss")), ("gloss", ("name", gloss))):
            refusal = _refusal(pair)
            problems += [f"{where} {column}: {refusal}"] if refusal else []
    return Row(number, answer == "yes", name, gloss), problems


def _refusal(condition: tuple[str, str]) -> str:
    """Return why a cache refuses a name and its gloss; empty if it does not."""
    try:
        made_by = {"method": "check", "date": "check"}
        condition_cache_mapping("check", ["check"], [condition], made_by)
    except ConditionError as error:
        return str(error).partition("conditions[0]: ")[2].removeprefix("gloss: ")
    return ""


def _repeated(rows: list[Row]) -> list[str]:
    """Say which names stand in a row to keep and in another one."""
    problems = []
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(same_name(row.name), row)
        if other is not row and row.name and (row.keep or other.keep):
            problems.append(
                f"row {row.number}, column condition: {row.name[:40]!r} is in row {other.number} "
                "too; expected each name once. Delete one of the rows."
            )
    return problems
