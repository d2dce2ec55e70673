"""Where each condition of a cache comes from: the model, the paper, or a person's hand.

`made_by` says what a run found, and `made_by.edits` what people changed since; the run's own record
stays as it was. A cache made elsewhere may hold anything there, so what is not as documented is
passed over, and all text is put on one line.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vltune_lab.discovery.answers import one_line
from vltune_lab.discovery.from_paper import METHOD as FROM_PAPER

BY_HAND = "by hand"
REMOVED = "removed by hand"

Entries = list[dict[str, Any]]


@dataclass(frozen=True)
class Origin:
    """A condition, kept or not, as a person reviews it.

    Attributes:
        keep: Is it one of the K?
        name: The words that enter the prompts.
        gloss: One line for people; empty if none is known.
        score: Within its run, None if it has none.
        origin: Who found it and who changed it.
        reason: Why it was not chosen; empty if it was.
    """

    keep: bool
    name: str
    gloss: str
    score: float | None
    origin: str
    reason: str


def list_origins(content: Mapping[str, Any]) -> list[Origin]:
    """Return the K conditions of a checked cache, then every candidate that is none of them.

    Names are distinct, letter case aside; of two candidates of one name the first counts.
    """
    made_by = content["made_by"]
    candidates = {entry["name"]: entry for entry in _entries(made_by, "candidates")}
    rows = [
        Origin(True, name, gloss, _score(candidates.get(name)), _origin(name, gloss, made_by), "")
        for name, gloss in ((entry["name"], entry["gloss"]) for entry in content["conditions"])
    ]
    removed = [old for edit in edits_of(made_by) for old in _entries(edit, "removed")]
    seen = {same_name(row.name) for row in rows}
    # Latest first, so that a condition that was removed twice has its last words.
    for entry in (*candidates.values(), *_entries(made_by, "refused"), *reversed(removed)):
        name, gloss = one_line(entry["name"]), one_line(entry.get("gloss"))
        if name and same_name(name) not in seen:
            seen.add(same_name(name))
            reason = one_line(entry.get("reason")) or REMOVED
            origin = _origin(name, gloss, made_by)
            rows.append(Origin(False, name, gloss, _score(entry), origin, reason))
    return rows


def describe_method(made_by: Mapping[str, Any]) -> str:
    """Return who made a cache on one line, such as `language model NAME, edited by hand`."""
    edits = len(edits_of(made_by))
    if not edits:
        return _method(made_by)
    return f"{_method(made_by)}, edited by hand" + (f" {edits} times" if edits > 1 else "")


def edits_of(made_by: Mapping[str, Any]) -> Entries:
    """Return what people changed, oldest first."""
    edits = made_by.get("edits")
    return [entry for entry in edits if isinstance(entry, dict)] if isinstance(edits, list) else []


def same_name(name: str) -> str:
    """Return what two names have in common that a cache takes for one."""
    return unicodedata.normalize("NFC", name).casefold()


def _origin(name: str, gloss: str, made_by: Mapping[str, Any]) -> str:
    """Name the origin of a condition; the run's own choice goes before later edits."""
    edits, fallback = edits_of(made_by), made_by.get("fallback")
    entry = next((e for e in _entries(made_by, "candidates") if e["name"] == name), None)
    changed = any(old["name"] == name for edit in edits for old in _entries(edit, "gloss_changed"))
    added = [new for edit in edits for new in _texts(edit.get("added"))]
    if name in _texts(fallback):
        origin = FROM_PAPER
    elif entry is not None:
        is_picked = name in added and entry.get("chosen") is False
        origin = _method(made_by) + (f", chosen {BY_HAND}" if is_picked else "")
        known = entry.get("gloss")
        changed = gloss != one_line(known) if isinstance(known, str) else changed
    elif name in added:
        return BY_HAND
    else:
        origin = _method(made_by)
    return f"{origin}, gloss {BY_HAND}" if changed else origin


def _method(made_by: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (one_line(made_by["method"]), one_line(made_by.get("model")))))


def _entries(record: Mapping[str, Any], key: str) -> Entries:
    """Return the objects with a name under `key`."""
    found = record.get(key)
    return [
        entry
        for entry in (found if isinstance(found, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("name"), str)
    ]


def _texts(found: object) -> list[str]:
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _score(entry: Mapping[str, Any] | None) -> float | None:
    score = entry.get("score") if entry else None
    is_number = isinstance(score, float | int) and not isinstance(score, bool)
    return float(score) if is_number and score is not None else None
