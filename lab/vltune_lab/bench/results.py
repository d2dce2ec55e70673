"""Result files, benchmarks/results/NAME.json: checked, written whole, read back, summarised.

Every file holds `command, commit, versions, hardware` and `rows`. A *protocol* file names what
methods were compared in under `protocol`; its rows are `{method, setting, seed, mAP, CF1, OF1,
worst_site_mAP, spurious_activation, bytes_up, seconds, ...}`. A *speed* file has `benchmark`
instead; its rows are `{name, baseline, ours, ratio, unit, max_abs_error, ...}`. Metrics are in
[0, 1]; null means not measured; a row may hold further numbers, texts and truth values.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vltune.files import write_json_atomic

RESULTS_FOLDER = Path("benchmarks/results")
PROTOCOL, BENCHMARK = "protocol", "benchmark"
FRACTIONS = frozenset(
    {"mAP", "CF1", "OF1", "worst_site_mAP", "zero_shot_mAP", "accuracy", "worst_site", "vqa"}
)
AMOUNTS = frozenset(
    {
        "bytes_up",
        "bytes_down",
        "wire_bytes_up",
        "wire_bytes_down",
        "seconds",
        "baseline",
        "ours",
        "ratio",
        "max_abs_error",
        "repeats",
    }
)
NUMBERS = FRACTIONS | AMOUNTS | {"spurious_activation", "exactness_error"}

_REQUIRED = {
    PROTOCOL: {"method": str, "setting": str, "seed": int},
    BENCHMARK: {
        "name": str,
        "baseline": float,
        "ours": float,
        "ratio": float,
        "unit": str,
        "max_abs_error": float,
    },
}

Content = dict[str, Any]
Row = dict[str, Any]


class ResultError(ValueError):
    """A result file is missing or wrong; the message names file, row, key and cure."""


class Spread(NamedTuple):
    """Several seeds of one thing.

    Attributes:
        mean: Arithmetic mean.
        deviation: Sample standard deviation (n - 1); 0 for one value.
        low: Smallest.
        high: Largest.
        count: Number of values.
    """

    mean: float
    deviation: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float]) -> Spread:
    """Mean and spread.

    Raises:
        ResultError: No values.
    """
    known = [float(value) for value in values]
    if not known:
        raise ResultError("spread of no values")
    deviation = statistics.stdev(known) if len(known) > 1 else 0.0
    return Spread(statistics.fmean(known), deviation, min(known), max(known), len(known))


def group_rows(rows: Sequence[Row], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows that agree in `keys`, in the order in which each group first appears."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row.get(key) for key in keys)].append(row)
    return dict(groups)


def spread_of(rows: Sequence[Row], metric: str) -> Spread | None:
    """Mean and spread of a metric over rows; None where no row measured it."""
    values = [row[metric] for row in rows if row.get(metric) is not None]
    return spread(values) if values else None


def kind_of(content: Mapping[str, Any], source: str = "result") -> str:
    """`protocol` or `benchmark`: which of the two sorts of file it is.

    Raises:
        ResultError: Neither or both.
    """
    kinds = [kind for kind in (PROTOCOL, BENCHMARK) if kind in content]
    if len(kinds) != 1:
        raise ResultError(f"{source}: expected one of the keys protocol and benchmark, got {kinds}")
    return kinds[0]


def validate_results(content: Mapping[str, Any], source: str = "result") -> None:
    """Check a result file's keys, types and ranges.

    Raises:
        ResultError: Naming source, row and key.
    """
    kind = kind_of(content, source)
    expected = {kind: str, "command": str, "commit": str, "versions": dict, "hardware": str}
    for key, hint in expected.items():
        _require(content, key, hint, source)
    unknown = sorted(content.keys() - expected.keys() - {"rows"})
    if unknown:
        raise ResultError(f"{source}: unknown key {', '.join(unknown)}")
    rows = content.get("rows")
    if not isinstance(rows, list) or not rows:
        raise ResultError(f"{source}: rows: expected a list with at least one row")
    for number, row in enumerate(rows):
        _check_row(row, kind, f"{source}: rows[{number}]")


def write_results(path: Path, content: Mapping[str, Any]) -> Path:
    """Check a result file and write it whole or not at all; return its path."""
    validate_results(content, str(path))
    write_json_atomic(path, content)
    return path


def load_results(path: Path) -> Content:
    """Read and check a result file.

    Raises:
        ResultError: Missing, not JSON, or wrong.
    """
    try:
        content: Content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(
            f"{path}: not found. Measure it with `vltune bench {path.stem}`."
        ) from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ResultError(f"{path}: expected an object, got {type(content).__name__}")
    validate_results(content, str(path))
    return content


def _check_row(row: Any, kind: str, source: str) -> None:
    if not isinstance(row, Mapping):
        raise ResultError(f"{source}: expected an object, got {row!r}")
    for key, hint in _REQUIRED[kind].items():
        _require(row, key, hint, source)
    for key, value in row.items():
        if value is None:
            continue
        if not isinstance(value, str | int | float):
            raise ResultError(f"{source}: {key} is {value!r}, expected a number or text")
        if isinstance(value, float) and not math.isfinite(value):
            raise ResultError(f"{source}: {key} is {value}; null means not measured")
        _check_range(key, value, source)


def _check_range(key: str, value: str | float, source: str) -> None:
    if key in NUMBERS and isinstance(value, str | bool):
        raise ResultError(f"{source}: {key} is {value!r}, expected a number")
    if key in FRACTIONS and not 0 <= float(value) <= 1:
        raise ResultError(f"{source}: {key} is {value}, expected a fraction in [0, 1]")
    if key in AMOUNTS and float(value) < 0:
        raise ResultError(f"{source}: {key} is {value}, expected a number >= 0")


def _require(content: Mapping[str, Any], key: str, hint: type, source: str) -> None:
    if key not in content:
        raise ResultError(f"{source}: missing key {key}")
    value = content[key]
    allowed: tuple[type, ...] = (int, float) if hint is float else (hint,)
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise ResultError(f"{source}: {key} is {value!r}, expected {hint.__name__}")
