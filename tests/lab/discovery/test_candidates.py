from collections.abc import Sequence

import numpy as np
import pytest

from vltune_lab.discovery.answers import RawCondition
from vltune_lab.discovery.candidates import Meaning, merge_conditions
from vltune_lab.discovery.embedding import cosine_similarity

CLASSES = ("dog", "parking lot")


def raw(name: str, values: dict[int, str] | None = None, gloss: str = "A line.") -> RawCondition:
    return RawCondition(name, gloss, values or {})


def test_equal_and_alike_names_are_one_candidate() -> None:
    found = merge_conditions(
        [
            raw("Type of scene", {0: "street"}, "Other words."),
            raw("lighting", {0: "dark"}),
            raw("scene type", {0: "road", 1: "kitchen"}, "The kind of place."),
            raw("Scene type", {1: "cook", 2: "beach"}),
        ],
        CLASSES,
    )
    scene, lighting = found.kept
    assert (scene.name, scene.gloss, scene.times) == ("scene type", "The kind of place.", 3)
    assert scene.also == ("type of scene",)
    assert scene.values == {0: "road", 1: "kitchen", 2: "beach"}, "the first value stays"
    assert (lighting.name, lighting.times) == ("lighting", 1)
    assert found.refused == {}


def test_forty_times_the_same_is_one() -> None:
    assert len(merge_conditions([raw("Lighting")] * 40, CLASSES).kept) == 1


def test_a_condition_without_a_gloss_gets_one_from_its_twin_or_its_name() -> None:
    found = merge_conditions([raw("pose", gloss=""), raw("light", gloss="")], CLASSES)
    assert [candidate.gloss for candidate in found.kept] == ["pose", "light"]
    found = merge_conditions([raw("pose", gloss=""), raw("pose", gloss="Posture.")], CLASSES)
    assert found.kept[0].gloss == "Posture."


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        (raw("dog pose"), "names a class"),
        (raw("size of parking lot"), "names a class"),
        (raw("one two three four five"), "more than 4 words"),
        (raw("x" * 41), "more than 4 words or 40 letters"),
        (raw("The condition"), "no name is left"),
        (raw("pose", gloss="g" * 401), "401 characters"),
    ],
)
def test_refused_candidates_are_named_with_a_reason(condition: RawCondition, reason: str) -> None:
    found = merge_conditions([condition], CLASSES)
    assert found.kept == []
    assert reason in found.refused[condition.name]


def test_part_of_a_word_is_no_class() -> None:
    kept = merge_conditions([raw("dogma"), raw("parking"), raw("犬")], CLASSES).kept
    assert {candidate.name for candidate in kept} == {"dogma", "parking", "犬"}


def test_nothing_comes_of_nothing() -> None:
    assert merge_conditions([], CLASSES).kept == []


def cosines(texts: Sequence[str]) -> np.ndarray:
    """(3, 4) for place, (4, 3) for surroundings, (0, 1) for light: 24 / 25, 4 / 5 and 3 / 5."""
    known = {"place: Where.": (3, 4), "surroundings: A line.": (4, 3), "light: A line.": (0, 1)}
    return cosine_similarity(np.array([known[text] for text in texts], dtype=float))


def test_names_of_one_meaning_are_one_by_the_threshold() -> None:
    conditions = [raw("Place", {0: "a", 1: "b"}, "Where."), raw("surroundings", {2: "c"})]
    conditions.append(raw("light"))
    found = merge_conditions(conditions, CLASSES, meaning=Meaning(cosines, 0.96 - 1e-9))
    assert [candidate.name for candidate in found.kept] == ["place", "light"]
    assert found.kept[0].values == {0: "a", 1: "b", 2: "c"}
    (merge,) = found.merges
    assert merge.record() == {
        "name": "surroundings",
        "into": "place",
        "letters": 0.0,
        "cosine": 0.96,
    }
    apart = merge_conditions(conditions, CLASSES, meaning=Meaning(cosines, 0.97))
    assert len(apart.kept) == 3
    assert apart.merges == []
    all_one = merge_conditions(conditions, CLASSES, meaning=Meaning(cosines, 0.79))
    assert [merge.into for merge in all_one.merges] == ["place", "place"]


def test_names_alike_by_letters_stay_one_whatever_their_meaning() -> None:
    found = merge_conditions(
        [raw("scene type"), raw("type of scene")],
        CLASSES,
        meaning=Meaning(lambda texts: np.eye(len(texts)), 0.9),
    )
    assert [candidate.name for candidate in found.kept] == ["scene type"]
    assert (found.merges[0].cosine, found.merges[0].letters > 0.7) == (0.0, True)


def test_without_a_meaning_a_merge_has_no_cosine() -> None:
    found = merge_conditions([raw("scene type"), raw("type of scene")], CLASSES)
    assert found.merges[0].record()["cosine"] is None
