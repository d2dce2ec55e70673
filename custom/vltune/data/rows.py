"""Rows of a site's data files, JSON lines or Parquet, checked but not yet given a meaning.

Messages name file, line (or row) and key, never a value: a site's errors may be shown elsewhere.
"""

import json
import math
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vltune.data.image_sources import ImageCell, ImageFile, ImageSource
from vltune.data.images import stays_inside
from vltune.data.parquet import (
    ParquetImages,
    column_names,
    open_parquet,
    read_batches,
    values_of,
)

IMAGE = "image"

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


class RecordError(ValueError):
    """A data file is wrong; the message names the file, the line and the cure, no content."""


@dataclass(frozen=True)
class Row:
    """One row of a data file.

    Attributes:
        where: File and line, for messages.
        image: Where its image is.
        values: The other columns; texts are in Unicode form NFC, without spaces around them.
    """

    where: str
    image: ImageSource
    values: dict[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Read a `.jsonl` or `.parquet` file row by row.

    Raises:
        RecordError: No such file, another ending, a malformed line, a key twice, NaN, no image or
            one outside the file's folder, or no row at all.
        ParquetError: The Parquet file cannot be read, or pyarrow is missing.
    """
    readers = {".jsonl": _json_rows, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        raise RecordError(
            f"{path}: expected a file that ends in .jsonl or .parquet. Convert or rename it."
        )
    if not os.path.isfile(path):
        raise RecordError(f"{path}: no such data file. Correct `files:` in vltune_site.yaml.")
    is_empty = True
    for row in readers[path.suffix.lower()](path):
        is_empty = False
        yield row
    if is_empty:
        raise RecordError(f"{path}: has no rows. Give a file with rows, or leave it out.")


def text_of(row: Row, key: str) -> str:
    """The text under `key`, NFC, without white space around it.

    Raises:
        RecordError: It is missing, no text, empty, or not valid Unicode.
    """
    if key not in row.values:
        raise RecordError(f"{row.where}: key {key!r} is missing. Add it to the row.")
    return clean_text(row.values[key], f"{row.where}: {key!r}")


def clean_text(value: Any, where: str) -> str:
    """Check one text.

    Raises:
        RecordError: It is no text, empty, or holds half a surrogate pair.
    """
    if not isinstance(value, str):
        kind = "NaN" if isinstance(value, float) and math.isnan(value) else type(value).__name__
        raise RecordError(f"{where} is {kind}; expected text. Correct the row.")
    text = unicodedata.normalize("NFC", value).strip()
    if not text:
        raise RecordError(f"{where} is empty. Fill it, or remove the row.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"{where} is no valid Unicode text. Correct the row.") from error
    return text


def texts_of(row: Row, key: str, *, single: str, several: str) -> tuple[str, ...]:
    """The text under `key`, or the list of texts where the key is `several`.

    Raises:
        RecordError: It is empty, or of another type.
    """
    if key != several:
        return (text_of(row, key),)
    value = row.values[key]
    if not isinstance(value, list) or not value:
        raise RecordError(
            f"{row.where}: {several!r} is {'empty' if value == [] else type(value).__name__}; "
            f"expected a list of texts. Give at least one, or use {single!r}."
        )
    return tuple(
        clean_text(item, f"{row.where}: '{several}[{index}]'") for index, item in enumerate(value)
    )


def key_names(keys: set[str]) -> str:
    """Names for a message; what does not look like a column name may be content and stays out."""
    plain = sorted(key for key in keys if _PLAIN_KEY.fullmatch(key))
    others = len(keys) - len(plain)
    return ", ".join([*map(repr, plain[:12]), *([f"{others} that are no names"] * bool(others))])


def _json_rows(path: Path) -> Iterator[Row]:
    folder = path.parent
    for number, line in _lines(path):
        where = f"{path}: line {number}"
        try:
            values = json.loads(
                line, parse_constant=_refuse_constant, object_pairs_hook=_without_repeats
            )
        except RecordError as error:
            raise RecordError(f"{where}: {error}") from None
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise RecordError(
                f"{where}: not JSON ({reason}). One object a line; the file may be cut off."
            ) from error
        if not isinstance(values, dict):
            raise RecordError(f"{where}: expected an object, got a {type(values).__name__}.")
        image = values.pop(IMAGE, None)
        yield Row(where, _image_file(image, folder, where), values)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, numbered from 1; cut at line feeds only, as the format says."""
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise RecordError(
                        f"{path}: line {number}: not UTF-8 text. Save the file as UTF-8."
                    ) from error
                if text.strip():
                    yield number, text
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}).") from error


def _refuse_constant(name: str) -> None:
    raise RecordError(f"{name} is no value. Correct the line.")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise RecordError("a key is there twice. Keep one of them.")
    return values


def _image_file(name: Any, folder: Path, where: str) -> ImageFile:
    if name is None:
        raise RecordError(f"{where}: key 'image' is missing. Add the path of the image.")
    if not isinstance(name, str):
        raise RecordError(
            f"{where}: 'image' is {type(name).__name__}; expected a path relative to the folder "
            "of this file."
        )
    if not stays_inside(name):
        raise RecordError(
            f"{where}: 'image' does not stay inside the folder of this file. Use a path relative "
            "to that folder, without '..'."
        )
    return ImageFile(folder / name, where)


def _parquet_rows(path: Path) -> Iterator[Row]:
    file = open_parquet(path)
    names = column_names(file, path)
    if IMAGE not in names:
        raise RecordError(f"{path}: column 'image' is missing; it has {key_names(set(names))}.")
    if len(set(names)) != len(names):
        raise RecordError(f"{path}: two columns have one name. Rename one.")
    images = ParquetImages(path, IMAGE)
    others = [name for name in names if name != IMAGE]
    number = 0
    for batch in read_batches(file, path, others):
        columns = {name: values_of(batch, name, path) for name in others}
        for index in range(batch.num_rows):
            where = f"{path}: row {number + 1}"
            values = {name: column[index] for name, column in columns.items()}
            yield Row(where, _cell_source(images, number, where), values)
            number += 1


def _cell_source(images: ParquetImages, row: int, where: str) -> ImageSource:
    """Bytes, a path, or the hub's struct of both, of which the bytes go first."""
    cell = images.cell(row)
    if isinstance(cell, dict):
        if not set(cell) <= {"bytes", "path"}:
            raise RecordError(f"{where}: 'image' has other fields than 'bytes' and 'path'.")
        cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, bytes):
        return ImageCell(images, row)
    return _image_file(cell, images.path.parent, where)
