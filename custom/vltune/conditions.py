"""Visual conditions of a class list, read from `condition_cache/` (docs/condition_cache.md).

A cache is made once, offline, from a public list of class names (FedMPT, arXiv 2605.28347). The job
carries its whole content, so sites need neither the file nor a language model. It is also the one
home of the class list: its names and their order are the columns of every label matrix.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from vltune.files import sha256_json

SCHEMA_VERSION = 1
MAX_CONDITIONS = 64
MAX_CLASSES = 20_000
MAX_NAME = 100
MAX_GLOSS = 400

_KEYS = (
    "schema_version",
    "name",
    "classnames",
    "class_list_hash",
    "conditions",
    "made_by",
    "content_hash",
)
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Zs", "Zl", "Zp")


class ConditionError(ValueError):
    """A condition cache is wrong or is not the job's; the message names file, value and cure."""


@dataclass(frozen=True)
class ConditionSet:
    """K conditions of one class list.

    Attributes:
        names: K condition names, the words that enter the prompts.
        glosses: One line for each, for people.
        classnames: The C classes, in the order of the label columns.
        class_list_hash: `class_list_hash(classnames)`.
        source: Where the set was read.
    """

    names: tuple[str, ...]
    glosses: tuple[str, ...]
    classnames: tuple[str, ...]
    class_list_hash: str
    source: str


def class_list_hash(classnames: Sequence[str]) -> str:
    """Hex SHA-256 of the exact names in their order, as JSON in UTF-8 and Unicode form NFC."""
    return sha256_json([unicodedata.normalize("NFC", name) for name in classnames])


def load_conditions(path: Path, classnames: Sequence[str] | None = None) -> ConditionSet:
    """Read a condition cache; see `conditions_from_mapping`.

    Raises:
        ConditionError: The file is missing, is not JSON, or its content is refused.
    """
    return conditions_from_mapping(read_condition_cache(path), classnames, str(path))


def read_condition_cache(path: Path) -> dict[str, Any]:
    """Read a cache as the mapping that travels in a job, without looking inside.

    Raises:
        ConditionError: The file is missing or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConditionError(
            f"{path}: no such condition cache. Give one of condition_cache/*.json, or make one for "
            "your class list."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConditionError(
            f"{path}: cannot be read as JSON ({error}). Restore the file or make it again."
        ) from error
    if not isinstance(content, dict):
        raise ConditionError(
            f"{path}: expected an object at the top, got {type(content).__name__}."
        )
    return content


def conditions_from_mapping(
    content: Mapping[str, Any], classnames: Sequence[str] | None, source: str
) -> ConditionSet:
    """Check a cache's content against itself and against the job's class list.

    Args:
        content: What the JSON holds.
        classnames: The job's classes in order; None takes those of the cache.
        source: File or job, for messages.

    Raises:
        ConditionError: Another schema version, an unknown or missing key, names that are empty, too
            long, repeated or have control characters, a hash that does not fit its content, or a
            class list that is not the job's.
    """
    _check_keys(content, source)
    cached = _check_names(content["classnames"], f"{source}: classnames", MAX_CLASSES)
    names, glosses = _check_conditions(content["conditions"], source)
    _check_words(content["name"], f"{source}: name", MAX_NAME)
    _check_made_by(content["made_by"], source)
    if classnames is not None:
        _compare(tuple(classnames), cached, source)
    list_hash = class_list_hash(cached)
    if content["class_list_hash"] != list_hash:
        raise ConditionError(
            f"{source}: class_list_hash is {content['class_list_hash']!r}, but the class names "
            f"give {list_hash}. The list was edited by hand; restore the file or make it again."
        )
    content_hash = _content_hash(content, source)
    if content["content_hash"] != content_hash:
        raise ConditionError(
            f"{source}: content_hash is {content['content_hash']!r}, but the content gives "
            f"{content_hash}. The file was changed; restore it or make it again."
        )
    return ConditionSet(names, glosses, cached, list_hash, source)


def condition_cache_mapping(
    name: str,
    classnames: Sequence[str],
    conditions: Sequence[tuple[str, str]],
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the content of a cache, hashes included, and check it as a reader would.

    Args:
        name: Of the class list, such as `coco-80`.
        classnames: C class names in order.
        conditions: K pairs (name, one-line gloss).
        made_by: How the conditions came about: `method` and `date` at least, and whatever a reader
            needs to judge them (model, parameters, prompts, candidates with scores).

    Raises:
        ConditionError: As `conditions_from_mapping`.
    """
    source = f"condition cache {name!r}"
    _check_names(list(classnames), f"{source}: classnames", MAX_CLASSES)
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "classnames": list(classnames),
        "class_list_hash": class_list_hash(classnames),
        "conditions": [{"name": word, "gloss": gloss} for word, gloss in conditions],
        "made_by": dict(made_by),
    }
    content["content_hash"] = _content_hash(content, source)
    conditions_from_mapping(content, None, source)
    return content


