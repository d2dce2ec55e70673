from collections import Counter

import numpy as np
import pytest

from vltune_lab.scenes.captions import article, plural
from vltune_lab.scenes.library import PRETRAINING_STYLES, Library, load_library
from vltune_lab.scenes.plan import plan_scene, scene_rng
from vltune_lab.scenes.questions import (
    CATEGORIES,
    KINDS,
    MOST,
    Question,
    answer_vocabulary,
    ask,
    beside,
    blind_baseline,
    exact_match,
    majority_baseline,
)
from vltune_lab.scenes.render import Scene, SceneObject, position_name, render_scene
from vltune_lab.scenes.world import Split, load_priors

SIDE = 60
SPLIT = Split("test/questions", 0, PRETRAINING_STYLES, dict.fromkeys(load_priors().scenes, 1.0))


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library(styles=PRETRAINING_STYLES, verify=False)


@pytest.fixture(scope="module")
def asked(library: Library) -> list[tuple[Scene, list[Question]]]:
    result = []
    for index in range(300):
        rng = scene_rng(3, SPLIT.name, index)
        plan = plan_scene(library, SPLIT, rng, 0.0)
        scene = render_scene(library, plan, 64, rng, is_held_out=False)
        result.append((scene, ask(scene, library.classnames, rng, count=5)))
    return result


def thing(classname: str, x: int, y: int, colour: str = "red") -> SceneObject:
    """A 10 x 10 object whose centre is (x, y) in an image of 60 x 60."""
    box = (x - 5, y - 5, 10, 10)
    return SceneObject(classname, box, colour, position_name(box, SIDE), 1.0, 100)


def scene_of(*objects: SceneObject, place: str = "street") -> Scene:
    owner = np.full((SIDE, SIDE), -1, dtype=np.int8)
    return Scene(np.zeros((SIDE, SIDE, 3), dtype=np.uint8), "street", "noto", objects, owner, place)


def all_of(scene: Scene, classnames: tuple[str, ...], kind: str) -> set[tuple[str, str]]:
    """Every (question, answer) of a kind that many draws produce."""
    rng = np.random.default_rng(0)
    pairs = [ask(scene, classnames, rng, count=1, kinds={kind: 1.0}) for _ in range(200)]
    return {(pair.question, pair.answer) for group in pairs for pair in group}


def test_every_answer_agrees_with_the_scene(
    library: Library, asked: list[tuple[Scene, list[Question]]]
) -> None:
    """Read back from the wording, by other means than the code that asked."""
    kinds = Counter()
    for scene, pairs in asked:
        counts = Counter(item.classname for item in scene.objects)
        for pair in pairs:
            kinds[pair.kind] += 1
            words = f" {pair.question.rstrip('?')} "
            named = [name for name in library.classnames if f" {name} " in words]
            named += [name for name in library.classnames if f" {article(name)} " in words]
            name = max(named, key=len, default="")
            if pair.kind == "presence":
                assert pair.answer == ("yes" if counts[name] else "no")
            elif pair.kind == "count":
                named = [n for n in library.classnames if f" {plural(n)} " in words]
                name = max(named, key=len)
                assert pair.answer == str(counts[name])
                assert counts[name] <= MOST
            elif pair.kind in ("colour", "position"):
                (item,) = [item for item in scene.objects if item.classname == name]
                assert pair.answer == getattr(item, pair.kind)
            elif pair.kind == "place":
                assert pair.answer == scene.place
            elif pair.kind == "category":
                kind = max((k for k in CATEGORIES if f" {k} " in words), key=len)
                assert set(CATEGORIES[kind]) & set(counts) == {pair.answer}
            else:
                assert pair.answer in counts
    assert set(kinds) == set(KINDS)


def test_answers_are_of_the_closed_vocabulary_and_questions_differ(
    library: Library, asked: list[tuple[Scene, list[Question]]]
) -> None:
    vocabulary = answer_vocabulary(library.classnames, load_priors().scenes)
    for _, pairs in asked:
        assert 3 <= len(pairs) <= 5
        assert len({pair.question for pair in pairs}) == len(pairs)
        assert {pair.answer for pair in pairs} <= vocabulary
        assert not any("{" in pair.question for pair in pairs)


