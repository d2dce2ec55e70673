"""Read, check and write `summary.json`: what a run did and what came of it (docs/run_folder.md)."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vltune.config import ConfigError, from_mapping, to_mapping
from vltune.files import write_json_atomic
from vltune_lab.report.schema import (
    SCHEMA_VERSION,
    GlobalTest,
    Reading,
    RejectedUpdate,
    RoundSummary,
    RunSummary,
    SiteBytes,
    SiteSummary,
)

__all__ = [
    "SCHEMA_VERSION",
    "SUMMARY_FILE",
    "GlobalTest",
    "Reading",
    "RejectedUpdate",
    "RoundSummary",
    "RunSummary",
    "SiteBytes",
    "SiteSummary",
    "SummaryError",
    "fraction_or_none",
    "load_summary",
    "validate",
    "worst_of",
    "write_summary",
]

SUMMARY_FILE = "summary.json"


class SummaryError(ValueError):
    """A summary is missing, damaged or not of this schema; the message names file, key and cure."""


def validate(content: Mapping[str, Any], source: str = "summary") -> RunSummary:
    """Check a summary's keys, types and ranges.

    Args:
        content: As JSON gives it.
        source: File it comes from, for the message.

    Raises:
        SummaryError: Naming the key and what was expected.
    """
    if not isinstance(content, Mapping):
        raise SummaryError(f"{source}: expected an object, got {type(content).__name__}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise SummaryError(
            f"{source}: schema_version is {version!r}, this VLTune reads {SCHEMA_VERSION}. "
            "Use the VLTune that wrote the run (`versions` in the same file)."
        )
    try:
        return from_mapping(RunSummary, content, source)
    except ConfigError as error:
        raise SummaryError(str(error)) from error


def write_summary(run_folder: Path, summary: RunSummary | Mapping[str, Any]) -> Path:
    """Check a summary and write it whole or not at all; return its path.

    Infinity in `config` and `extra` (a relaxation of infinity, say) becomes the text "inf".

    Raises:
        SummaryError: It is not of this schema.
    """
    content = to_mapping(summary) if isinstance(summary, RunSummary) else dict(summary)
    content = {"schema_version": content.pop("schema_version", None)} | content
    for key in ("config", "extra"):
        if key in content:
            content[key] = _without_infinity(content[key])
    validate(content, str(run_folder / SUMMARY_FILE))
    write_json_atomic(run_folder / SUMMARY_FILE, content)
    return run_folder / SUMMARY_FILE


def load_summary(run_folder: Path) -> RunSummary:
    """Read and check the summary of a run folder.

    Raises:
        SummaryError: Missing, not JSON, or not of this schema.
    """
    path = run_folder / SUMMARY_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise SummaryError(
            f"{path}: not found. Give the folder of a finished run (runs/<name>); a run writes "
            "its summary when it ends."
        ) from None
    except OSError as error:
        raise SummaryError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SummaryError(
            f"{path}: is no valid JSON ({error}). Run the job again, or copy the file anew."
        ) from error
    return validate(content, str(path))


def fraction_or_none(value: float) -> float | None:
    """A metric for the summary: NaN (nothing to measure) becomes null."""
    return float(value) if math.isfinite(value) else None


def worst_of(values: Iterable[float | None]) -> float | None:
    """Lowest of the measured values; null without any."""
    return min((value for value in values if value is not None), default=None)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _without_infinity(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