def _content_hash(content: Mapping[str, Any], source: str) -> str:
    try:
        return sha256_json({key: value for key, value in content.items() if key != "content_hash"})
    except (TypeError, ValueError, RecursionError) as error:
        raise ConditionError(f"{source}: holds what JSON cannot: {error}. Correct it.") from error


def _check_keys(content: Mapping[str, Any], source: str) -> None:
    version = content.get("schema_version")
    if version != SCHEMA_VERSION or type(version) is not int:
        raise ConditionError(
            f"{source}: schema_version is {version!r}; this VLTune reads {SCHEMA_VERSION}. "
            "Make the cache again, or install the VLTune that wrote it."
        )
    missing = [key for key in _KEYS if key not in content]
    unknown = sorted(set(content) - set(_KEYS))
    if missing or unknown:
        raise ConditionError(
            f"{source}: missing keys {missing}, unknown keys {unknown}; expected "
            f"{', '.join(_KEYS)}. Make the cache again."
        )


def _check_words(words: object, where: str, longest: int) -> str:
    """Return `words` if it is one clean line of 1 to `longest` characters."""
    if not isinstance(words, str) or not words.strip():
        raise ConditionError(f"{where}: {words!r:.80} is empty or no text. Give it words.")
    if len(words) > longest:
        raise ConditionError(
            f"{where}: {words[:40]!r}... has {len(words)} characters; shorten it to {longest}."
        )
    for letter in words:
        if unicodedata.category(letter) in _INVISIBLE and letter != " ":
            raise ConditionError(
                f"{where}: {words!r} holds the control or invisible character "
                f"U+{ord(letter):04X}. Remove it."
            )
    if words != " ".join(words.split()):
        raise ConditionError(f"{where}: {words!r} has spaces around it or in a row. Remove them.")
    return words


def _check_names(names: object, where: str, most: int) -> tuple[str, ...]:
    if not isinstance(names, list) or not 1 <= len(names) <= most:
        found = f"{len(names)} entries" if isinstance(names, list) else f"{names!r:.80}"
        raise ConditionError(f"{where}: expected a list of 1 to {most} names, got {found}.")
    checked = [
        _check_words(name, f"{where}[{index}]", MAX_NAME) for index, name in enumerate(names)
    ]
    seen: dict[str, str] = {}
    for name in checked:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise ConditionError(
                f"{where}: {name!r} and {seen[key]!r} are the same name. Keep one of them."
            )
        seen[key] = name
    return tuple(unicodedata.normalize("NFC", name) for name in checked)


def _check_conditions(conditions: object, source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    where = f"{source}: conditions"
    if not isinstance(conditions, list):
        raise ConditionError(f"{where}: expected a list, got {conditions!r:.80}.")
    for index, entry in enumerate(conditions):
        if not isinstance(entry, Mapping) or set(entry) != {"name", "gloss"}:
            raise ConditionError(
                f"{where}[{index}]: expected an object with 'name' and 'gloss', got {entry!r:.80}."
            )
    names = _check_names([entry["name"] for entry in conditions], where, MAX_CONDITIONS)
    glosses = tuple(
        _check_words(entry["gloss"], f"{where}[{index}]: gloss", MAX_GLOSS)
        for index, entry in enumerate(conditions)
    )
    return names, glosses


def _check_made_by(made_by: object, source: str) -> None:
    if not isinstance(made_by, Mapping) or not all(
        isinstance(made_by.get(key), str) and made_by[key] for key in ("method", "date")
    ):
        raise ConditionError(
            f"{source}: made_by {made_by!r:.80}; expected an object that says at least by what "
            "'method' and at what 'date' the conditions were made."
        )


def _compare(job: tuple[str, ...], cached: tuple[str, ...], source: str) -> None:
    """Refuse a cache of another class list, showing the first differences."""
    if class_list_hash(job) == class_list_hash(cached):
        return
    pairs = enumerate(zip_longest(job, cached, fillvalue="(none)"))
    shown = [
        f"[{i}] job {ours!r}, cache {theirs!r}" for i, (ours, theirs) in pairs if ours != theirs
    ]
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    same = sorted(job) == sorted(cached)
    reason = "the order differs" if same else f"{len(job)} classes in the job, {len(cached)} in it"
    raise ConditionError(
        f"{source}: was made for another class list ({reason}): {'; '.join(shown[:5])}{more}. Give "
        "the cache of the job's classes, or make one."
    )