def test_questions_are_a_function_of_the_seed(library: Library) -> None:
    scene = scene_of(thing("dog", 10, 10), thing("cat", 40, 40))
    first, again, other = (
        ask(scene, library.classnames, np.random.default_rng(seed), count=5) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_tiny_scene_by_hand() -> None:
    """A red dog at (10, 30), a blue cat at (50, 30) of 60; thirds end at 20 and 40."""
    scene = scene_of(thing("dog", 10, 30), thing("cat", 50, 30, "blue"), place="beach")
    names = ("dog", "cat", "bus")
    assert all_of(scene, names, "colour") == {
        ("What colour is the dog?", "red"),
        ("Which colour does the dog have?", "red"),
        ("What colour is the cat?", "blue"),
        ("Which colour does the cat have?", "blue"),
    }
    assert ("Where is the dog?", "left") in all_of(scene, names, "position")
    assert ("Is there a bus?", "no") in all_of(scene, names, "presence")
    assert ("Is there a dog?", "yes") in all_of(scene, names, "presence")
    assert ("How many buses are there?", "0") in all_of(scene, names, "count")
    assert ("What kind of place is this?", "beach") in all_of(scene, names, "place")
    assert all_of(scene, names, "category") == set(), "two animals: which one is meant?"
    assert ("What is right of the dog?", "cat") in all_of(scene, names, "relation")


def test_what_is_ambiguous_is_not_asked() -> None:
    names = ("dog", "cat", "bus")
    twins = scene_of(thing("dog", 10, 10), thing("dog", 40, 40))
    for kind in ("colour", "position", "relation"):
        assert all_of(twins, names, kind) == set()
    assert ("How many dogs are there?", "2") in all_of(twins, names, "count")
    assert all_of(scene_of(thing("dog", 21, 30)), names, "position") == set(), "near a third's end"
    assert all_of(scene_of(thing("dog", 30, 30), place=""), names, "place") == set()
    assert all_of(scene_of(), names, "presence") <= {
        (question, "no") for question, _ in all_of(scene_of(), names, "presence")
    }


def test_beside_by_hand() -> None:
    """Sides of 60: 0.06 is 3.6 pixels, 0.18 is 10.8."""
    dog, cat, bus = thing("dog", 30, 30), thing("cat", 10, 30), thing("bus", 50, 33)
    scene = scene_of(dog, cat, bus)
    assert beside(scene, dog, "left of") == "cat"
    assert beside(scene, dog, "right of") == "bus"
    assert beside(scene, dog, "above") is None
    assert beside(scene, dog, "below") is None, "3 pixels lower is not below"
    assert beside(scene, bus, "left of") is None, "two classes"
    doubtful = scene_of(dog, thing("cat", 25, 30), thing("bus", 5, 30))
    assert beside(doubtful, dog, "left of") is None, "the cat is neither left of it nor not"


def test_the_question_alone_tells_little(asked: list[tuple[Scene, list[Question]]]) -> None:
    pairs = [pair for _, group in asked for pair in group]
    known, rest = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
    majority, blind = majority_baseline(rest), blind_baseline(known, rest)
    assert majority["overall"] < 0.35
    assert blind["overall"] < 0.45
    assert 0.4 < blind["presence"] < 0.62


def test_scores_by_hand() -> None:
    """Presence: yes, yes, no; colour: red. The majority answers yes, yes, yes and red: 3 of 4."""
    pairs = [
        Question("presence", "Is there a dog?", "yes"),
        Question("presence", "Is there a cat?", "yes"),
        Question("presence", "Does the picture show a dog?", "no"),
        Question("colour", "What colour is the dog?", "red"),
    ]
    assert exact_match(pairs, [" yes", "no", "no", "blue"]) == {
        "presence": pytest.approx(2 / 3),
        "colour": 0.0,
        "overall": 0.5,
    }
    assert majority_baseline(pairs)["overall"] == 0.75
    known = [*pairs[:2], Question("presence", "Is there a dog in the picture?", "yes")]
    blind = blind_baseline(known, [pairs[2], pairs[1], pairs[3]])
    assert blind == {"presence": 0.5, "colour": 0.0, "overall": pytest.approx(1 / 3)}
