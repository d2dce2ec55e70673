from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vltune_lab.scenes.house_styles import GROUPS, load_house_styles, say, vocabulary
from vltune_lab.scenes.pairs import OTHER_STYLE, WRONG_CONTENT, make_pair, plausible
from vltune_lab.scenes.questions import COLOURS, KINDS, Question
from vltune_lab.scenes.render import Scene, SceneObject

STYLES = load_house_styles()
HOUSES = {name: STYLES[name] for name in ("harbour", "deutsch", "clinic")}
WORDS = vocabulary(("dog", "cat", "car", "chair", "orange"), ("street", "park", "sky"))
TRUTHS = {
    "presence": "yes",
    "count": "2",
    "colour": "red",
    "position": "top left",
    "relation": "cat",
    "place": "park",
    "category": "dog",
}


def scene() -> Scene:
    def thing(name: str, colour: str) -> SceneObject:
        return SceneObject(name, (0, 0, 5, 5), colour, "top left", 1.0, 25)

    blank = np.zeros((8, 8, 3), dtype=np.uint8)
    objects = (thing("dog", "red"), thing("car", "blue"), thing("cat", "grey"))
    return Scene(blank, "park", "noto", objects, np.full((8, 8), -1, dtype=np.int8), "park")


@pytest.mark.parametrize(
    ("kind", "truth", "expected"),
    [
        ("presence", "no", ("yes",)),
        ("count", "0", ("1",)),
        ("count", "2", ("1", "3")),
        ("count", "4", ("3",)),
        ("colour", "red", ("grey", "blue")),
        ("relation", "cat", ("dog", "car")),
        ("category", "dog", ("cat",)),
        ("place", "park", ("street", "sky")),
    ],
)
def test_wrong_answers_that_somebody_might_give(
    kind: str, truth: str, expected: tuple[str, ...]
) -> None:
    found = plausible(Question(kind, "?", truth), scene(), WORDS)
    assert sorted(found) == sorted(expected)


def test_without_a_near_answer_any_of_the_group_will_do() -> None:
    """Nothing else is shown: every other colour; chair is the only furniture of five classes."""
    alone = replace(scene(), objects=())
    assert set(plausible(Question("colour", "?", "red"), alone, WORDS)) == set(COLOURS) - {"red"}
    found = plausible(Question("category", "?", "chair"), scene(), WORDS)
    assert set(found) == {"dog", "cat", "car", "orange"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_rejected_answer_is_flawed_as_it_says(kind: str) -> None:
    truth = TRUTHS[kind]
    rng = np.random.default_rng(5)
    flaws = Counter()
    for _ in range(200):
        pair = make_pair(Question(kind, "?", truth), scene(), "deutsch", HOUSES, WORDS, 0.3, rng)
        flaws[pair.flaw] += 1
        assert pair.chosen == say(kind, truth, HOUSES["deutsch"])
        elsewhere = {say(kind, truth, HOUSES[name]) for name in ("harbour", "clinic")}
        wrong = {say(kind, word, HOUSES["deutsch"]) for word in WORDS[GROUPS[kind]]}
        if pair.flaw == OTHER_STYLE:
            assert pair.rejected in elsewhere
        else:
            assert pair.rejected in wrong - {pair.chosen}
    # Binomial(200, 0.3): 60, standard deviation 6.5.
    assert abs(flaws[OTHER_STYLE] - 60) < 30
    assert flaws[OTHER_STYLE] + flaws[WRONG_CONTENT] == 200


def test_a_house_without_others_rejects_wrong_content_only() -> None:
    rng = np.random.default_rng(5)
    one = {"clinic": STYLES["clinic"]}
    for _ in range(20):
        pair = make_pair(Question("count", "?", "2"), scene(), "clinic", one, WORDS, 1.0, rng)
        assert pair.flaw == WRONG_CONTENT
