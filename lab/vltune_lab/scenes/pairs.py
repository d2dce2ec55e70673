"""From a question to a preference pair: what a house would say, and what it would not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vltune_lab.scenes.house_styles import GROUPS, HouseStyle, say
from vltune_lab.scenes.questions import CATEGORIES, Question
from vltune_lab.scenes.render import Scene

WRONG_CONTENT, OTHER_STYLE = "wrong content", "other style"


@dataclass(frozen=True)
class Pair:
    """A question with an answer and a worse one.

    Attributes:
        question: With its plain answer.
        chosen: The right answer in the house's words.
        rejected: The worse answer.
        flaw: `WRONG_CONTENT` or `OTHER_STYLE`: what is wrong with the rejected one.
    """

    question: Question
    chosen: str
    rejected: str
    flaw: str


def make_pair(
    question: Question,
    scene: Scene,
    house: str,
    styles: Mapping[str, HouseStyle],
    words: Mapping[str, Sequence[str]],
    other_style: float,
    rng: np.random.Generator,
) -> Pair:
    """Answer in a house's words, and reject.

    Args:
        question: What was asked, and the plain truth.
        scene: What is shown.
        house: Whose words are right, a key of `styles`.
        styles: The houses of the world, at least two where `other_style` > 0.
        words: Plain answers by group, of `vocabulary`.
        other_style: Probability that the rejected answer is the truth in another house's words;
            else it is wrong, in the house's own.
        rng: The question's own stream.
    """
    kind, truth = question.kind, question.answer
    chosen = say(kind, truth, styles[house])
    others = sorted(set(styles) - {house})
    if others and rng.random() < other_style:
        other = others[int(rng.integers(len(others)))]
        return Pair(question, chosen, say(kind, truth, styles[other]), OTHER_STYLE)
    options = plausible(question, scene, words)
    wrong = options[int(rng.integers(len(options)))]
    return Pair(question, chosen, say(kind, wrong, styles[house]), WRONG_CONTENT)


def plausible(
    question: Question, scene: Scene, words: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """Wrong answers that somebody might give, in a fixed order, at least one.

    The other answer of yes and no; the next counts; colours of other objects; another class of the
    category or of the scene; else anything of the group.
    """
    kind, truth = question.kind, question.answer
    group = words[GROUPS[kind]]
    if kind == "count":
        near = {str(int(truth) - 1), str(int(truth) + 1)}
    elif kind == "colour":
        near = {item.colour for item in scene.objects}
    elif kind == "relation":
        near = {item.classname for item in scene.objects}
    elif kind == "category":
        near = {name for names in CATEGORIES.values() if truth in names for name in names}
    else:
        near = set(group)
    options = tuple(word for word in group if word in near and word != truth)
    return options or tuple(word for word in group if word != truth)
