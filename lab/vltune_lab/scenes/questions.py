"""Questions about scenes with short answers: the truth of a rendered scene, asked in words.

Every answer is from a closed vocabulary (`answer_vocabulary`) and follows from the scene's objects
and background alone. Each kind is balanced where the world is not: absent classes are drawn from
the same distribution as present ones, so that the question alone does not tell the answer.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vltune_lab.scenes.captions import article, plural
from vltune_lab.scenes.render import Scene, SceneObject
from vltune_lab.scenes.world import load_priors

KINDS = ("presence", "count", "colour", "position", "relation", "place", "category")
COLOURS = ("black", "white", "grey", "red", "orange", "yellow")
COLOURS += ("green", "blue", "purple", "pink", "brown")
POSITIONS = ("top left", "top", "top right", "left", "centre", "right")
POSITIONS += ("bottom left", "bottom", "bottom right")
MOST = 4
"""Highest count asked for."""
CLEAR = 0.03
"""A position is asked for when the centre is this far inside its third, as a share of the side."""
APART = 0.18
"""Something is left of a thing when its centre is this much farther left, a share of the side."""
NEAR = 0.06
"""Below this it is not left of it; in between nothing is asked."""

CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": (
        *("dog", "cat", "bird", "horse", "sheep", "cow"),
        *("elephant", "bear", "zebra", "giraffe"),
    ),
    "vehicle": ("bicycle", "car", "motorcycle", "bus", "train", "truck", "airplane", "boat"),
    "food": (
        *("banana", "apple", "orange", "broccoli", "carrot"),
        *("hot dog", "pizza", "donut", "cake", "sandwich"),
    ),
    "piece of furniture": ("chair", "couch", "bed", "toilet"),
    "piece of sports equipment": ("frisbee", "sports ball", "kite", "skateboard"),
    "electronic device": ("tv", "laptop", "computer mouse", "keyboard", "cell phone"),
    "piece of tableware": ("bottle", "wine glass", "cup", "knife", "spoon", "bowl"),
    "bag": ("backpack", "handbag", "suitcase"),
}

WORDING: dict[str, tuple[str, ...]] = {
    "presence": ("Is there {a}?", "Is there {a} in the picture?", "Does the picture show {a}?"),
    "count": ("How many {s} are there?", "How many {s} does the picture show?"),
    "colour": ("What colour is the {c}?", "Which colour does the {c} have?"),
    "position": ("Where is the {c}?", "In which part of the picture is the {c}?"),
    "relation": ("What is {w} the {c}?", "What can be seen {w} the {c}?"),
    "place": ("What kind of place is this?", "Where was this picture taken?"),
    "category": ("Which {k} is shown?", "Which {k} is in the picture?"),
}
SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True)
class Question:
    """One question with its one right answer.

    Attributes:
        kind: One of `KINDS`.
        question: A sentence.
        answer: A word or two of the answer vocabulary.
    """

    kind: str
    question: str
    answer: str


def answer_vocabulary(classnames: Iterable[str], places: Iterable[str]) -> frozenset[str]:
    """Every answer that can occur."""
    counts = tuple(str(number) for number in range(MOST + 1))
    return frozenset(("yes", "no", *counts, *COLOURS, *POSITIONS, *classnames, *places))


def ask(
    scene: Scene,
    classnames: tuple[str, ...],
    rng: np.random.Generator,
    *,
    count: int,
    kinds: Mapping[str, float] | None = None,
) -> list[Question]:
    """Ask up to `count` different questions about a scene; fewer where it does not offer as many.

    Args:
        scene: Rendered scene with `place`.
        classnames: Classes that may be asked for, present or absent.
        rng: The scene's own stream.
        count: Questions wanted.
        kinds: Weight of each kind; None: all alike. A kind that the scene cannot answer (such as
            the colour of the only dog of two) is left to the others.
    """
    weights = dict.fromkeys(KINDS, 1.0) if kinds is None else dict(kinds)
    share = np.array(list(weights.values()), dtype=np.float64)
    names = list(weights)
    asked: dict[str, Question] = {}
    for _ in range(4 * count):
        kind = names[int(rng.choice(len(names), p=share / share.sum()))]
        made = _ASKERS[kind](scene, classnames, rng)
        if made is not None:
            asked.setdefault(made.question, made)
        if len(asked) == count:
            break
    return list(asked.values())


def _presence(scene: Scene, classnames: tuple[str, ...], rng: np.random.Generator) -> Question:
    is_present = bool(rng.random() < 0.5) and bool(scene.objects)
    name = (
        _any(sorted({item.classname for item in scene.objects}), rng)
        if is_present
        else _absent(scene, classnames, rng)
    )
    return _say("presence", "yes" if is_present else "no", rng, a=article(name))


def _count(scene: Scene, classnames: tuple[str, ...], rng: np.random.Generator) -> Question | None:
    """Scenes without a repeated class seldom take part, or nearly every answer would be one."""
    counts = Counter(item.classname for item in scene.objects)
    repeated = sorted(name for name, number in counts.items() if 1 < number <= MOST)
    single = sorted(name for name, number in counts.items() if number == 1)
    draw = rng.random()
    if not repeated and draw >= 0.3:
        return None
    draw = rng.random()
    if repeated and draw < 0.65:
        name = _any(repeated, rng)
    elif single and draw < 0.85:
        name = _any(single, rng)
    else:
        name = _absent(scene, classnames, rng)
    return _say("count", str(counts[name]), rng, s=plural(name))


def _colour(scene: Scene, classnames: tuple[str, ...], rng: np.random.Generator) -> Question | None:
    singles = _singles(scene)
    if not singles:
        return None
    item = singles[int(rng.integers(len(singles)))]
    return _say("colour", item.colour, rng, c=item.classname)


def _position(
    scene: Scene, classnames: tuple[str, ...], rng: np.random.Generator
) -> Question | None:
    side = scene.image.shape[0]
    clear = [
        item
        for item in _singles(scene)
        if all(
            abs(middle - third / 3) >= CLEAR for middle in _centre(item, side) for third in (1, 2)
        )
    ]
    if not clear:
        return None
    item = clear[int(rng.integers(len(clear)))]
    return _say("position", item.position, rng, c=item.classname)


def _relation(
    scene: Scene, classnames: tuple[str, ...], rng: np.random.Generator
) -> Question | None:
    singles = _singles(scene)
    if not singles or len(scene.objects) < 2:
        return None
    item = singles[int(rng.integers(len(singles)))]
    words = _any(sorted(SIDES), rng)
    there = beside(scene, item, words)
    return None if there is None else _say("relation", there, rng, c=item.classname, w=words)


def beside(scene: Scene, item: SceneObject, words: str) -> str | None:
    """The one class on that side of `item`; None where there is none, several, or a doubtful one.

    Args:
        scene: Holds `item`.
        item: Where to look from.
        words: A key of `SIDES`.
    """
    side = scene.image.shape[0]
    (x, y), (right, down) = _centre(item, side), SIDES[words]
    found = set()
    for other in scene.objects:
        if other is item:
            continue
        other_x, other_y = _centre(other, side)
        distance = (other_x - x) * right + (other_y - y) * down
        if NEAR < distance < APART:
            return None
        if distance >= APART:
            found.add(other.classname)
    return found.pop() if len(found) == 1 else None


def _place(scene: Scene, classnames: tuple[str, ...], rng: np.random.Generator) -> Question | None:
    return _say("place", scene.place, rng) if scene.place else None


def _category(
    scene: Scene, classnames: tuple[str, ...], rng: np.random.Generator
) -> Question | None:
    present = {item.classname for item in scene.objects}
    unique = {
        kind: shown[0]
        for kind, names in CATEGORIES.items()
        if len(shown := [name for name in names if name in present]) == 1
    }
    if not unique:
        return None
    kind = _any(sorted(unique), rng)
    return _say("category", unique[kind], rng, k=kind)


_ASKERS = {
    "presence": _presence,
    "count": _count,
    "colour": _colour,
    "position": _position,
    "relation": _relation,
    "place": _place,
    "category": _category,
}


def _say(kind: str, answer: str, rng: np.random.Generator, **words: str) -> Question:
    return Question(kind, _any(WORDING[kind], rng).format(**words), answer)


def _any(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def _absent(scene: Scene, classnames: tuple[str, ...], rng: np.random.Generator) -> str:
    """A class that is not there, drawn as the scene type draws those that are."""
    weights = load_priors().weights(scene.scene, classnames)
    present = {item.classname for item in scene.objects}
    weights = np.where([name in present for name in classnames], 0.0, weights)
    return classnames[int(rng.choice(len(classnames), p=weights / weights.sum()))]


def _singles(scene: Scene) -> list[SceneObject]:
    counts = Counter(item.classname for item in scene.objects)
    return [item for item in scene.objects if counts[item.classname] == 1]


def _centre(item: SceneObject, side: int) -> tuple[float, float]:
    x, y, width, height = item.box
    return (x + width / 2) / side, (y + height / 2) / side


def exact_match(pairs: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """Share of right answers by kind, and `overall` over all questions."""
    hits = defaultdict(list)
    for pair, answer in zip(pairs, answers, strict=True):
        is_right = pair.answer == answer.strip()
        hits[pair.kind].append(is_right)
        hits["overall"].append(is_right)
    return {kind: float(np.mean(hits[kind])) for kind in (*KINDS, "overall") if kind in hits}


def majority_baseline(pairs: Sequence[Question]) -> dict[str, float]:
    """Exact match of the most frequent answer of each kind; `overall` over all questions."""
    answers = defaultdict(Counter)
    for pair in pairs:
        answers[pair.kind][pair.answer] += 1
    best = {kind: counter.most_common(1)[0][0] for kind, counter in answers.items()}
    return exact_match(pairs, [best[pair.kind] for pair in pairs])


def blind_baseline(known: Sequence[Question], pairs: Sequence[Question]) -> dict[str, float]:
    """Exact match of answering `pairs` from the question's words alone, as learnt from `known`.

    The answer most frequent for the same question in other words; for a question never met, the
    kind's most frequent one. No model without the image can do much better.
    """
    by_topic, by_kind = defaultdict(Counter), defaultdict(Counter)
    for pair in known:
        by_topic[_topic(pair)][pair.answer] += 1
        by_kind[pair.kind][pair.answer] += 1
    answers = [
        (by_topic.get(_topic(pair)) or by_kind[pair.kind] or Counter([""])).most_common(1)[0][0]
        for pair in pairs
    ]
    return exact_match(pairs, answers)


def _topic(pair: Question) -> tuple[str, frozenset[str]]:
    """What a question is about, whatever its wording."""
    wording = frozenset(" ".join(WORDING[pair.kind]).replace("?", "").split())
    return pair.kind, frozenset(pair.question.rstrip("?").split()) - wording
