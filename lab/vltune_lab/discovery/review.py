"""Review of a cache by a person: `conditions show --table` out, `conditions edit` back in."""

import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vltune import __version__
from vltune.conditions import (
    condition_cache_mapping,
    conditions_from_mapping,
    read_condition_cache,
)
from vltune.files import OutputError, write_json_atomic
from vltune_lab.discovery.answers import one_line
from vltune_lab.discovery.origins import list_origins
from vltune_lab.discovery.review_table import ReviewError, read_table, write_table

MAX_WHO = 100


def write_review(content: Mapping[str, Any], table: Path) -> None:
    """Write conditions and candidates of a checked cache to a new CSV file.

    Raises:
        ReviewError: `table` does not end in .csv, or is there already.
        OutputError: It cannot be written.
    """
    write_table(table, list_origins(content))


def edit_cache(path: Path, table: Path, out: Path, who: str = "") -> dict[str, Any]:
    """Apply an edited table to a cache.

    Args:
        path: The cache.
        table: CSV as `write_review` wrote it and a person changed it.
        out: Cache to write, may be `path`; it is untouched if anything is wrong.
        who: Who edited it, for the record; may be empty.

    Returns:
        The entry of `made_by.edits`; empty if the table changes nothing, and nothing is written.

    Raises:
        ConditionError: `path` holds no usable cache.
        ReviewError: The table is refused, or `who`.
        OutputError: `out` cannot be written.
    """
    if out.suffix != ".json" or out.is_dir():
        raise OutputError(f"--out {out}: expected the name of a file that ends in .json.")
    if who != one_line(who) or len(who) > MAX_WHO:
        raise ReviewError(f"--by {who[:40]!r}: expected one line of at most {MAX_WHO} letters.")
    content = read_condition_cache(path)
    conditions_from_mapping(content, None, str(path))
    edits = content["made_by"].get("edits", [])
    if not isinstance(edits, list):
        raise ReviewError(
            f"{path}: made_by.edits is {edits!r:.80}; expected a list. Make the cache again."
        )
    kept = read_table(table)
    change = _change(content, kept)
    if not change:
        return {}
    entry = {
        "date": datetime.now(UTC).date().isoformat(),
        "package": f"vltune {__version__}",
        **({"by": who} if who else {}),
        **change,
        "content_hash_before": content["content_hash"],
    }
    made_by = {**content["made_by"], "edits": [*edits, entry]}
    edited = condition_cache_mapping(content["name"], content["classnames"], kept, made_by)
    write_json_atomic(out, edited)
    return entry


def describe_edit(entry: Mapping[str, Any]) -> str:
    """Return one line on what an edit changed."""
    if not entry:
        return "no change, nothing written"
    parts = [f"added {', '.join(entry['added'])}"] if entry["added"] else []
    for key, words in (("removed", "removed"), ("gloss_changed", "gloss changed of")):
        if entry[key]:
            parts.append(f"{words} {', '.join(old['name'] for old in entry[key])}")
    return "; ".join(parts + (["reordered"] if entry["reordered"] else []))


def _change(content: Mapping[str, Any], kept: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return what differs, empty if nothing does.

    A name that was changed counts as one removed and one added: it is another condition.
    """
    found = conditions_from_mapping(content, None, "cache")
    glosses = (unicodedata.normalize("NFC", gloss) for gloss in found.glosses)
    before = dict(zip(found.names, glosses, strict=True))
    after = dict(kept)
    stayed = [name for name in before if name in after]
    change = {
        "added": [name for name in after if name not in before],
        "removed": [
            {"name": name, "gloss": gloss} for name, gloss in before.items() if name not in after
        ],
        "gloss_changed": [
            {"name": name, "before": before[name]} for name in stayed if before[name] != after[name]
        ],
        "reordered": stayed != [name for name in after if name in before],
    }
    return change if any(change.values()) else {}
