"""Condition caches: what a reader accepts, and what it refuses with a cure."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vltune.conditions import (
    ConditionError,
    class_list_hash,
    condition_cache_mapping,
    conditions_from_mapping,
    load_conditions,
)
from vltune.files import sha256_json

CLASSES = ["person", "wine glass", "café"]
CONDITIONS = [("colour", "What colours it has."), ("scene type", "Where it was taken.")]
MADE_BY = {"method": "by hand", "date": "2026-11-21"}


@pytest.fixture
def cache() -> dict[str, Any]:
    return condition_cache_mapping("three", CLASSES, CONDITIONS, MADE_BY)


def resealed(cache: dict[str, Any]) -> dict[str, Any]:
    """Give a changed cache the hash of its content, as one who edits it with care would."""
    cache["content_hash"] = sha256_json({k: v for k, v in cache.items() if k != "content_hash"})
    return cache


def test_round_trip_through_a_file(cache: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "three.json"
    path.write_text(json.dumps(cache))
    conditions = load_conditions(path, CLASSES)
    assert conditions.names == ("colour", "scene type")
    assert conditions.glosses == ("What colours it has.", "Where it was taken.")
    assert conditions.classnames == tuple(CLASSES)
    assert conditions.class_list_hash == class_list_hash(CLASSES)
    assert conditions.source == str(path)
    assert load_conditions(path) == conditions


def test_class_list_hash_is_that_of_the_documented_bytes() -> None:
    """docs/condition_cache.md: a JSON array without spaces, UTF-8, NFC."""
    expected = hashlib.sha256('["person","wine glass","café"]'.encode()).hexdigest()
    assert class_list_hash(CLASSES) == expected
    assert class_list_hash(["person", "wine glass", "cafe\u0301"]) == expected
    assert class_list_hash(CLASSES[::-1]) != expected
    assert class_list_hash(["person", "wine", "glass", "café"]) != expected


def test_another_class_list_shows_the_first_differences(cache: dict[str, Any]) -> None:
    job = ["person", "wine  glass", "café", "dog"]
    with pytest.raises(ConditionError) as caught:
        conditions_from_mapping(cache, job, "job 'x'")
    message = str(caught.value)
    assert message.startswith("job 'x': was made for another class list (4 classes in the job, 3")
    assert "[1] job 'wine  glass', cache 'wine glass'; [3] job 'dog', cache '(none)'" in message
    with pytest.raises(ConditionError, match=r"the order differs.*\[0\] job 'wine glass', cache"):
        conditions_from_mapping(cache, ["wine glass", "person", "café"], "job")
    with pytest.raises(ConditionError, match="and 4 more"):
        conditions_from_mapping(cache, [str(number) for number in range(9)], "job")


Change = Callable[[dict[str, Any]], object]
WRONG: dict[str, tuple[Change, str]] = {
    "next version": (
        lambda c: c.update(schema_version=2),
        "schema_version is 2; this VLTune reads 1",
    ),
    "no version": (lambda c: c.pop("schema_version"), "schema_version is None"),
    "true version": (lambda c: c.update(schema_version=True), "schema_version is True"),
    "missing key": (lambda c: c.pop("made_by"), r"missing keys \['made_by'\]"),
    "unknown key": (lambda c: c.update(extra=1), r"unknown keys \['extra'\]"),
    "no classes": (lambda c: c.update(classnames=[]), "classnames: expected a list of 1 to 20000"),
    "classes as text": (lambda c: c.update(classnames="person"), "classnames: expected a list"),
    "class number": (
        lambda c: c["classnames"].append(5),
        r"classnames\[3\]: 5 is empty or no text",
    ),
    "empty class": (lambda c: c["classnames"].append(" "), r"classnames\[3\]: ' ' is empty"),
    "padded class": (lambda c: c["classnames"].append("a "), "'a ' has spaces around it"),
    "spaces in a row": (lambda c: c["classnames"].append("a  b"), "spaces around it or in a row"),
    "class twice": (
        lambda c: c["classnames"].append("Person"),
        "'Person' and 'person' are the same",
    ),
    "composed twice": (lambda c: c["classnames"].append("cafe\u0301"), "are the same name"),
    "long class": (
        lambda c: c["classnames"].append("x" * 101),
        "has 101 characters; shorten it to 100",
    ),
    "line break": (lambda c: c["classnames"].append("a\nb"), r"character U\+000A"),
    "zero width": (lambda c: c["classnames"].append("a\u200bb"), r"character U\+200B"),
    "hard space": (lambda c: c["classnames"].append("a\u00a0b"), r"character U\+00A0"),
    "lone surrogate": (lambda c: c["classnames"].append("a\ud800"), r"character U\+D800"),
    "no conditions": (lambda c: c.update(conditions=[]), "conditions: expected a list of 1 to 64"),
    "conditions as text": (
        lambda c: c.update(conditions="colour"),
        "conditions: expected a list, got",
    ),
    "bare condition": (
        lambda c: c["conditions"].append("pose"),
        r"conditions\[2\]: expected an object",
    ),
    "no gloss": (lambda c: c["conditions"][0].pop("gloss"), r"conditions\[0\]: expected an object"),
    "empty gloss": (
        lambda c: c["conditions"][0].update(gloss=""),
        r"conditions\[0\]: gloss: '' is empty",
    ),
    "long gloss": (lambda c: c["conditions"][0].update(gloss="x" * 401), "has 401 characters"),
    "two-line gloss": (lambda c: c["conditions"][0].update(gloss="a\r\nb"), r"character U\+000D"),
    "condition twice": (lambda c: c["conditions"].append(c["conditions"][0]), "are the same name"),
    "empty condition": (
        lambda c: c["conditions"][1].update(name=""),
        r"conditions\[1\]: '' is empty",
    ),
    "too many": (
        lambda c: c.update(conditions=[{"name": f"c{i}", "gloss": "g"} for i in range(65)]),
        "1 to 64 names, got 65 entries",
    ),
    "name": (lambda c: c.update(name=None), "name: None is empty or no text"),
    "origin as text": (lambda c: c.update(made_by="GPT"), "made_by 'GPT'; expected an object"),
    "no date": (lambda c: c["made_by"].pop("date"), "at least by what 'method' and at what 'date'"),
    "list hash": (
        lambda c: c.update(class_list_hash="0"),
        "class_list_hash is '0', but the class names",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_content_is_refused_even_when_resealed(case: str, cache: dict[str, Any]) -> None:
    change, message = WRONG[case]
    wrong = copy.deepcopy(cache)
    change(wrong)
    if case != "lone surrogate":
        resealed(wrong)
    with pytest.raises(ConditionError, match=message) as caught:
        conditions_from_mapping(wrong, None, "cache.json")
    assert str(caught.value).startswith("cache.json: ")


def test_a_hand_edit_breaks_the_content_hash(cache: dict[str, Any]) -> None:
    cache["conditions"][0]["gloss"] = "Edited."
    with pytest.raises(ConditionError, match=r"content_hash is .*The file was changed; restore it"):
        conditions_from_mapping(cache, CLASSES, "cache.json")
    assert conditions_from_mapping(resealed(cache), CLASSES, "cache.json").glosses[0] == "Edited."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[1]", "expected an object"),
        ("[" * 200_000, "cannot be read"),
    ],
)
def test_wrong_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    path.write_text(text)
    with pytest.raises(ConditionError, match=rf"cache\.json: {message}"):
        load_conditions(path, CLASSES)
    with pytest.raises(ConditionError, match=r"none\.json: no such condition cache"):
        load_conditions(tmp_path / "none.json", CLASSES)


def test_the_writer_refuses_what_the_reader_would() -> None:
    with pytest.raises(ConditionError, match="'dog' and 'dog' are the same name"):
        condition_cache_mapping("x", ["dog", "dog"], CONDITIONS, MADE_BY)
    with pytest.raises(ConditionError, match="holds what JSON cannot"):
        condition_cache_mapping("x", ["dog"], CONDITIONS, {**MADE_BY, "score": float("nan")})
    with pytest.raises(ConditionError, match="made_by"):
        condition_cache_mapping("x", ["dog"], CONDITIONS, {"method": "by hand"})


@pytest.mark.parametrize("wrong", [7, None, "lone \ud800 surrogate"])
def test_a_name_that_is_no_text_is_refused_before_it_is_hashed(wrong: Any) -> None:
    made_by = {"method": "test", "date": "2026-11-21"}
    with pytest.raises(ConditionError, match=r"classnames\[1\]"):
        condition_cache_mapping("mine", ["cat", wrong], [("colour", "Hue.")], made_by)
