import random

import pytest

from vltune_lab.discovery.backend import BackendError
from vltune_lab.discovery.candidates import Candidate
from vltune_lab.discovery.choosing import choose_conditions
from vltune_lab.discovery.scoring import discrimination, overlap, score_candidate

CLASSES_OF = {0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 4)}
PLACE = Candidate("place", "Where.", {0: "in", 1: "in", 2: "out", 3: "out"})
TWIN = Candidate("surroundings", "Where again.", {0: "a", 1: "a", 2: "b", 3: "b"})
LIGHT = Candidate("light", "How bright.", {0: "dark", 1: "bright", 2: "dark"})


def test_scores_by_hand() -> None:
    """Place: 4 of 4 sentences, 5 of 6 classes, and every class has one value.

    Light: 3 of 4 sentences, classes 0 to 3 of 6. Pairs (class, value): 0d 1d 0b 1b 2d 3d, n = 6.
    Classes 0 and 1 have two sentences each, which disagree: within = 0, so d = 0.
    """
    place = score_candidate(PLACE, CLASSES_OF, 6)
    assert (place.coverage, place.discrimination) == (1, 1)
    assert place.generality == pytest.approx(5 / 6)
    assert place.total == pytest.approx((1 + 1 + 5 / 6) / 3)
    light = score_candidate(LIGHT, CLASSES_OF, 6)
    assert (light.coverage, light.discrimination) == (0.75, 0)
    assert light.generality == pytest.approx(4 / 6)


def test_discrimination_by_hand() -> None:
    """Class 0: a a b, class 1: b b. n(x, v) = 2, 1, 2.

    within = (2 + 0 + 2) / (6 + 2) = 0.5, any = (2 + 6) / 20 = 0.4, d = 0.1 / 0.6.
    """
    pairs = [(0, "a"), (0, "a"), (0, "b"), (1, "b"), (1, "b")]
    assert discrimination(pairs) == pytest.approx(1 / 6)


def test_discrimination_of_values_that_know_no_class_is_near_zero() -> None:
    """A thousand classes of four sentences, where mutual information would be near its maximum."""
    draw = random.Random(5)
    pairs = [(index, draw.choice("abcd")) for index in range(1000) for _ in range(4)]
    assert discrimination(pairs) < 0.03


@pytest.mark.parametrize("pairs", [[], [(0, "a")], [(0, "a"), (1, "b")], [(0, "a")] * 4])
def test_discrimination_of_too_little_is_zero(pairs: list[tuple[int, str]]) -> None:
    assert discrimination(pairs) == 0


def test_overlap_by_hand() -> None:
    """Common sentences 0 1 2: {01}{2} and {02}{1} share no pair; {01}{2} with itself all.

    {012}{3} has 3 pairs, {01}{23} has 2, and they share one: 1 / (3 + 2 - 1).
    """
    assert overlap(PLACE.values, LIGHT.values) == 0
    assert overlap(PLACE.values, TWIN.values) == 1
    three = {0: "x", 1: "x", 2: "x", 3: "y"}
    assert overlap(PLACE.values, three) == pytest.approx(1 / 4)
    assert overlap({0: "x", 1: "x"}, {0: "y", 1: "y"}) == 0, "a single value sorts nothing"
    assert overlap({}, PLACE.values) == 0


def test_the_best_that_do_not_overlap() -> None:
    pose = Candidate("pose", "Posture.", {0: "sits"})
    ranked = choose_conditions([pose, LIGHT, TWIN, PLACE], CLASSES_OF, 6, k=2)
    assert [(entry.candidate.name, entry.reason) for entry in ranked] == [
        ("place", ""),
        ("surroundings", "overlaps place"),
        ("light", ""),
        ("pose", "score"),
    ]
    record = ranked[1].record()
    assert (record["score"], record["chosen"]) == (0.9444, False)


def test_too_few_are_an_error_that_names_them() -> None:
    with pytest.raises(
        BackendError, match=r"1 distinct .* of 2 candidates \('place'\), expected 2"
    ):
        choose_conditions([PLACE, TWIN], CLASSES_OF, 6, k=2)
    with pytest.raises(BackendError, match=r"\(none\), expected 1"):
        choose_conditions([], CLASSES_OF, 6, k=1)
