"""Reads the language model's answers; what is not as asked is an error, never guessed at."""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vltune_lab.discovery.backend import Answer

MAX_SENTENCE = 600
# What a form shows in place of text; small models hand it back: "<text>", "...".
_PLACEHOLDER = re.compile(r"<[^<>]*>|[\W_]*")
# An answer may miss some of the wanted sentences; below this share it is asked for again.
MIN_SHARE = 0.5


class AnswerError(ValueError):
    """An answer cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True)
class RawCondition:
    """A condition as one answer gives it.

    Attributes:
        name: As the model wrote it, on one line.
        gloss: Its line for people; may be empty.
        values: Value of the condition for each sentence that has one, by sentence id.
    """

    name: str
    gloss: str
    values: dict[int, str]


def read_sentences(answer: Answer, asked: Sequence[int]) -> dict[int, str]:
    """Return the sentence for each combination id; unknown ids and texts without words are left.

    Raises:
        AnswerError: Cut off, no JSON, not the form, or sentences for fewer than half of the ids.
    """
    wanted = set(asked)
    found: dict[int, str] = {}
    for entry in _entries(answer, "sentences"):
        number, text = _number(entry.get("id")), _words(entry.get("sentence"))
        if number in wanted and 0 < len(text) <= MAX_SENTENCE:
            found.setdefault(number, text)
    if len(found) < MIN_SHARE * len(wanted):
        raise AnswerError(f"has sentences for {len(found)} of {len(wanted)} combinations")
    return found


def read_conditions(answer: Answer, asked: Sequence[int]) -> list[RawCondition]:
    """Return the conditions of an answer; values of sentences that were not asked about are left.

    Raises:
        AnswerError: Cut off, no JSON, not the form, or no condition with a name.
    """
    found = []
    for entry in _entries(answer, "conditions"):
        name = _words(entry.get("name"))
        if name:
            values = _values(entry.get("values"), set(asked))
            found.append(RawCondition(name, _words(entry.get("gloss")), values))
    if not found:
        raise AnswerError("has no condition with a name")
    return found


def one_line(text: object) -> str:
    """Return text on one line without characters that nobody sees; empty if it is no text."""
    if not isinstance(text, str):
        return ""
    spaced = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(
        letter for letter in spaced if letter == " " or unicodedata.category(letter)[0] != "C"
    ).strip()


def _words(text: object) -> str:
    """Return text on one line; empty if it is none, or only repeats a placeholder of the form."""
    line = one_line(text)
    return "" if _PLACEHOLDER.fullmatch(line) else line


def find_object(text: str, key: str) -> dict[str, Any]:
    """Return the first JSON object in `text` that has `key`: bare, fenced, or amid prose.

    Raises:
        AnswerError: There is none.
    """
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if key in found:
                return dict(found)
        start = text.find("{", end)
    raise AnswerError(f"has no JSON object with {key!r}: {one_line(text)[:60]!r}")


def _entries(answer: Answer, key: str) -> Iterator[dict[str, Any]]:
    if answer.is_cut:
        raise AnswerError("was cut off at the longest answer (--max-answer-tokens)")
    entries = find_object(answer.text, key)[key]
    if not isinstance(entries, list):
        raise AnswerError(f"{key!r} is no list")
    return (entry for entry in entries if isinstance(entry, dict))


def _number(value: object) -> int:
    """Return an id, which small models like to write as text; -1 if it is none."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value) if len(value) < 12 else -1
    return value if type(value) is int else -1


def _values(entries: object, wanted: set[int]) -> dict[int, str]:
    values: dict[int, str] = {}
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        value = _words(entry.get("value")).casefold()
        numbers = entry.get("sentences")
        for number in map(_number, numbers if isinstance(numbers, list) else []):
            if value and number in wanted:
                values.setdefault(number, value)
    return values
