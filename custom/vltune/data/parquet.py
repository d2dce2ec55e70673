"""Parquet files, read a few rows at a time; pyarrow is needed only where there is such a file."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH_ROWS = 32
"""Rows that are read at a time; images are large."""
_KEPT_BATCHES = 4
_BUFFER_BYTES = 1 << 20


class ParquetError(ValueError):
    """A Parquet file cannot be used; the message names the file and the cure."""


def open_parquet(path: Path) -> Any:
    """Open a Parquet file; its content is read when asked for.

    Raises:
        ParquetError: pyarrow is not installed, there is no such file, or it is no Parquet file.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ParquetError(
            f"{path}: reading Parquet needs pyarrow, which is not installed here. Install it "
            "(`pip install vltune[parquet]`), or write the table as JSON lines."
        ) from error
    try:
        # Else a whole row group's images, which may be gigabytes, are read at once.
        return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except FileNotFoundError as error:
        raise ParquetError(
            f"{path}: no such data file. Correct `files:` in vltune_site.yaml."
        ) from error
    except Exception as error:  # damaged bytes make pyarrow raise nearly anything
        raise ParquetError(
            f"{path}: cannot be read as Parquet ({type(error).__name__}). The file may be cut off; "
            "copy or export it again."
        ) from error


def column_names(file: Any, path: Path) -> list[str]:
    """Names of the columns of an open file.

    Raises:
        ParquetError: The file is damaged.
    """
    try:
        names: list[str] = file.schema_arrow.names
    except Exception as error:
        raise ParquetError(
            f"{path}: damaged ({type(error).__name__}). Copy or export it again."
        ) from error
    return names


def read_batches(
    file: Any, path: Path, columns: list[str], groups: list[int] | None = None
) -> Iterator[Any]:
    """Read some columns, `BATCH_ROWS` rows at a time.

    Args:
        file: Of `open_parquet`.
        path: Its path, for messages.
        columns: Their names.
        groups: Row groups to read; None reads all.

    Raises:
        ParquetError: The file is damaged.
    """
    batches = file.iter_batches(
        batch_size=BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False
    )
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        # pyarrow's own exceptions are OSError, ValueError or NotImplementedError, but not all.
        except Exception as error:
            raise ParquetError(
                f"{path}: damaged ({type(error).__name__}). Copy or export it again."
            ) from error
        yield batch


def values_of(batch: Any, column: int | str, path: Path) -> list[Any]:
    """The values of a batch's column as Python's own.

    Raises:
        ParquetError: They are no values of the column's type, such as text that is not UTF-8.
    """
    try:
        values: list[Any] = batch.column(column).to_pylist()
    except Exception as error:
        raise ParquetError(
            f"{path}: damaged ({type(error).__name__}). Copy or export it again."
        ) from error
    return values


class ParquetImages:
    """The image column of a Parquet file, read a few rows at a time.

    Rows are wanted mostly in ascending order, by several threads: batches are read forward, the
    last few are kept, and a row outside of them is looked for from the start of its row group.
    """

    def __init__(self, path: Path, column: str) -> None:
        self.path = path
        self._column = column
        self._lock = threading.Lock()
        self._batches: Iterator[Any] | None = None
        self._next_row = 0
        self._kept: OrderedDict[int, list[Any]] = OrderedDict()

    def cell(self, row: int) -> Any:
        """The value in `row`: bytes, text, a struct as a mapping, or None.

        Raises:
            ParquetError: The file cannot be read (any more).
        """
        with self._lock:
            found = self._find(row)
            while found is None:
                self._advance(row)
                found = self._find(row)
            start, values = found
            return values[row - start]

    def _find(self, row: int) -> tuple[int, list[Any]] | None:
        for start, values in self._kept.items():
            if start <= row < start + len(values):
                return start, values
        return None

    def _advance(self, row: int) -> None:
        file = open_parquet(self.path)
        starts = _group_starts(file)
        group = max(index for index, start in enumerate(starts) if start <= row)
        # Forward inside a group, else from its start: skipping costs as much as reading.
        if self._batches is None or not starts[group] <= self._next_row <= row:
            groups = list(range(group, len(starts)))
            self._next_row = starts[group]
            self._batches = read_batches(file, self.path, [self._column], groups)
        batch = next(self._batches, None)
        if batch is None:
            raise ParquetError(f"{self.path}: has no row {row + 1} any more. Load it again.")
        values = values_of(batch, 0, self.path)
        self._kept[self._next_row] = values
        self._next_row += len(values)
        while len(self._kept) > _KEPT_BATCHES:
            self._kept.popitem(last=False)


def _group_starts(file: Any) -> list[int]:
    starts = [0]
    for index in range(file.metadata.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(index).num_rows)
    return starts[:-1]
